"""The bindings are linux/kvm.h's, and what fails says what, on what, and why."""

from __future__ import annotations

import ctypes
import errno
import subprocess
import sys
from pathlib import Path

import pytest

from minivmm.errors import KvmDenied, KvmError
from minivmm.kvm import abi
from minivmm.kvm.exit_cost import measure_exit_cost
from minivmm.kvm.ioctl import explain
from minivmm.kvm.system import Kvm

STRUCTURES = [
    *("kvm_userspace_memory_region", "kvm_regs", "kvm_segment", "kvm_dtable", "kvm_sregs", "kvm_cpuid_entry2"),
    *("kvm_mp_state", "kvm_irq_level", "kvm_irqfd", "kvm_ioeventfd", "kvm_pit_config"),
    *("kvm_msr_entry", "kvm_vcpu_events", "kvm_debugregs", "kvm_xsave", "kvm_xcr", "kvm_xcrs"),
]
RUN_FIELDS = {
    "immediate_exit": abi.Run.IMMEDIATE_EXIT,
    "exit_reason": abi.Run.EXIT_REASON,
    "io": abi.Run.IO,
    "io.data_offset": abi.Run.IO_DATA_OFFSET,
    "mmio.phys_addr": abi.Run.MMIO_PHYS_ADDR,
    "mmio.data": abi.Run.MMIO_DATA,
    "mmio.len": abi.Run.MMIO_LEN,
    "mmio.is_write": abi.Run.MMIO_IS_WRITE,
    "fail_entry.hardware_entry_failure_reason": abi.Run.FAIL_ENTRY_REASON,
    "internal.suberror": abi.Run.INTERNAL_SUBERROR,
    "internal.ndata": abi.Run.INTERNAL_NDATA,
    "emulation_failure.flags": abi.Run.EMULATION_FLAGS,
    "emulation_failure.insn_size": abi.Run.EMULATION_INSN_SIZE,
    "emulation_failure.insn_bytes": abi.Run.EMULATION_INSN_BYTES,
    "system_event.type": abi.Run.SYSTEM_EVENT_TYPE,
    "kvm_valid_regs": abi.Run.VALID_REGS,
    "kvm_dirty_regs": abi.Run.DIRTY_REGS,
    "s.regs.regs": abi.Run.SYNC_REGS,
    "s.regs.sregs": abi.Run.SYNC_SREGS,
}


def test_numbers_sizes_and_offsets_are_those_of_the_kernels_header(tmp_path: Path) -> None:
    expected: dict[str, int] = {name: value for value, name in abi.IOCTL_NAMES.items()}
    expected |= {f"KVM_CAP_{cap.name}": cap for cap in abi.Cap}
    expected |= {f"KVM_EXIT_{exit.name}": exit for exit in abi.Exit}
    expected |= {f"KVM_MP_STATE_{state.name}": state for state in abi.MpState}
    expected |= {f"sizeof(struct {name})": ctypes.sizeof(getattr(abi, name)) for name in STRUCTURES}
    expected |= {f"offsetof(struct kvm_run, {field})": offset for field, offset in RUN_FIELDS.items()}
    claims = "".join(
        f'_Static_assert({name} == {int(value)}, "{name} is not {int(value)}");\n' for name, value in expected.items()
    )
    source = tmp_path / "header.c"
    source.write_text(f"#include <linux/kvm.h>\n#include <stddef.h>\n{claims}")
    compiler = [
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-target",
        "x86_64-linux-musl",
        "-c",
        "-o",
        str(tmp_path / "header.o"),
    ]
    checked = subprocess.run([*compiler, str(source)], capture_output=True, text=True, timeout=120, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.usefixtures("ordinary_user")
def test_a_device_this_user_may_not_open_names_the_group_to_join(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(0)
    with pytest.raises(KvmDenied) as caught:
        Kvm(str(device))
    assert "usermod -aG kvm" in caught.value.remedy


@pytest.mark.parametrize(
    ("request_number", "number", "cause"),
    [
        (abi.KVM_CREATE_VM, errno.EBUSY, "another hypervisor"),
        (abi.KVM_CREATE_VM, errno.ENODEV, "virtualization extension is off"),
        (abi.KVM_RUN, errno.EFAULT, "unmapped or protected"),
        (abi.KVM_GET_REGS, errno.EACCES, "may not use /dev/kvm"),
        (abi.KVM_GET_REGS, errno.EDOM, ""),
    ],
)
def test_a_failed_ioctl_says_which_on_what_and_the_likely_cause(request_number: int, number: int, cause: str) -> None:
    error = explain(request_number, number, "vCPU 3")
    assert abi.IOCTL_NAMES[request_number] in error.message
    assert "vCPU 3" in error.message
    assert errno.errorcode[number] in error.message
    assert cause in error.cause
    assert (error.errno, error.ioctl) == (number, abi.IOCTL_NAMES[request_number])


@pytest.mark.kvm
@pytest.mark.svm_smoke
def test_overlapping_slots_are_a_typed_error() -> None:
    from minivmm.memory import GuestMemory

    memory = GuestMemory(2 << 20)
    with Kvm() as kvm:
        vm = kvm.create_vm()
        vm.set_memory_region(0, *memory.regions[0])
        with pytest.raises(KvmError) as caught:
            vm.set_memory_region(1, *memory.regions[0])
        assert caught.value.ioctl == "KVM_SET_USER_MEMORY_REGION"
        assert "overlaps" in caught.value.cause
        vm.close()


@pytest.mark.kvm
@pytest.mark.svm_smoke
def test_pending_io_is_completed_before_registers_are_read() -> None:
    from minivmm.memory import GuestMemory

    memory = GuestMemory(1 << 20)
    memory.write(0x1000, b"\xe6\x80\x90\xf4")  # out 0x80, al; nop; hlt
    with Kvm() as kvm:
        vm = kvm.create_vm()
        vm.set_memory_region(0, *memory.regions[0])
        vcpu = vm.create_vcpu(0)
        sregs = vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        vcpu.set_sregs(sregs)
        vcpu.set_regs(abi.kvm_regs(rip=0x1000, rflags=2))
        assert vcpu.run() is abi.Exit.IO
        vcpu.complete_io()  # on some back ends RIP was past the instruction already, on others only now
        assert vcpu.get_regs().rip == 0x1002
        vcpu.close()
        vm.close()


@pytest.mark.kvm
def test_the_cost_of_an_exit_is_a_plausible_number_of_nanoseconds() -> None:
    assert 100 < measure_exit_cost(exits=200, rounds=3) < 1e7
