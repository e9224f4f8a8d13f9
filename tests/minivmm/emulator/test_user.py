"""Linux programs for riscv64 on both engines: what a program may rely on, and what it cannot do to the host."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import pytest

from minivmm.emulator.user.process import Process
from minivmm.errors import ImageError
from minivmm.outcome import Outcome, RunResult
from tests.minivmm.emulator.programs import Build, compile_program


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles a program whose `start(stack)` returns its exit status; the same one once."""
    directory = tmp_path_factory.mktemp("programs")
    return functools.cache(lambda body: compile_program(directory, body))


@pytest.fixture(params=[False, True], ids=["interpret", "translate"])
def translate(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def run(program: Path, *arguments: str, translate: bool, root: Path | None = None, **options: object) -> RunResult:
    with Process(program, arguments, root=root, translate=translate, memory=64 << 20, **options) as process:  # type: ignore[arg-type]
        return process.run(timeout=60)


def test_arguments_environment_and_exit_status_arrive(
    build: Build, translate: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    program = build("""
        long start(long *stack)
        {
            char **argument = (char **)(stack + 1);
            for (long i = 1; i < stack[0]; i++) say(argument[i]), say("|");
            for (char **variable = argument + stack[0] + 1; *variable; variable++) say(*variable), say(";");
            return 40 + stack[0];
        }""")
    result = run(program, "one", "two words", translate=translate, environment=["HOME=/"])
    assert (result.outcome, result.code) == (Outcome.EXITED, 43), result
    assert capfd.readouterr().out == "one|two words|HOME=/;"


def test_memory_is_given_protected_and_taken_away(build: Build, translate: bool) -> None:
    program = build("""
        long start(long *stack)
        {
            long old = CALL(BRK, 0, 0, 0, 0);
            if (CALL(BRK, old + 5000, 0, 0, 0) != old + 5000) return 1;
            ((volatile char *)old)[4999] = 1;
            char *page = (char *)CALL(MMAP, 0, 8192, 3, 0x22);
            if ((long)page < 0) return 2;
            for (int i = 0; i < 8192; i++) if (page[i] != 0) return 3;
            page[4096] = 7;
            if (CALL(MPROTECT, page, 4096, 1, 0) != 0) return 4;
            if (CALL(READ, 0, page, 1, 0) != -14 && CALL(READ, 99, page, 1, 0) != -9) return 5;
            if (CALL(MUNMAP, page, 4096, 0, 0) != 0) return 6;
            if (page[4096] != 7) return 7;
            if (CALL(WRITE, 1, page, 1, 0) != -14) return 8;
            if (CALL(9999, 0, 0, 0, 0) != -38) return 9;
            return 0;
        }""")
    assert run(program, translate=translate).outcome is Outcome.SHUTDOWN


@pytest.mark.parametrize(
    ("body", "signal"),
    [
        ("*(volatile int *)0 = 1;", "SIGSEGV"),
        ("*(volatile int *)&call = 1;", "SIGSEGV"),
        ("return *(volatile char *)0x4000000000;", "SIGSEGV"),
        ("return *(volatile char *)-1;", "SIGSEGV"),
        ('__asm__ volatile("unimp");', "SIGILL"),
        ('__asm__ volatile("csrw satp, zero");', "SIGILL"),
        ('__asm__ volatile("ebreak");', "SIGTRAP"),
        ("((void (*)(void))stack)();", "SIGSEGV"),
        ("long *p = 0; for (;;) p = (long *)CALL(MMAP, 0, 1 << 20, 3, 0x22), p[0] = 1, p[131071] = 2;", "SIGSEGV"),
    ],
)
def test_a_program_that_errs_ends_as_by_its_signal(build: Build, translate: bool, body: str, signal: str) -> None:
    result = run(build(f"long start(long *stack) {{ {body} return 0; }}"), translate=translate)
    assert result.outcome is Outcome.CRASHED, result
    assert result.detail.startswith(signal), result


def test_code_written_at_run_time_is_executed_and_followed(build: Build, translate: bool) -> None:
    program = build("""
        long start(long *stack)
        {
            unsigned *code = (unsigned *)CALL(MMAP, 0, 4096, 7, 0x22);
            long sum = 0;
            for (unsigned value = 1; value < 40; value++) {
                code[0] = 0x00000513 | value << 20; /* li a0, value */
                code[1] = 0x00008067;               /* ret */
                __asm__ volatile("fence.i");
                sum += ((long (*)(void))code)();
            }
            if (sum != 780) return 1;
            CALL(MUNMAP, code, 4096, 0, 0);
            if ((long)CALL(MMAP, code, 4096, 7, 0x32) != (long)code) return 2;
            return ((long (*)(void))code)() == 0; /* zeros are no instruction */
        }""")
    result = run(program, translate=translate)
    assert result.detail.startswith("SIGILL"), result


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        pytest.param("CALL(MPROTECT, page, 4096, 1, 0);", Outcome.CRASHED, id="may not be stored to any more"),
        pytest.param("CALL(MUNMAP, page, 4096, 0, 0);", Outcome.CRASHED, id="is gone"),
        pytest.param("CALL(MUNMAP, page, 4096, 0, 0), CALL(MMAP, page, 4096, 3, 0x32);", Outcome.SHUTDOWN, id="is new"),
        pytest.param("CALL(MPROTECT, page, 4096, 3, 0);", Outcome.EXITED, id="is the same"),
    ],
)
def test_a_load_and_a_store_that_were_there_before_find_that_a_page(
    build: Build, translate: bool, change: str, outcome: Outcome
) -> None:
    program = build(f"""
        static __attribute__((noinline)) long swap(volatile long *at, long value)
        {{
            long old = *at;
            *at = value;
            return old;
        }}
        long start(long *stack)
        {{
            long *page = (long *)CALL(MMAP, 0, 4096, 3, 0x22);
            for (long i = 0; i < 100; i++) if (swap(page, i + 1) != i) return 1;
            {change}
            return swap(page, 7);
        }}""")
    result = run(program, translate=translate)
    assert result.outcome is outcome, result
    assert result.code in (None, 0, 100, 128 + 11)


def test_files_are_those_below_the_root_whatever_the_path_says(
    build: Build, translate: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "inside").write_text("inside\n")
    (root / "link").symlink_to("/../secret")
    (root / "absolute").symlink_to("/inside")
    program = build("""
        static void show(const char *path)
        {
            char text[64];
            long file = CALL(OPENAT, HERE, path, 0, 0);
            long got = file < 0 ? file : CALL(READ, file, text, 64, 0);
            if (got > 0) CALL(WRITE, 1, text, got, 0); else say(got == -2 ? "none\\n" : "refused\\n");
        }
        long start(long *stack)
        {
            for (long i = 1; i < stack[0]; i++) show(((char **)(stack + 1))[i]);
            if (CALL(MKDIRAT, HERE, "/new", 0755, 0)) return 1;
            long file = CALL(OPENAT, HERE, "new/../new/file", 0101, 0644);
            if (file < 0 || CALL(WRITE, file, "x", 1, 0) != 1) return 2;
            return CALL(UNLINKAT, HERE, "/../../inside", 0, 0) != 0;
        }""")
    paths = ("inside", "../secret", "/../secret", "link", "absolute", "/proc/self/environ")
    result = run(program, *paths, translate=translate, root=root)
    assert result.outcome is Outcome.SHUTDOWN, result
    assert capfd.readouterr().out == "inside\n" + "none\n" * 3 + "inside\n" + "none\n"
    assert (root / "new" / "file").read_text() == "x"
    assert (tmp_path / "secret").exists()
    assert not (root / "inside").exists()


def test_a_directory_is_listed_whole_each_time_it_is_opened_and_costs_no_descriptor(
    build: Build, translate: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).touch()
    program = build("""
        long start(long *stack)
        {
            char entries[40];
            long first = CALL(OPENAT, HERE, "/", 0200000, 0);
            if (CALL(61, first, entries, 40, 0) <= 0 || CALL(CLOSE, first, 0, 0, 0)) return 1; /* left halfway */
            for (int round = 0; round < 2; round++) {
                long directory = CALL(OPENAT, HERE, "/", 0200000, 0), got;
                if (directory != first) return 2;
                while ((got = CALL(61, directory, entries, 40, 0)) > 0) say(entries + 19), say(" ");
                if (got < 0 || CALL(CLOSE, directory, 0, 0, 0)) return 3;
            }
            return 0;
        }""")
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert run(program, translate=translate, root=tmp_path).outcome is Outcome.SHUTDOWN
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert sorted(capfd.readouterr().out.split()) == sorted(["one", "two", "three"] * 2)


def test_without_a_root_there_are_no_files(build: Build, translate: bool) -> None:
    program = build('long start(long *stack) { return CALL(OPENAT, HERE, "/etc/passwd", 0, 0) != -2; }')
    assert run(program, translate=translate).outcome is Outcome.SHUTDOWN


def test_a_program_that_does_not_end_is_ended_at_the_deadline(build: Build, translate: bool) -> None:
    with Process(build("long start(long *stack) { for (;;); }"), translate=translate, memory=16 << 20) as process:
        assert process.run(timeout=0.2).outcome is Outcome.DEADLINE


def test_what_is_no_program_of_this_machine_is_refused(tmp_path: Path) -> None:
    native = shutil.which("true")
    assert native is not None
    with pytest.raises(ImageError, match="another machine"):
        Process(native)
    (tmp_path / "text").write_text("#!/bin/sh\n")
    with pytest.raises(ImageError):
        Process(tmp_path / "text")


def test_unknown_system_calls_are_counted(build: Build, translate: bool) -> None:
    program = build("long start(long *stack) { return CALL(9999, 0, 0, 0, 0) != -38; }")
    with Process(program, translate=translate, memory=16 << 20) as process:
        assert process.run(timeout=60).outcome is Outcome.SHUTDOWN
        assert dict(process.unknown.items()) == {"9999": 1}
