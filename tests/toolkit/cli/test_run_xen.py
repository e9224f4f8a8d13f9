"""`vtk run` on kernels for Xen domains: ours, hand-made ones, and Debian's, which nobody here wrote."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from minivmm.boot.xen_image import XenElfNote
from minivmm.outcome import Outcome
from minivmm.xen.abi import MAX_GUEST_CMDLINE, START_INFO
from tests.minivmm.images import exit_with, print_text
from tests.minivmm.test_bzimage import bz_image
from tests.minivmm.xen.assemble import assemble
from tests.minivmm.xen.kernels import CODE_SIZE, ENTRY, KERNEL, LINUX_LIKE, MACROS, Notes, kernel_bytes
from toolkit.cli import ExitStatus, invoke, run
from toolkit.images import debian_kernel, initramfs
from toolkit.images.debian_package import PackageMissing

LIMIT = 120  # seconds for what takes well under one
CMD_LINE = START_INFO.size - 16 - MAX_GUEST_CMDLINE  # offset of start_info.cmd_line, the third from last

HELLO = """
    hypercall console_io, 0, 6, text
    hypercall sched_op, 2, reason
text:   ascii hello
        db 10
reason: dq 0                ; SHUTDOWN_poweroff
"""
CRASH = HELLO.replace("reason: dq 0", "reason: dq 3")
SAYS_ITS_COMMAND_LINE = f"""
    lea rdx, [rsi + {CMD_LINE}]
    hypercall console_io, 0, 32, rdx
    hypercall sched_op, 2, reason
reason: dq 0
"""
BOTH_WAYS = {**LINUX_LIKE, XenElfNote.PHYS32_ENTRY: struct.pack("<I", KERNEL)}


def vtk_run(*arguments: str | Path, limit: float = LIMIT) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "toolkit.cli", "run", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False)


def kernel(directory: Path, code: str | bytes, notes: Notes = LINUX_LIKE) -> Path:
    """The file of a kernel for domains."""
    if isinstance(code, str):
        code = assemble(code, ENTRY, {}, MACROS).code
    path = directory / "kernel"
    path.write_bytes(kernel_bytes(notes, code=code.ljust(CODE_SIZE, b"\xf4")))
    return path


@pytest.mark.kvm
def test_a_kernel_made_for_domains_becomes_one_by_itself(tmp_path: Path) -> None:
    done = vtk_run(kernel(tmp_path, HELLO))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")


@pytest.mark.kvm
def test_a_kernel_that_knows_both_ways_becomes_a_domain_when_asked(tmp_path: Path) -> None:
    path = kernel(tmp_path, print_text(b"bye\n") + exit_with(0), BOTH_WAYS)
    assert vtk_run(path).stdout == b"bye\n"
    done = vtk_run(path, "--xen")
    assert done.returncode == Outcome.CRASHED.exit_status  # a domain has no ports, and this one no handler for that
    assert done.stdout == b""


@pytest.mark.kvm
def test_a_guest_of_ours_becomes_a_domain_when_asked() -> None:
    done = vtk_run("hello", "--xen", "--append", "one two", "--stats")
    assert done.returncode == 0
    assert b"xen-pv" in done.stdout
    assert b"command line: one two" in done.stdout
    assert b"hypercalls" in done.stderr
    assert b"  event_channel_op " in done.stderr


@pytest.mark.kvm
@pytest.mark.parametrize("code", [0, 3])
def test_a_domains_exit_code_is_the_exit_status(code: int) -> None:
    assert vtk_run("exit", "--xen", "--append", f"code={code}").returncode == code


@pytest.mark.kvm
def test_a_crash_is_told_with_the_last_hypercalls_and_the_page_tables(tmp_path: Path) -> None:
    path = kernel(tmp_path, CRASH)
    done = vtk_run(path)
    assert done.returncode == Outcome.CRASHED.exit_status
    assert done.stdout == b"hello\n"
    for told in (b"crashed", b"  rip ", b"last hypercalls", b"console_io(0x0, 0x6, ", b"L1["):
        assert told in done.stderr
    shown = vtk_run(path, "--json")
    report = json.loads(shown.stdout)
    assert (report["outcome"], report["platform"], report["accelerator"]) == ("crashed", "xen", "kvm")
    assert report["exits"]["console_io"] == 1
    assert "last hypercalls" in report["dump"]


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("given", "passed"),
    [("", b"console=hvc0"), ("quiet", b"console=hvc0 quiet"), ("quiet console=tty0", b"quiet console=tty0")],
)
def test_linux_is_told_where_its_console_is(tmp_path: Path, given: str, passed: bytes) -> None:
    done = vtk_run(kernel(tmp_path, SAYS_ITS_COMMAND_LINE), "--append", given)
    assert done.stdout.rstrip(b"\0") == passed


@pytest.mark.kvm
def test_another_kernel_gets_the_command_line_given(tmp_path: Path) -> None:
    notes = {**LINUX_LIKE, XenElfNote.GUEST_OS: b"other\0"}
    done = vtk_run(kernel(tmp_path, SAYS_ITS_COMMAND_LINE, notes), "--append", "quiet")
    assert done.stdout.rstrip(b"\0") == b"quiet"


@pytest.mark.kvm
def test_every_frame_can_be_counted_again_after_every_exit(tmp_path: Path) -> None:
    done = vtk_run(kernel(tmp_path, HELLO), "--mem", "8M", "--audit", "1")
    assert (done.returncode, done.stdout) == (0, b"hello\n")


@pytest.mark.kvm
def test_a_bzimage_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "vmlinuz"
    path.write_bytes(bz_image(kernel(tmp_path, HELLO).read_bytes()))
    for _ in range(2):
        assert vtk_run(path, "--xen").stdout == b"hello\n"
    assert len(list((tmp_path / "cache" / "vtk" / "kernels").iterdir())) == 1


# --- its console -----------------------------------------------------------------------------------------------------
def started(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "toolkit.cli", "run", *arguments]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.kvm
def test_piped_input_is_fed_to_the_domain_as_fast_as_it_reads() -> None:
    text = b"".join(b"line %d, so long that the ring of 1 KiB is full after a few\n" % number for number in range(500))
    command = [sys.executable, "-m", "toolkit.cli", "run", "echo", "--xen"]
    done = subprocess.run(command, input=text + b"quit\n", capture_output=True, timeout=LIMIT, check=False)
    assert done.returncode == 0
    assert done.stdout.partition(b"\n")[2] == text


@pytest.mark.kvm
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_domain_that_waits(number: int) -> None:
    with started("echo", "--xen") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"echo")
        process.send_signal(number)
        _, told = process.communicate(timeout=LIMIT)
    assert process.returncode == Outcome.INTERRUPTED.exit_status
    assert f"stopped by {signal.Signals(number).name}" in told.decode()


@pytest.mark.kvm
@pytest.mark.parametrize("guest", ["spin", "flood"])
def test_a_reader_that_never_reads_does_not_keep_a_domain_past_its_deadline(guest: str) -> None:
    with started(guest, "--xen", "--timeout", "0.3") as process:
        assert process.wait(LIMIT) == Outcome.DEADLINE.exit_status


@pytest.mark.kvm
def test_a_reader_that_goes_away_ends_a_domain() -> None:
    with started("flood", "--xen") as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(LIMIT) == ExitStatus.BROKEN_PIPE


# --- what cannot be ----------------------------------------------------------------------------------------------
def refusal(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What `vtk run` says, run here, which must be a refusal."""
    monkeypatch.setattr(run, "_end_with_parent", lambda: None)
    status = invoke(["run", *map(str, arguments)])
    shown, told = capfd.readouterr()
    assert status == ExitStatus.USAGE, told
    assert shown == ""
    assert "Traceback" not in told
    return told


@pytest.mark.parametrize(
    "option",
    [["--disk", "disk.img"], ["--virtio-console"], ["--rng"], ["--boot", "pvh"], ["--accel", "tcg"]],
    ids=lambda option: option[0],
)
def test_what_a_domain_does_not_have_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], option: Sequence[str]
) -> None:
    told = refusal(monkeypatch, capfd, kernel(tmp_path, HELLO), *option)
    assert f"{option[0]}" in told
    assert "cause:" in told
    assert "leave it out" in told


@pytest.mark.parametrize("option", [["--initrd", "initrd"], ["--audit", "1"]], ids=lambda option: option[0])
def test_what_only_a_domain_has_is_refused_for_a_machine(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], option: Sequence[str]
) -> None:
    assert f"--xen {option[0]}" in refusal(monkeypatch, capfd, "hello", *option)


def test_a_bzimage_as_a_machine_is_pointed_to_the_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bz_image(b"\x7fELF"))
    assert "vtk run --xen" in refusal(monkeypatch, capfd, path)


def test_a_guest_that_drives_virtio_is_no_domain(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "not made for Xen domains" in refusal(monkeypatch, capfd, "drivers", "--xen")


@pytest.mark.kvm
@pytest.mark.parametrize(
    "arguments",
    [
        ["--mem", "0"],
        ["--mem", "1M"],
        ["--mem", "999999999999T"],
        ["--cpus", "1000"],
        ["--append", "x" * 100_000],
        ["--append", "a\0b"],
        ["--initrd", "none"],
        ["--initrd", "."],
        ["--initrd", "/dev/zero"],
    ],
    ids=lambda arguments: " ".join(arguments)[:30],
)
def test_a_domain_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: Sequence[str]
) -> None:
    refusal(monkeypatch, capfd, kernel(tmp_path, HELLO), *arguments)


@pytest.mark.kvm
@pytest.mark.parametrize("content", [b"text", b"\x7fELF", bytes(4096)], ids=["text", "magic", "zeros"])
def test_a_file_that_is_no_kernel_for_domains_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], content: bytes
) -> None:
    (tmp_path / "kernel").write_bytes(content)
    refusal(monkeypatch, capfd, tmp_path / "kernel", "--xen")


# --- a kernel nobody here wrote --------------------------------------------------------------------------------------
BOOTS = 10
AUDITED_MEMORY = "128M"
AUDIT_EVERY = 1000  # exits: a boot has some 100,000, and counting all frames of that much memory takes some 50 ms
BOOT_LIMIT = 300.0  # seconds; a boot takes some 10 on a host with nothing else to do
USER_SPACE = "user space of"


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Debian's cloud kernel as it comes, and a RAM disk whose init says which kernel it runs on and powers off."""
    try:
        found = debian_kernel.fetch("cloud-amd64")
        busybox = initramfs.busybox()
    except PackageMissing as error:
        pytest.skip(f"no Debian kernel to be had: {error.message}")
    initrd = tmp_path_factory.mktemp("debian") / "initrd"
    init = f'echo "{USER_SPACE} $(uname -r), $(nproc) CPUs, $(cat /sys/hypervisor/type)"; poweroff -f'
    initrd.write_bytes(initramfs.build(busybox, found, [], init))
    return found.vmlinuz, initrd


def booted(debian: tuple[Path, Path], *options: str) -> str:
    """What its init says. The run must end as a person would wish."""
    vmlinuz, initrd = debian
    done = vtk_run(
        "--xen", vmlinuz, "--initrd", initrd, "--append", "panic=-1", *options, "--timeout", str(BOOT_LIMIT),
        limit=BOOT_LIMIT + LIMIT,
    )  # fmt: skip
    console = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{console[-4000:]}\n{done.stderr.decode()}"
    return next(line for line in console.splitlines() if line.startswith(USER_SPACE))


@pytest.mark.slow
@pytest.mark.kvm
@pytest.mark.parametrize("cpus", [1, 2])
def test_debians_kernel_boots_to_its_user_space(debian: tuple[Path, Path], cpus: int) -> None:
    said = booted(debian, "--cpus", str(cpus))
    assert said == f"{USER_SPACE} {debian[0].name.removeprefix('vmlinuz-')}, {cpus} CPUs, xen"


@pytest.mark.slow
@pytest.mark.kvm
@pytest.mark.parametrize("boot", range(BOOTS))
def test_debians_kernel_boots_ten_times_out_of_ten_with_every_frame_counted_again(
    debian: tuple[Path, Path], boot: int
) -> None:
    every = str(AUDIT_EVERY + boot)  # not after the same exits every time
    assert booted(debian, "--mem", AUDITED_MEMORY, "--audit", every).startswith(USER_SPACE)
