"""The RISC-V machine's life: every way it ends, its devices, and guests that mean harm."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from minivmm.emulator import virt
from minivmm.emulator.assembly import program
from minivmm.emulator.machine import INTERPRET, TRANSLATE, RiscvMachine
from minivmm.emulator.physical import RAM_BASE
from minivmm.emulator.traps import Cause
from minivmm.errors import ConfigError, ImageError
from minivmm.outcome import Outcome
from minivmm.virtio.block import Disk
from tests.minivmm.emulator import qemu
from tests.minivmm.emulator.guests import POWER_OFF, compile_c, exit_with, write_raw
from tests.minivmm.images import elf64

Write = Callable[[str], Path]
SPIN = "jal zero,0x80000000"


@pytest.fixture
def guest(tmp_path: Path) -> Write:
    """Makes a guest of a few lines."""
    return lambda source: write_raw(tmp_path, source)


@pytest.fixture
def compiled(tmp_path: Path) -> Write:
    """Compiles one of the C guests."""
    sources = Path(__file__).parent / "c"
    (tmp_path / "board.h").write_text((sources / "board.h").read_text())
    return lambda name: compile_c(tmp_path, (sources / name).read_text())


# --- ways to end -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("source", "outcome", "status"),
    [
        pytest.param(POWER_OFF, Outcome.SHUTDOWN, 0, id="power-off"),
        pytest.param("addi a0,zero,7\n" + exit_with("a0"), Outcome.EXITED, 7, id="exit 7"),
        pytest.param("addi a0,zero,0\n" + exit_with("a0"), Outcome.SHUTDOWN, 0, id="exit 0"),
        pytest.param(POWER_OFF.replace("0x5\n", "0x7\n").replace("0x555", "0x777"), Outcome.RESET, 21, id="reset"),
        pytest.param("wfi", Outcome.HALTED, 20, id="wfi with no interrupt enabled"),
        pytest.param(".word 0", Outcome.TRIPLE_FAULT, 23, id="a trap without a handler"),
        pytest.param("jalr zero,0(zero)", Outcome.TRIPLE_FAULT, 23, id="a jump to nowhere"),
    ],
)
@pytest.mark.parametrize("accelerator", [INTERPRET, TRANSLATE])
def test_every_way_a_guest_ends_itself_is_its_own_outcome(
    guest: Write, source: str, outcome: Outcome, status: int, accelerator: str
) -> None:
    with RiscvMachine(guest(source), memory=4 << 20, accelerator=accelerator) as machine:
        result = machine.run(timeout=60)
    assert (result.outcome, result.exit_status) == (outcome, status), result.detail


def test_the_deadline_ends_a_guest_that_never_does_and_shows_where_it_was(guest: Write) -> None:
    with RiscvMachine(guest(SPIN), memory=4 << 20) as machine:
        result = machine.run(timeout=0.1)
    assert result.outcome is Outcome.DEADLINE
    assert result.registers["pc"] == RAM_BASE
    assert result.exits["instructions"] > 0


def test_a_guest_of_nothing_but_traps_meets_its_deadline_too(guest: Write) -> None:
    forever = "auipc t0,0\naddi t0,t0,16\ncsrrw zero,mtvec,t0\necall\naddi a0,a0,1\necall"
    with RiscvMachine(guest(forever), memory=4 << 20) as machine:
        result = machine.run(timeout=0.1)
    assert result.outcome is Outcome.DEADLINE
    assert result.registers["mcause"] == Cause.ECALL_FROM_M


@pytest.mark.parametrize("source", [SPIN, "csrrwi zero,mie,8\nwfi"])
def test_stop_from_another_thread_ends_the_run_also_of_an_idle_guest(guest: Write, source: str) -> None:
    with RiscvMachine(guest(source), memory=4 << 20) as machine:
        machine.start(timeout=60)
        threading.Thread(target=machine.stop).start()
        assert machine.wait().outcome is Outcome.INTERRUPTED


def test_ctrl_c_in_the_waiting_thread_is_an_outcome_and_not_an_exception(guest: Write) -> None:
    def interrupt(_: bytes) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    source = "lui t0,0x10000\nsb t0,0(t0)\njal zero,0x80000008"
    with RiscvMachine(guest(source), memory=4 << 20, console=interrupt) as machine:
        assert machine.run(timeout=60).outcome is Outcome.INTERRUPTED


def test_a_console_callback_that_raises_ends_the_run_as_a_host_error(guest: Write) -> None:
    def refuse(_: bytes) -> None:
        raise BrokenPipeError(32, "no room")

    with RiscvMachine(guest("lui t0,0x10000\nsb t0,0(t0)"), memory=4 << 20, console=refuse) as machine:
        result = machine.run(timeout=60)
    assert result.outcome is Outcome.HOST_ERROR
    assert "no room" in result.detail


def test_closing_a_running_machine_ends_it_and_a_machine_runs_once(guest: Write) -> None:
    machine = RiscvMachine(guest(SPIN), memory=4 << 20)
    machine.start(timeout=60)
    with pytest.raises(ConfigError, match="has run already"):
        machine.start()
    machine.close()
    machine.close()
    assert machine.wait().outcome is Outcome.INTERRUPTED


def test_two_runs_on_the_instruction_clock_are_the_same_run(guest: Write) -> None:
    source = "csrrs a0,time,zero\nadd a1,a1,a0\naddi a2,a2,1\naddi a3,zero,1000\nblt a2,a3,0x80000000\n" + POWER_OFF
    runs = []
    for _ in range(2):
        with RiscvMachine(guest(source), memory=4 << 20, clock="instructions") as machine:
            machine.run(timeout=60)
            runs.append((machine.registers, machine.figures.instructions))
    assert runs[0] == runs[1]


# --- images ----------------------------------------------------------------------------------------------------------
def test_images_that_cannot_be_loaded_say_why(tmp_path: Path) -> None:
    x86, elf32, short, huge = (tmp_path / name for name in ("x86", "elf32", "short", "huge"))
    x86.write_bytes(elf64(b"\x90"))
    header = bytearray(elf64(b"\x13\0\0\0", entry=RAM_BASE))
    header[18:20] = (243).to_bytes(2, "little")
    short.write_bytes(header[:100])
    huge.write_bytes(bytes(4 << 20))
    elf32.write_bytes(b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + b"\x02\0\xf3\0" + bytes(100))
    for path, why in (
        (x86, "e_machine 62, RISC-V is 243"),
        (short, "truncated"),
        (huge, "does not fit"),
        (elf32, "headers"),
    ):
        with pytest.raises(ImageError, match=why):
            RiscvMachine(path, memory=4 << 20)
    low = tmp_path / "low"
    low.write_bytes(header)
    with pytest.raises(ImageError, match="overlaps"):
        RiscvMachine(low, memory=4 << 20)


def test_more_disks_than_slots_are_refused(guest: Write, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(512))
    image = guest(SPIN)
    with pytest.raises(ConfigError, match="8 virtio devices"):
        RiscvMachine(image, disks=[Disk(disk, read_only=True)] * 9)


def test_a_guest_finds_the_device_tree_where_a1_says(guest: Write) -> None:
    source = "addi s0,a1,0\nlwu a0,0(s0)\n" + POWER_OFF
    with RiscvMachine(guest(source), memory=4 << 20) as machine:
        machine.run(timeout=60)
        assert machine.registers["a0"] == 0xEDFE0DD0  # big-endian 0xd00dfeed
        assert machine.registers["s0"] % 8 == 0


@pytest.mark.skipif(
    shutil.which("dtc") is None, reason="dtc is not on PATH (try: sudo apt install device-tree-compiler)"
)
def test_the_device_tree_is_one_for_other_peoples_tools(tmp_path: Path) -> None:
    blob = tmp_path / "virt.dtb"
    blob.write_bytes(virt.device_tree(64 << 20, "root=/dev/vda quiet"))
    done = subprocess.run(
        ["dtc", "-I", "dtb", "-O", "dts", blob], capture_output=True, text=True, check=True, timeout=60
    )
    assert not done.stderr
    assert 'bootargs = "root=/dev/vda quiet";' in done.stdout
    assert re.search(r"memory@80000000 {[^}]*reg = <0x00 0x80000000 0x00 0x4000000>;", done.stdout)
    assert done.stdout.count('compatible = "virtio,mmio";') == virt.VIRTIO_SLOTS
    assert re.search(r"serial@10000000 {[^}]*interrupts = <0x0a>;", done.stdout)


# --- devices ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("clock", ["host", "instructions"])
def test_the_timer_wakes_a_sleeping_hart(compiled: Write, clock: str) -> None:
    with RiscvMachine(compiled("timer.c"), memory=4 << 20, clock=clock) as machine:
        result = machine.run(timeout=60)
    assert (result.outcome, result.console) == (Outcome.SHUTDOWN, b"ticks\n"), result.detail


def test_input_wakes_a_sleeping_hart_and_comes_back(compiled: Write) -> None:
    ready = threading.Event()
    with RiscvMachine(compiled("echo.c"), memory=4 << 20, console=lambda _: ready.set()) as machine:
        machine.start(timeout=60)
        assert ready.wait(60)
        machine.send(b"hello, hart\n")
        result = machine.wait()
    assert (result.outcome, result.console) == (Outcome.SHUTDOWN, b"ready\nhello, hart\n"), result.detail
    assert machine.pending_input == 0


def make_disk(directory: Path) -> tuple[Path, bytes]:
    disk = directory / "disk.img"
    sector = random.Random(1).randbytes(512)
    disk.write_bytes(bytes(512) + sector + bytes(512 * 6))
    return disk, sector


def test_a_c_guest_reads_and_writes_a_disk(compiled: Write, tmp_path: Path) -> None:
    disk, sector = make_disk(tmp_path)
    with RiscvMachine(compiled("blk.c"), memory=4 << 20, disks=[Disk(disk)]) as machine:
        result = machine.run(timeout=60)
        faults = list(machine.transports[0].faults)
    assert (result.outcome, result.console, faults) == (Outcome.SHUTDOWN, sector, []), result.detail
    assert disk.read_bytes()[1024:1536] == b"!" + sector[1:]


@pytest.mark.skipif(qemu.QEMU is None, reason=qemu.REASON)
def test_the_same_guests_run_on_qemu(compiled: Write, tmp_path: Path) -> None:
    disk, sector = make_disk(tmp_path)
    assert qemu.run(compiled("timer.c")) == (0, b"ticks\n")
    drive = ("-drive", f"file={disk},format=raw,if=none,id=d", "-global", "virtio-mmio.force-legacy=false")
    device = ("-device", "virtio-blk-device,drive=d,bus=virtio-mmio-bus.0")
    assert qemu.run(compiled("blk.c"), extra=(*drive, *device)) == (0, sector)
    assert disk.read_bytes()[1024:1536] == b"!" + sector[1:]


# --- guests that mean harm -------------------------------------------------------------------------------------------
ENDS = {Outcome.DEADLINE, Outcome.SHUTDOWN, Outcome.EXITED, Outcome.RESET, Outcome.HALTED, Outcome.TRIPLE_FAULT}


def random_guest(rng: random.Random) -> bytes:
    """Random bits, at a place that a trap comes back to with other registers, so that it goes on for long."""
    head = program("auipc t0,0\naddi t0,t0,16\ncsrrw zero,mtvec,t0\njal zero,0x80000020", RAM_BASE)
    # The handler goes to a place that depends on what the registers have become.
    again = program(
        "csrrs t1,mcycle,zero\nslli t1,t1,4\nlui t2,1\naddi t2,t2,-2\nand t1,t1,t2\nadd t1,t1,t0\njalr zero,0(t1)",
        RAM_BASE + 16,
    )
    body = bytearray()
    while len(body) < 8192:
        word = rng.getrandbits(32)
        if rng.randrange(3):  # a load, store, atomic, branch or CSR access rather than anything
            word = word & ~0x7F | rng.choice((0x03, 0x23, 0x2F, 0x63, 0x73, 0x67, 0x6F, 0x13, 0x33))
        body += word.to_bytes(4, "little")
    return head + again + bytes(body)


def harass(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    image = tmp_path / f"{seed}.bin"
    image.write_bytes(random_guest(rng))
    with RiscvMachine(image, memory=1 << 20, clock="instructions") as machine:
        for register in range(1, 32):
            machine.hart.x[register] = rng.choice(
                (RAM_BASE + rng.randrange(1 << 20), virt.UART, 0xC00_0000, rng.getrandbits(64))
            )
        result = machine.run(timeout=0.1)
    assert result.outcome in ENDS, (seed, result.detail)


def test_random_code_never_gets_out(tmp_path: Path) -> None:
    for seed in range(10):
        harass(tmp_path, seed)


@pytest.mark.slow
def test_much_random_code_never_gets_out(tmp_path: Path) -> None:
    for seed in range(100, 400):
        harass(tmp_path, seed)


def test_devices_take_any_access(guest: Write) -> None:
    rng = random.Random(7)
    places = (0x0200_0000, 0x0C00_0000, 0x0C20_0000, virt.UART, virt.VIRTIO, virt.VIRTIO + 0x1000, 0x10_0004)
    with RiscvMachine(guest(SPIN), memory=4 << 20, rng=True) as machine:
        for _ in range(5000):
            address = rng.choice(places) + rng.randrange(0xF00)
            size = rng.choice((1, 2, 3, 4, 5, 8))
            if rng.randrange(2):
                machine.space.write_device(address, size, rng.getrandbits(8 * size))
            else:
                assert 0 <= machine.space.read_device(address, size) < 1 << 8 * size


def test_decoded_code_has_a_bound(guest: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minivmm.emulator.code.MAX_INSTRUCTIONS", 100)
    source = "addi a0,zero,0\n" + "addi a0,a0,1\n" * 5000 + exit_with("a0")
    with RiscvMachine(guest(source), memory=4 << 20) as machine:
        result = machine.run(timeout=60)
    assert result.code == 5000
    assert result.exits["flushed"] > 3


# --- programs of other people ----------------------------------------------------------------------------------------
U_BOOT = Path("/usr/lib/u-boot/qemu-riscv64/u-boot.bin")
OPENSBI = Path("/usr/lib/riscv64-linux-gnu/opensbi/generic/fw_jump.elf")


@pytest.mark.slow
@pytest.mark.skipif(not U_BOOT.exists(), reason=f"{U_BOOT} is not there (try: sudo apt install u-boot-qemu)")
def test_debians_u_boot_comes_to_its_prompt_and_powers_off() -> None:
    seen = bytearray()
    prompts = iter((b"version\n", b"poweroff\n"))

    def converse(data: bytes) -> None:
        seen.extend(data)
        if b"autoboot" in seen and seen.endswith(b": "):
            threading.Thread(target=machine.send, args=(b" ",)).start()
        if seen.endswith(b"=> "):
            threading.Thread(target=machine.send, args=(next(prompts),)).start()

    with RiscvMachine(U_BOOT, memory=128 << 20, console=converse) as machine:
        result = machine.run(timeout=300)
    assert result.outcome is Outcome.SHUTDOWN, seen.decode(errors="replace")
    assert result.console.count(b"U-Boot 20") == 2


@pytest.mark.slow
@pytest.mark.skipif(not OPENSBI.exists(), reason=f"{OPENSBI} is not there (try: sudo apt install opensbi)")
def test_debians_opensbi_finds_the_machine_and_enters_s_mode() -> None:
    def look(data: bytes) -> None:
        if data == b"\n" and b"Boot HART MEDELEG" in bytes(machine._output):
            machine.stop("seen")

    with RiscvMachine(OPENSBI, memory=128 << 20, console=look) as machine:
        console = machine.run(timeout=300).console.decode()
    assert "Platform Reboot Device    : sifive_test" in console
    assert "Boot HART Base ISA        : rv64imafdc" in console
