"""The real techniques on the real bench program: they start, agree on every checksum, and leave nothing behind."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import guest_os
from minivmm.kvm.closing import wait_until_closed
from minivmm.kvm.system import Kvm
from toolkit import host
from toolkit.cli import invoke
from toolkit.compare import protocol, techniques
from toolkit.compare.results import TOTAL, Report, Status, load
from toolkit.compare.techniques import TECHNIQUES, Bench, machine, wasm
from toolkit.compare.workloads import WORKLOADS

KVM = pytest.mark.kvm
QEMU = pytest.mark.qemu
QEMU_SYSTEM = pytest.mark.skipif(
    shutil.which("qemu-system-riscv64") is None, reason="qemu-system-riscv64 (try: sudo apt install qemu-system-misc)"
)
QEMU_USER = pytest.mark.skipif(
    shutil.which("qemu-riscv64") is None, reason="qemu-riscv64 is not on PATH (try: sudo apt install qemu-user)"
)
SOURCES = Path(guest_os.__file__).parent / "workloads"


@pytest.mark.parametrize(
    "names",
    [
        ["native"],
        pytest.param(["native", "hvm"], marks=KVM),
        pytest.param(["native", "qemu-tcg"], marks=QEMU),
        pytest.param(["hvm", "qemu-kvm"], marks=[KVM, QEMU]),
        ["native", "interpret", "translate"],
        ["native", "wasm"],
        pytest.param(["native", "qemu-system-riscv64"], marks=QEMU_SYSTEM),
        pytest.param(["native", "qemu-riscv64"], marks=QEMU_USER),
    ],
    ids="+".join,
)
def test_a_quick_comparison_agrees_on_every_checksum(names: list[str], tmp_path: Path) -> None:
    wait_until_closed()
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    chosen = [part for name in names for part in ("--technique", name)]
    output = tmp_path / "r.json"

    status = invoke(
        ["compare", "--quick", *chosen, "--workload", "cpu", "--workload", "blk-rand", "--json", str(output)]
    )

    report = load(output)
    assert [(result.reason, result.status) for result in report.results] == [("", Status.OK)] * 2 * len(names)
    assert status == 0
    for workload in ("cpu", "blk-rand"):
        assert len({result.checksum for result in report.results if result.workload == workload}) == 1
    wait_until_closed()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.kvm
def test_a_port_read_under_kvm_is_one_exit(tmp_path: Path) -> None:
    output = tmp_path / "r.json"

    assert invoke(["compare", "--quick", "--technique", "hvm", "--workload", "portin", "--json", str(output)]) == 0

    (result,) = load(output).results
    assert result.exits[TOTAL] == pytest.approx(1, abs=0.2)
    assert result.exits["user_io"] == pytest.approx(1, abs=0.2)


@KVM
def test_a_domain_does_the_same_work_and_has_no_disk_to_do_it_with(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    names = ("native", "paravirt")
    chosen = [part for name in names for part in ("--technique", name)]

    assert invoke(["compare", "--quick", "--samples", "1", *chosen, "--json", str(output)]) == 0

    report = load(output)
    for workload in WORKLOADS:
        native, domain = (report.find(name, workload.name) for name in names)
        assert native is not None
        assert domain is not None
        if workload.name in ("portin", "mmio", "blk-seq", "blk-rand"):
            assert domain.status is Status.UNSUPPORTED
            assert domain.reason.startswith("a paravirtual domain has no ")
        else:
            assert domain.status is Status.OK, f"{workload.name}: {domain.reason}"
            assert native.checksum in (None, domain.checksum)  # a process has no control registers


# What each cannot have by nature, and a word of its reason.
ABSENT = {
    "wasm": {
        **dict.fromkeys(("divzero", "pgfault"), "a trap ends a WebAssembly module"),
        **dict.fromkeys(("ptemod", "ptebatch"), "no page tables"),
        "cr": "no control registers",
        "portin": "no I/O ports",
        "mmio": "no device registers",
        "ctxswitch": "one memory",
        "irq": "nothing interrupts",
    },
    "translate": {"portin": "RISC-V has no I/O ports"},
    "qemu-riscv64": {"cr": "no control registers", "portin": "no I/O ports", "mmio": "no device registers"},
}


@pytest.mark.parametrize("name", ["wasm", "translate", pytest.param("qemu-riscv64", marks=QEMU_USER)])
def test_every_workload_has_the_checksum_of_native_or_says_why_not(name: str, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    chosen = ("--technique", "native", "--technique", name)

    assert invoke(["compare", "--quick", "--samples", "1", *chosen, "--json", str(output)]) == 0

    report = load(output)
    for workload in WORKLOADS:
        native, other = (report.find(technique, workload.name) for technique in ("native", name))
        assert native is not None
        assert other is not None
        if reason := ABSENT[name].get(workload.name):
            assert other.status is Status.UNSUPPORTED
            assert reason in other.reason
        else:
            assert other.status is Status.OK, f"{workload.name}: {other.reason}"
            assert native.checksum in (None, other.checksum)


def measured(workload: str, directory: Path, *names: str) -> Report:
    """A quick comparison of these techniques on one workload."""
    output = directory / "r.json"
    chosen = [part for name in names for part in ("--technique", name)]
    assert invoke(["compare", "--quick", *chosen, "--workload", workload, "--json", str(output)]) == 0
    return load(output)


def test_what_a_system_call_costs_an_emulated_kernel_is_counted(tmp_path: Path) -> None:
    interpreted, translated = measured("syscall", tmp_path, "interpret", "translate").results

    for result in (interpreted, translated):
        assert result.exits["traps"] == pytest.approx(1, abs=0.1)
        assert 20 < result.exits["instructions"] < 100
    assert TOTAL in translated.exits
    assert TOTAL not in interpreted.exits  # an interpreter has nothing to leave


def test_a_device_register_is_one_exit_from_translated_code(tmp_path: Path) -> None:
    (translated,) = measured("mmio", tmp_path, "translate").results

    assert translated.exits[TOTAL] == pytest.approx(1, abs=0.2)


def test_a_program_that_computes_something_else_is_exposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_constant = (0x428A2F98).to_bytes(4, "little")  # of SHA-256 (FIPS 180-4, 4.2.2)
    module = guest_os.native("wasm32").read_bytes()
    assert module.count(first_constant) == 1
    (tmp_path / "wrong.wasm").write_bytes(module.replace(first_constant, bytes(4)))
    monkeypatch.setattr(wasm, "_module", lambda: tmp_path / "wrong.wasm")
    output = tmp_path / "r.json"
    chosen = ("--technique", "native", "--technique", "wasm", "--workload", "cpu", "--workload", "call")

    assert invoke(["compare", "--quick", "--samples", "1", *chosen, "--json", str(output)]) == 1

    report = load(output)
    wrong = report.find("wasm", "cpu")
    right = report.find("wasm", "call")
    assert wrong is not None
    assert right is not None
    assert wrong.status is Status.FAILED
    assert wrong.reason.startswith("wrong checksum: ")
    assert wrong.reason.endswith("where native computed c3e84d4fc62fc3b7")
    assert right.status is Status.OK


def wasm_host(module: Path, directory: Path, seconds: float, commands: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", str(wasm.HOST), str(module), str(directory), str(64 << 20), str(seconds)],
        input=commands,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_module_that_never_ends_is_ended(tmp_path: Path) -> None:
    done = wasm_host(guest_os.native("wasm32"), tmp_path, 0.5, "run cpu 1000000000000\n")

    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == '{"begin":"cpu"}'
    assert done.stderr == "the module was ended: wasm trap: interrupt\n"


def test_a_module_that_gets_too_little_memory_says_so_and_goes_on(tmp_path: Path) -> None:
    commands = "run memory 1\nrun call 1\n"
    command = [sys.executable, "-P", str(wasm.HOST), str(guest_os.native("wasm32")), str(tmp_path), str(8 << 20), "30"]

    done = subprocess.run(command, input=commands, capture_output=True, text=True, timeout=60, check=False)

    assert done.stdout.splitlines()[1] == '{"error":"no memory for 13 MiB","workload":"memory"}'
    assert done.stdout.splitlines()[-1].startswith('{"end":"call"')
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x7fELF no module at all", "the module was ended: "),
        (b"\0asm\1\0\0\0", "this is no WASI command: it exports no function _start\n"),
        (None, "the module cannot be read: No such file or directory\n"),
    ],
    ids=["not WebAssembly", "no _start", "no file"],
)
def test_what_is_no_module_is_told_in_one_line(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "module").write_bytes(content)

    done = wasm_host(tmp_path / "module", tmp_path, 5.0, "")

    assert done.returncode == 1
    assert done.stderr.startswith(words)
    assert len(done.stderr.splitlines()) == 1


@KVM
def test_hypercalls_are_counted_by_name_and_a_batch_is_one(tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    workloads = ("--workload", "ptemod", "--workload", "ptebatch")

    assert invoke(["compare", "--quick", "--technique", "paravirt", *workloads, "--json", str(output)]) == 0

    single, batched = load(output).results
    assert single.exits["hypercall_update_va_mapping"] == pytest.approx(1, abs=0.1)
    assert batched.exits["hypercall_multicall"] == pytest.approx(1 / 64, rel=0.1)
    assert batched.median is not None
    assert single.median is not None
    assert single.median > 2 * batched.median


@pytest.mark.parametrize(
    "name",
    [
        *("native", "wasm", "interpret", "translate"),
        *(pytest.param(name, marks=KVM) for name in ("hvm", "paravirt")),
        pytest.param("qemu-tcg", marks=QEMU),
        pytest.param("qemu-system-riscv64", marks=QEMU_SYSTEM),
        pytest.param("qemu-riscv64", marks=QEMU_USER),
    ],
)
def test_every_workload_of_the_table_is_one_of_the_bench_program(name: str, tmp_path: Path) -> None:
    guest_os.write_disk(tmp_path / "disk", 1 << 20)
    session = techniques.BY_NAME[name].open(Bench(tmp_path / "disk", 64 << 20, 60.0))
    try:
        ready = protocol.read_ready(session, 60.0)
    finally:
        session.close()

    assert sorted(ready) == sorted(workload.name for workload in WORKLOADS)


def test_names_in_the_literature_are_those_of_the_sources() -> None:
    text = "".join(source.read_text() for source in SOURCES.glob("*.c"))
    found = re.findall(r'\.name = "([a-z-]+)",\s*\.nanobenchmark = "([a-z0-9]+)"', text)

    assert sorted(found) == sorted((w.name, w.nanobenchmark) for w in WORKLOADS if w.nanobenchmark)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda technique: technique.name)
def test_what_stands_in_the_way_has_a_mend(
    technique: techniques.Technique, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def cannot_build(*_: object) -> Path:
        raise guest_os.BuildError("no compiler", cause="ziglang is not installed", remedy="pip install 'vtk[guests]'")

    def no_kvm() -> None:
        Kvm(str(tmp_path / "kvm"))

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
    monkeypatch.setattr(host, "CONTAINER_SOCKETS", ())
    monkeypatch.setattr(machine, "open_kvm", no_kvm)
    monkeypatch.setattr(guest_os, "native", cannot_build, raising=False)
    monkeypatch.setattr(guest_os, "image", cannot_build, raising=False)

    obstacle = technique.obstacle()

    assert obstacle is not None
    assert obstacle.reason
    assert obstacle.remedy
    expected = {
        "native": "no compiler",
        "container": "no engine answers",
        "wasm": "no compiler",
        "interpret": "no compiler",
        "translate": "no compiler",
        "qemu-system-riscv64": "qemu-system-riscv64 is not installed",
        "qemu-riscv64": "qemu-riscv64 is not installed",
        "hvm": "kvm",
        "paravirt": "kvm",
        "qemu-kvm": "qemu-system-x86_64",
        "qemu-tcg": "qemu-system-x86_64",
    }
    assert expected[technique.name] in obstacle.reason
