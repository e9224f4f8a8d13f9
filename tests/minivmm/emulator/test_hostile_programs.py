"""Programs that mean harm, on both engines: each ends in an outcome or gets an error, and takes only what is its own.

What every program may rely on is in test_user.py.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from minivmm.boot.elf import FILE_HEADER_64, PROGRAM_HEADER_64, PT_INTERP
from minivmm.emulator.user import memory
from minivmm.emulator.user.process import Process
from minivmm.errors import ImageError
from minivmm.outcome import Outcome, RunResult
from tests.minivmm.emulator.fuzz import write_program
from tests.minivmm.emulator.programs import Build, compile_program

EXIT_WITH_ZERO = bytes.fromhex("13050000 9308d005 73000000")  # li a0,0; li a7,93; ecall
ENTRY = FILE_HEADER_64.size + PROGRAM_HEADER_64.size


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles a program whose `start(stack)` returns its exit status; the same one once."""
    directory = tmp_path_factory.mktemp("hostile")
    return functools.cache(lambda body: compile_program(directory, body))


@pytest.fixture(params=[False, True], ids=["interpret", "translate"])
def translate(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def run(program: Path, *, translate: bool, timeout: float = 60, **options: object) -> RunResult:
    with Process(program, translate=translate, **({"memory": 64 << 20} | options)) as process:  # type: ignore[arg-type]
        return process.run(timeout)


def run_words(directory: Path, *words: int, translate: bool) -> RunResult:
    """These instructions, and then an exit with status 0."""
    code = b"".join(word.to_bytes(4, "little") for word in words) + EXIT_WITH_ZERO
    return run(write_program(directory / "words", code), translate=translate)


# --- instructions -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "word",
    [
        pytest.param(0x00000000, id="all zeros"),
        pytest.param(0xFFFFFFFF, id="all ones, which is longer than 32 bits"),
        pytest.param(0x0000001F, id="a 48-bit instruction"),
        pytest.param(0x00008002, id="c.jr with x0"),
        pytest.param(0x00002001, id="c.addiw with x0"),
        pytest.param(0x0000006B, id="a reserved major opcode"),
        pytest.param(0x02005013 | 1 << 26, id="srli with a reserved bit"),
        pytest.param(0x0000705B, id="custom-2"),
        pytest.param(0x30200073, id="mret"),
        pytest.param(0x12000073, id="sfence.vma"),
        pytest.param(0x10500073, id="wfi"),
        pytest.param(0x3A001073, id="a register of M-mode"),
    ],
)
def test_what_is_no_instruction_of_a_program_ends_it_as_by_sigill(tmp_path: Path, translate: bool, word: int) -> None:
    result = run_words(tmp_path, word, translate=translate)
    assert (result.outcome, result.code) == (Outcome.CRASHED, 128 + 4), result


def test_the_lowest_bit_of_a_jump_does_not_count(tmp_path: Path, translate: bool) -> None:
    auipc_a0, jalr_odd = 0x00000517, 0x00D50067  # jalr zero,13(a0): to 12 behind the auipc
    result = run_words(tmp_path, auipc_a0, jalr_odd, 0, translate=translate)
    assert result.outcome is Outcome.SHUTDOWN, result


@pytest.mark.parametrize("target", [2**38 - 4096, 2**38, 2**63, 2**64 - 2])
def test_a_jump_to_nowhere_ends_it_as_by_sigsegv(build: Build, translate: bool, target: int) -> None:
    result = run(build(f"long start(long *stack) {{ ((void (*)(void)){target}ul)(); return 0; }}"), translate=translate)
    assert (result.outcome, result.code) == (Outcome.CRASHED, 128 + 11), result


def test_recursion_without_end_runs_out_of_stack(build: Build, translate: bool) -> None:
    program = build("""
        static long deeper(volatile char *above)
        {
            volatile char here[32768];
            here[0] = here[32767] = above[0] + 1;
            return deeper(here) + here[0];
        }
        long start(long *stack) { char first = 0; return deeper(&first); }""")
    result = run(program, translate=translate)
    assert (result.outcome, result.code) == (Outcome.CRASHED, 128 + 11), result


def test_instructions_that_overwrite_the_next_one_are_followed_while_they_run(build: Build, translate: bool) -> None:
    program = build("""
        long start(long *stack)
        {
            unsigned *code = (unsigned *)CALL(MMAP, 0, 4096, 7, 0x22), at = 0;
            code[at++] = 0x00a00293; /* li t0, 10 */
            code[at++] = 0x00000517; /* here: auipc a0, 0 */
            code[at++] = 0x00b52623; /* sw a1, 12(a0): what comes next but one */
            code[at++] = 0xfff28293; /* addi t0, t0, -1 */
            code[at++] = 0x00000013; /* nop, until it is overwritten */
            code[at++] = 0x00c586b3; /* add a3, a1, a2: the instruction and 1 in its immediate */
            code[at++] = 0x00068593; /* mv a1, a3 */
            code[at++] = 0xfe0294e3; /* bnez t0, here */
            code[at++] = 0x00070513; /* mv a0, a4 */
            code[at++] = 0x00008067; /* ret */
            register long a1 __asm__("a1") = 0x00070713, a2 __asm__("a2") = 1 << 20, a4 __asm__("a4") = 0;
            register long a0 __asm__("a0");
            __asm__ volatile("fence.i\\n jalr %1" : "=r"(a0), "+r"(code), "+r"(a1), "+r"(a2), "+r"(a4)
                             : : "ra", "t0", "a3", "memory");
            return a0; /* addi a4, a4, 0 .. 9 */
        }""")
    result = run(program, translate=translate)
    assert (result.outcome, result.code) == (Outcome.EXITED, 45), result


# --- memory -----------------------------------------------------------------------------------------------------------
def test_absurd_mappings_are_refused_and_cost_nothing(build: Build, translate: bool) -> None:
    program = build("""
        #define MREMAP 216
        long start(long *stack)
        {
            if (CALL(MMAP, 0, 1ul << 63, 3, 0x22) != -12) return 1;                  /* ENOMEM */
            if (CALL(MMAP, 0, -1ul, 3, 0x22) >= 0) return 2;
            if (CALL(MMAP, 0, 0, 3, 0x22) != -22) return 3;                          /* EINVAL */
            if (CALL(MMAP, 1ul << 38, 4096, 3, 0x32) != -22) return 4;               /* MAP_FIXED beyond the end */
            if (CALL(MMAP, -4096ul, 8192, 3, 0x32) != -22) return 5;
            if (CALL(MMAP, 4097, 4096, 3, 0x32) != -22) return 6;
            if (CALL(MMAP, 0, 4096, 8, 0x22) != -22) return 7;                       /* no such right */
            if (CALL(MMAP, 0, 4096, 3, 2) != -9) return 8;                           /* of file -1: EBADF */
            if (CALL(MUNMAP, -4096ul, 4096, 0, 0) != -22) return 9;
            if (CALL(MPROTECT, 0, 1ul << 40, 7, 0) >= 0) return 10;
            char *page = (char *)CALL(MMAP, 0, 4096, 3, 0x22);
            if (CALL(MREMAP, page, 4096, 1ul << 62, 1) >= 0) return 11;
            if (CALL(MREMAP, page, 1ul << 40, 4096, 1) >= 0) return 12;
            long old = CALL(BRK, 0, 0, 0, 0);
            if (CALL(BRK, -1ul, 0, 0, 0) != old || CALL(BRK, 1ul << 37, 0, 0, 0) < old) return 13;
            if (CALL(BRK, 1, 0, 0, 0) == 1) return 14;
            return 0;
        }""")
    assert run(program, translate=translate).outcome is Outcome.SHUTDOWN


def test_what_is_remapped_keeps_its_contents_and_the_old_place_is_gone(build: Build, translate: bool) -> None:
    program = build("""
        #define MREMAP 216
        long start(long *stack)
        {
            long *old = (long *)CALL(MMAP, 0, 8192, 3, 0x22);
            long *fence = (long *)CALL(MMAP, (char *)old + 8192, 4096, 1, 0x32); /* it cannot grow where it is */
            old[0] = 1, old[1023] = 2;
            long *new = (long *)CALL(MREMAP, old, 8192, 1 << 20, 1);
            if ((long)new < 0 || new == old || new[0] != 1 || new[1023] != 2 || new[1024] != 0) return 1;
            new[131071] = 3;
            if (CALL(READ, 99, old, 1, 0) != -9 || CALL(WRITE, 1, old, 1, 0) != -14) return 2;
            if ((long *)CALL(MREMAP, new, 1 << 20, 4096, 0) != new) return 3;
            if (CALL(MREMAP, new, 4096, 8192, 0) != (long)new) return 4; /* there is room again */
            return new[512] != 0;
        }""")
    result = run(program, translate=translate)
    assert result.outcome is Outcome.SHUTDOWN, result


def test_a_program_cannot_have_mappings_without_end(
    build: Build, translate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "MAX_SEGMENTS", 100)
    program = build("""
        long start(long *stack)
        {
            char *all = (char *)CALL(MMAP, 0, 1ul << 36, 1, 0x22);
            for (long i = 0; i < 1000; i++)
                if (CALL(MPROTECT, all + 8192 * i, 4096, 3, 0) == -12) return i < 40 || i > 60;
            return 2;
        }""")
    assert run(program, translate=translate).outcome is Outcome.SHUTDOWN


# --- system calls -----------------------------------------------------------------------------------------------------
def test_vectors_of_absurd_size_are_refused(build: Build, translate: bool, capfd: pytest.CaptureFixture[str]) -> None:
    program = build("""
        struct { void *base; unsigned long length; } parts[3] = {{"x", 1}, {"y", 1ul << 60}, {(void *)8, 1}};
        long start(long *stack)
        {
            if (CALL(66, 1, parts, 1l << 60, 0) != -22) return 1;   /* writev: EINVAL */
            if (CALL(66, 1, parts, -1, 0) != -22) return 2;
            if (CALL(66, 1, 8, 2, 0) != -14) return 3;              /* EFAULT */
            if (CALL(66, 1, parts, 1, 0) != 1) return 4;
            if (CALL(66, 1, parts + 2, 1, 0) != -14) return 5;
            if (CALL(WRITE, 1, -1ul, 10, 0) != -14) return 6;
            if (CALL(READ, 0, 0, 0, 0) != 0) return 7;
            if (CALL(134, 2, 0, stack, 1ul << 60) != -22) return 8; /* rt_sigaction */
            if (CALL(135, 0, 0, stack, 1ul << 60) != -22) return 9; /* rt_sigprocmask */
            return 0;
        }""")
    assert run(program, translate=translate).outcome is Outcome.SHUTDOWN
    assert capfd.readouterr().out == "x"


def test_what_it_writes_to_files_is_bounded_by_its_quota(build: Build, translate: bool, tmp_path: Path) -> None:
    program = build("""
        static char text[65536];
        long start(long *stack)
        {
            long file = CALL(OPENAT, HERE, "/full", 0101, 0644), got, total = 0;
            if (file < 0) return 1;
            while (total < 100l << 30 && (got = CALL(WRITE, file, text, sizeof text, 0)) > 0) total += got;
            if (got != -28) return 2;                                                    /* ENOSPC */
            if (CALL(68, file, text, 4096, 0) != -28) return 3;                          /* pwrite64 */
            return CALL(MKDIRAT, HERE, "/another", 0755, 0) != -28;
        }""")
    assert run(program, translate=translate, root=tmp_path, quota=1 << 20).outcome is Outcome.SHUTDOWN
    assert (1 << 20) - 8192 <= (tmp_path / "full").stat().st_size <= 1 << 20


def test_the_files_it_is_started_with_are_written_to_and_no_more(build: Build, translate: bool, tmp_path: Path) -> None:
    program = build("""
        long start(long *stack)
        {
            static const long now[4] = {0, 0, 0, 0};
            long given[3], refused = 0;
            given[0] = 1;
            given[1] = call(23, 1, 0, 0, 0, 0, 0);    /* dup */
            given[2] = call(25, 1, 0, 10, 0, 0, 0);   /* fcntl, F_DUPFD */
            call(24, 1, 20, 0, 0, 0, 0);              /* dup3 */
            for (int i = 0; i < 4; i++) {
                long fd = i < 3 ? given[i] : 20;
                refused += call(52, fd, 0, 0, 0, 0, 0) == -1;               /* fchmod: EPERM */
                refused += call(88, fd, 0, (long)now, 0, 0, 0) == -1;       /* utimensat */
                refused += call(55, fd, 0, 0, 0, 0, 0) == -1;               /* fchown */
            }
            long own = call(56, -100, (long)"own", 0101, 0600, 0, 0);
            refused += call(52, own, 0400, 0, 0, 0, 0) == 0;
            refused += call(52, call(23, own, 0, 0, 0, 0, 0), 0440, 0, 0, 0, 0) == 0;
            return refused;
        }""")
    root, given = tmp_path / "root", tmp_path / "given"
    root.mkdir()
    given.write_text("theirs")
    given.chmod(0o644)
    before = given.stat()
    with Process(program, translate=translate, root=root, memory=64 << 20) as process:
        process.files.replace(1, os.open(given, os.O_RDWR))
        result = process.run(60)
    assert result.code == 4 * 3 + 2, result
    after = given.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert (root / "own").stat().st_mode & 0o777 == 0o440


def test_a_reader_that_does_not_read_keeps_nobody_beyond_the_deadline(build: Build, translate: bool) -> None:
    program = build("""
        static char text[65536];
        long start(long *stack) { for (;;) if (CALL(WRITE, 1, text, sizeof text, 0) < 0) return 1; }""")
    reader, writer = os.pipe()
    with Process(program, translate=translate, memory=16 << 20) as process:
        process.files.replace(1, writer)
        assert process.run(timeout=0.3).outcome is Outcome.DEADLINE
    os.close(reader)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("int ends[2]; CALL(59, ends, 0, 0, 0); char c; CALL(READ, ends[0], &c, 1, 0);", id="read"),
        pytest.param("long t[2] = {1l << 40, 0}; CALL(101, t, 0, 0, 0);", id="nanosleep"),
        pytest.param("CALL(73, 0, 0, 0, 0);", id="ppoll without a time"),
        pytest.param('CALL(OPENAT, HERE, "/fifo", 0, 0); for (;;);', id="open of a FIFO that nobody writes to"),
        pytest.param("for (;;) CALL(124, 0, 0, 0, 0);", id="calls without end"),
    ],
)
def test_no_call_lasts_beyond_the_deadline(build: Build, translate: bool, tmp_path: Path, body: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    program = build(f"long start(long *stack) {{ {body} return 0; }}")
    result = run(program, translate=translate, timeout=0.3, root=tmp_path)
    assert result.outcome is Outcome.DEADLINE, result
    assert result.seconds < 30


# --- files that are no programs ---------------------------------------------------------------------------------------
Damage = Callable[[bytearray], None]


def _set(offset: int, form: str, value: int) -> Damage:
    def damage(image: bytearray) -> None:
        struct.pack_into(form, image, offset, value)

    return damage


def _cut(size: int) -> Damage:
    def damage(image: bytearray) -> None:
        del image[size:]

    return damage


PROGRAM_HEADER = FILE_HEADER_64.size


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(_cut(20), "truncated", id="half a header"),
        pytest.param(_cut(FILE_HEADER_64.size + 10), "truncated", id="half a program header"),
        pytest.param(_cut(ENTRY + 4), "truncated", id="half a segment"),
        pytest.param(_set(4, "B", 1), "program", id="32 bits"),
        pytest.param(_set(5, "B", 2), "little-endian", id="big-endian"),
        pytest.param(_set(18, "<H", 62), "another machine", id="of x86-64"),
        pytest.param(_set(16, "<H", 1), "not an executable", id="an object file"),
        pytest.param(_set(PROGRAM_HEADER, "<I", PT_INTERP), "dynamically linked", id="with an interpreter"),
        pytest.param(_set(PROGRAM_HEADER, "<I", 0), "nothing to load", id="without a segment"),
        pytest.param(_set(PROGRAM_HEADER + 16, "<Q", 2**64 - 4096), "does not fit", id="a segment at the end of all"),
        pytest.param(_set(PROGRAM_HEADER + 40, "<Q", 2**63), "does not fit", id="a segment larger than all"),
        pytest.param(_set(PROGRAM_HEADER + 8, "<Q", 2**63), "truncated", id="a segment from beyond the file"),
    ],
)
def test_a_file_that_is_no_such_program_is_refused_with_the_reason(tmp_path: Path, damage: Damage, words: str) -> None:
    path = write_program(tmp_path / "program", EXIT_WITH_ZERO)
    image = bytearray(path.read_bytes())
    damage(image)
    path.write_bytes(image)
    with pytest.raises(ImageError, match=words):
        Process(path, memory=16 << 20)


@pytest.mark.parametrize("kind", [2, 3], ids=["ET_EXEC", "ET_DYN"])
@pytest.mark.parametrize("entry", [0xDEAD_BEEF_0000, 2**64 - 2, 0])
def test_an_entry_where_nothing_is_ends_as_by_sigsegv(tmp_path: Path, translate: bool, kind: int, entry: int) -> None:
    path = write_program(tmp_path / "program", EXIT_WITH_ZERO)
    image = bytearray(path.read_bytes())
    struct.pack_into("<H", image, 16, kind)
    struct.pack_into("<Q", image, 24, entry)
    path.write_bytes(image)
    assert run(path, translate=translate).code == 128 + 11


def test_a_program_that_fills_all_memory_has_none_for_its_arguments(tmp_path: Path) -> None:
    path = write_program(tmp_path / "program", bytes(1 << 20))
    with pytest.raises(ImageError, match="does not fit into memory"):
        Process(path, memory=1 << 20)


def test_arguments_that_are_too_long_are_refused(tmp_path: Path) -> None:
    path = write_program(tmp_path / "program", EXIT_WITH_ZERO)
    with pytest.raises(ImageError, match="too long"):
        Process(path, ["x" * (1 << 20)], memory=16 << 20)
    with pytest.raises(ImageError, match="too long"):
        Process(path, ["x"] * (1 << 20), memory=16 << 20)
