"""The workloads do the same work, and the protocol is the same, natively and in the tiny kernel."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from guest_os import image, native, write_disk
from tests.guest_os.machines import disk_arguments, qemu, session

NAMES = [
    *("cpu", "memory", "call", "syscall", "divzero", "pgfault", "ptemod", "ptebatch", "cr", "portin", "mmio"),
    *("ctxswitch", "irq", "blk-seq", "blk-rand", "console"),
]
PROCESS_HAS_NONE = {"cr", "portin", "mmio"}
MASK = (1 << 64) - 1


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk") / "disk.img"
    write_disk(path, 3 << 20)
    return path


def bench(accel: str, disk: Path) -> list[str]:
    return qemu(accel, image("bench"), extra=disk_arguments(disk, read_only=True))


def checksums(command: list[str]) -> dict[str, str]:
    """The checksum of each workload over three batches, or the error."""
    found = {}
    with session(command) as place:
        assert place.ready == {"ready": "bench", "workloads": NAMES}
        for name in NAMES:
            end = place.run(name, 3)
            found[name] = str(end.get("checksum") or end["error"])
        place.quit()
    return found


@pytest.fixture(scope="module")
def native_checksums(disk: Path) -> dict[str, str]:
    return checksums([str(native()), "--disk", str(disk)])


def expected_cpu_checksum() -> str:
    """The cpu workload in Python: workloads/cpu.c computes the same."""
    limit, size = 8192, 24
    primes = [n for n in range(2, limit) if all(n % d for d in range(2, int(n**0.5) + 1))]
    a = [[31 * i + 17 * j + 1 for j in range(size)] for i in range(size)]
    b = [[(13 * i) ^ (7 * j) for j in range(size)] for i in range(size)]
    folded = 0
    for i in range(size):
        for j in range(size):
            element = sum(a[i][k] * b[k][j] for k in range(size)) & MASK
            folded = ((folded ^ element) + 1) * 0x9E3779B97F4A7C15 & MASK
            folded ^= folded >> 29
    message = bytes((7 * i + 3) & 0xFF for i in range(1024)) + struct.pack("<QQ", sum(primes), folded)
    return hashlib.sha256(message).hexdigest()[:16]


def test_the_cpu_checksum_is_what_python_computes(native_checksums: dict[str, str]) -> None:
    assert native_checksums["cpu"] == expected_cpu_checksum()


def test_a_process_says_what_it_cannot_have(native_checksums: dict[str, str]) -> None:
    for name in NAMES:
        assert native_checksums[name].startswith("unsupported: ") == (name in PROCESS_HAS_NONE), name


@pytest.mark.qemu
@pytest.mark.parametrize("accel", ["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
def test_every_checksum_agrees_with_the_native_one(accel: str, disk: Path, native_checksums: dict[str, str]) -> None:
    found = checksums(bench(accel, disk))
    assert not [name for name, checksum in found.items() if len(checksum) != 16]
    assert {name: found[name] for name in NAMES if name not in PROCESS_HAS_NONE} == {
        name: checksum for name, checksum in native_checksums.items() if name not in PROCESS_HAS_NONE
    }


@pytest.mark.qemu
def test_a_guest_compiled_by_gcc_gives_the_same_checksums(
    gcc_images: dict[str, Path], disk: Path, native_checksums: dict[str, str]
) -> None:
    guest = checksums(qemu("tcg", gcc_images["bench"], extra=disk_arguments(disk, read_only=True)))
    process = checksums([str(gcc_images["native"]), "--disk", str(disk)])
    assert process == native_checksums
    assert {name: guest[name] for name in NAMES if name not in PROCESS_HAS_NONE} == {
        name: checksum for name, checksum in native_checksums.items() if name not in PROCESS_HAS_NONE
    }


def test_operations_are_batches_times_those_of_one() -> None:
    with session([str(native())]) as place:
        one = place.run("syscall", 1)["ops"]
        assert one > 0
        assert place.run("syscall", 0)["ops"] == 0
        assert place.run("syscall", 7)["ops"] == 7 * one
        assert place.run("syscall", 0)["checksum"] == place.run("syscall", 7)["checksum"]


MALFORMED = [
    ("run", {"error": "usage: run NAME BATCHES", "workload": ""}),
    ("run cpu", {"error": "usage: run NAME BATCHES", "workload": "cpu"}),
    ("run cpu x", {"error": "usage: run NAME BATCHES", "workload": "cpu"}),
    ("run cpu -1", {"error": "usage: run NAME BATCHES", "workload": "cpu"}),
    ("run cpu 1 2", {"error": "usage: run NAME BATCHES", "workload": "cpu"}),
    ("run cpu 99999999999999999999", {"error": "usage: run NAME BATCHES", "workload": "cpu"}),
    ("run nonesuch 1", {"error": "no such workload", "workload": "nonesuch"}),
    ('run "\\ 1', {"error": "no such workload", "workload": ""}),
    ("x" * 5000, {"error": "unknown command: run NAME BATCHES, or quit", "workload": ""}),
    ("run " + "c" * 100 + " 1", {"error": "no such workload", "workload": "c" * 100}),
]


def _answers_malformed_commands(command: list[str]) -> None:
    with session(command) as place:
        for line, answer in MALFORMED:
            place.send(line)
            assert place.receive() == answer, line
        place.send("")
        assert "checksum" in place.run("cpu", 1)


def test_native_answers_a_malformed_command_and_goes_on() -> None:
    _answers_malformed_commands([str(native())])


@pytest.mark.qemu
def test_bench_answers_a_malformed_command_and_goes_on() -> None:
    _answers_malformed_commands(qemu("tcg", image("bench")))


@pytest.mark.qemu
def test_bench_without_devices_says_what_is_missing() -> None:
    with session(qemu("tcg", image("bench"))) as place:
        assert place.run("blk-seq", 1) == {"error": "no virtio-blk device that works", "workload": "blk-seq"}
        assert place.run("mmio", 1)["error"] == "no virtio-mmio device on the command line"
        assert place.quit() == 1


@pytest.mark.qemu
def test_too_little_memory_is_an_error_and_not_the_end() -> None:
    with session(qemu("tcg", image("bench"), memory=8)) as place:
        assert place.run("memory", 1) == {"error": "no memory for 13 MiB", "workload": "memory"}
        assert "checksum" in place.run("cpu", 1)


def test_a_wrong_disk_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(2 << 20))
    with session([str(native()), "--disk", str(tmp_path / "disk")]) as place:
        wrong = place.run("blk-rand", 3)
    with session([str(native()), "--disk", str(tmp_path / "none")]) as place:
        assert place.run("blk-rand", 3)["error"] == "the disk cannot be opened"
    write_disk(tmp_path / "disk", 2 << 20)
    with session([str(native()), "--disk", str(tmp_path / "disk")]) as place:
        right = place.run("blk-rand", 3)
    assert "error" in wrong or wrong["checksum"] != right["checksum"]


def test_native_ends_when_its_input_does() -> None:
    with session([str(native())]) as place:
        place.run("ctxswitch", 1)
        assert place.quit() == 0
