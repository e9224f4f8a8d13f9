"""The guests as paravirtual domains of our own hypervisor: the same kernel, the same behaviour, another layer below."""

from __future__ import annotations

import json
from typing import Any

import pytest

from guest_os import BuildError, guests, image, native
from minivmm.outcome import Outcome, RunResult
from minivmm.xen.machine import XenMachine
from tests.guest_os.machines import session

pytestmark = pytest.mark.kvm

DEADLINE = 120.0  # seconds; nothing here needs it, a loaded machine may
DOMAIN_HAS_NONE = {
    "portin": "unsupported: a paravirtual domain has no I/O ports",
    **dict.fromkeys(("mmio", "blk-seq", "blk-rand"), "unsupported: a paravirtual domain has no memory-mapped device"),
}


def run(name: str, cmdline: str = "", *, text: bytes = b"", timeout: float = DEADLINE, **options: Any) -> RunResult:
    with XenMachine(image(name, "xen"), cmdline=cmdline, **options) as machine:
        machine.start(timeout=timeout)
        if text:
            machine.send(text)
        return machine.wait()


def objects(result: RunResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.console.splitlines() if line.startswith(b"{")]


def test_every_guest_but_those_that_drive_virtio_has_an_image_for_xen() -> None:
    assert {guest.name for guest in guests().values() if "xen" not in guest.platforms} == {"drivers", "rings"}
    assert image("hello", "xen") != image("hello")
    for name, platform in (("rings", "xen"), ("hello", "mars")):
        with pytest.raises(BuildError, match="no guest is called"):
            image(name, platform)


@pytest.mark.svm_smoke
def test_hello_tells_that_it_is_a_domain() -> None:
    result = run("hello", "one two=3", memory=32 << 20)
    lines = result.console.decode().splitlines()
    assert result.outcome is Outcome.SHUTDOWN, result
    assert lines[0].startswith("Hello from vtk")
    assert lines[1:] == ["boot protocol: xen-pv", "memory: 32768 KiB in 1 ranges", "command line: one two=3"]


def test_a_line_of_output_costs_one_hypercall() -> None:
    assert run("hello").exits["event_channel_op"] == 4


@pytest.mark.svm_smoke
def test_the_kernel_passes_its_own_checks() -> None:
    result = run("selftest")
    assert b'"ok":false' not in result.console, result
    assert objects(result)[-1] == {"selftest": "passed", "failed": 0}, result
    assert len(objects(result)) > 40
    assert result.outcome is Outcome.SHUTDOWN


def expected_cr_checksum() -> str:
    """The cr workload in Python: four times the sum of 1 to 8, folded (include/workload.h)."""
    product = (4 * 36 + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    return f"{product ^ product >> 29:016x}"


@pytest.mark.svm_smoke
def test_every_workload_computes_what_it_computes_as_an_ordinary_process() -> None:
    with session([str(native())]) as process:
        names = process.ready["workloads"]
        expected = {name: str(process.run(name, 1).get("checksum")) for name in names}
        process.quit()
    expected["cr"] = expected_cr_checksum()
    text = "".join(f"run {name} 1\n" for name in names).encode() + b"quit\n"
    result = run("bench", text=text, timeout=4 * DEADLINE)
    assert result.outcome is Outcome.SHUTDOWN, result
    found = {
        line.get("end") or line["workload"]: line.get("checksum") or line["error"]
        for line in objects(result)
        if "end" in line or "error" in line
    }
    assert found == expected | DOMAIN_HAS_NONE


def test_a_batch_of_page_table_entries_is_one_hypercall() -> None:
    result = run("bench", text=b"run ptebatch 10\nquit\n")
    assert '"ops":1280' in result.console.decode()  # 20 lists of 64
    assert result.exits["multicall"] == 1 + 2 + 20  # the start of day, the warm-up, the batches


@pytest.mark.parametrize(("cmdline", "code"), [("code=7", 7), ("code=0x10", 16), ("", 0)])
def test_the_exit_code_is_the_domains(cmdline: str, code: int) -> None:
    result = run("exit", cmdline)
    assert (result.outcome, result.code) == ((Outcome.EXITED, code) if code else (Outcome.SHUTDOWN, None))


def test_a_panic_shows_the_registers_and_ends_the_domain() -> None:
    result = run("panic")
    text = result.console.decode()
    assert result.outcome is Outcome.CRASHED
    assert "panic: #PF page fault in kernel code" in text
    for register in ("rax", "r15", "rip", "rflags", "cr2 00007ead00000000", "cr3", "vector 14", "stack:"):
        assert register in text


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("reset", Outcome.RESET),
        ("triplefault", Outcome.CRASHED),  # Xen ends a domain that has no stack for an exception
        ("halt", Outcome.HALTED),
        ("wild", Outcome.CRASHED),  # memory a domain does not have, it has not mapped
    ],
)
def test_each_way_to_end_is_its_own_outcome(name: str, outcome: Outcome) -> None:
    assert run(name).outcome is outcome


def test_user_checks_pass() -> None:
    result = run("user")
    assert objects(result)
    assert all(check["ok"] for check in objects(result))
    assert result.outcome is Outcome.SHUTDOWN


def test_the_timer_ticks() -> None:
    assert objects(run("timer", "ticks=5")) == [{"ticks": 5}]


@pytest.mark.svm_smoke
def test_every_processor_comes_up() -> None:
    result = run("smp", "cpus=2", cpus=2)
    assert (result.console, result.outcome) == (b'{"cpus":2}\n', Outcome.SHUTDOWN)


def test_echo_repeats_lines_until_quit() -> None:
    long = b"x" * 200
    result = run("echo", text=b"one\ntwo words\n" + b"\n".join([long] * 20) + b"\nquit\n")  # more than the ring holds
    assert result.console.splitlines() == [b"echo: type lines; quit ends", b"one", b"two words", *[long] * 20]
    assert result.outcome is Outcome.SHUTDOWN


@pytest.mark.parametrize(("name", "cmdline"), [("spin", ""), ("spin", "user=1"), ("flood", "")])
def test_a_guest_that_never_ends_meets_the_deadline(name: str, cmdline: str) -> None:
    assert run(name, cmdline, timeout=0.5).outcome is Outcome.DEADLINE


def test_too_little_memory_is_an_error_and_not_the_end() -> None:
    result = run("bench", text=b"run memory 1\nrun cpu 1\nquit\n", memory=8 << 20)
    assert {"error": "no memory for 13 MiB", "workload": "memory"} in objects(result)
    assert result.outcome is Outcome.SHUTDOWN


@pytest.mark.parametrize("memory", [128 << 20, 700 << 20])
def test_all_memory_of_a_large_domain_can_be_used(memory: int) -> None:
    result = run("bench", text=b"run memory 1\nquit\n", memory=memory)
    assert objects(result)[-1]["end"] == "memory", result


def test_the_layer_compiled_by_gcc_passes_the_same_checks(gcc_images: dict[str, Any]) -> None:
    with XenMachine(gcc_images["selftest.xen"]) as machine:
        result = machine.run(timeout=DEADLINE)
    assert objects(result)[-1] == {"selftest": "passed", "failed": 0}, result
