"""The machine's map, QEMU's `-M virt`: addresses, interrupt sources, and the device tree that tells a guest of them."""

from __future__ import annotations

from minivmm.emulator import clint, finisher, plic
from minivmm.emulator.fdt import Node, cells64, flatten
from minivmm.emulator.physical import RAM_BASE

UART, UART_SIZE, UART_IRQ = 0x1000_0000, 0x1000, 10
UART_CLOCK = 3_686_400  # Hz
VIRTIO, VIRTIO_SIZE, VIRTIO_SLOTS, VIRTIO_IRQ = 0x1000_1000, 0x1000, 8, 1  # slot i: base + i * size, source 1 + i

ISA = "rv64imafdc_zicsr_zifencei"
CPU_INTC, PLIC_HANDLE, TEST_HANDLE = 1, 2, 3  # phandles
_S_EXTERNAL, _M_EXTERNAL, _M_SOFTWARE, _M_TIMER = 9, 11, 3, 7  # interrupt numbers of the hart


def device_tree(memory: int, cmdline: str, seed: bytes = b"") -> bytes:
    """The blob for a machine of `memory` bytes whose guest is given `cmdline`. seed: random bytes for the kernel."""
    chosen = {"bootargs": cmdline, "stdout-path": f"/soc/serial@{UART:x}"}
    cpu = Node(
        {
            "device_type": "cpu",
            "reg": 0,
            "status": "okay",
            "compatible": "riscv",
            "riscv,isa": ISA,
            "mmu-type": "riscv,sv39",
        },
        {
            "interrupt-controller": Node(
                {
                    "#interrupt-cells": 1,
                    "#address-cells": 0,
                    "interrupt-controller": None,
                    "compatible": "riscv,cpu-intc",
                    "phandle": CPU_INTC,
                }
            )
        },
    )
    root = Node(
        {"#address-cells": 2, "#size-cells": 2, "compatible": "riscv-virtio", "model": "riscv-virtio,vtk"},
        {
            "chosen": Node(chosen | {"rng-seed": seed} if seed else chosen),
            "memory@80000000": Node({"device_type": "memory", "reg": cells64(RAM_BASE, memory)}),
            "cpus": Node(
                {"#address-cells": 1, "#size-cells": 0, "timebase-frequency": clint.FREQUENCY}, {"cpu@0": cpu}
            ),
            "poweroff": _finish("syscon-poweroff", finisher.Finisher.PASS),
            "reboot": _finish("syscon-reboot", finisher.Finisher.RESET),
            "soc": Node(
                {"#address-cells": 2, "#size-cells": 2, "compatible": "simple-bus", "ranges": None}, _devices()
            ),
        },
    )
    return flatten(root)


def _finish(compatible: str, value: int) -> Node:
    return Node({"compatible": compatible, "regmap": TEST_HANDLE, "offset": 0, "value": value})


def _devices() -> dict[str, Node]:
    external = {"interrupt-parent": PLIC_HANDLE}
    nodes = {
        f"test@{finisher.BASE:x}": Node(
            {
                "compatible": ("sifive,test1", "sifive,test0", "syscon"),
                "reg": cells64(finisher.BASE, finisher.SIZE),
                "phandle": TEST_HANDLE,
            }
        ),
        f"clint@{clint.BASE:x}": Node(
            {
                "compatible": ("sifive,clint0", "riscv,clint0"),
                "reg": cells64(clint.BASE, clint.SIZE),
                "interrupts-extended": (CPU_INTC, _M_SOFTWARE, CPU_INTC, _M_TIMER),
            }
        ),
        f"plic@{plic.BASE:x}": Node(
            {
                "compatible": ("sifive,plic-1.0.0", "riscv,plic0"),
                "reg": cells64(plic.BASE, plic.SIZE),
                "#interrupt-cells": 1,
                "#address-cells": 0,
                "interrupt-controller": None,
                "interrupts-extended": (CPU_INTC, _M_EXTERNAL, CPU_INTC, _S_EXTERNAL),
                "riscv,ndev": plic.SOURCES,
                "phandle": PLIC_HANDLE,
            }
        ),
        f"serial@{UART:x}": Node(
            {
                "compatible": "ns16550a",
                "reg": cells64(UART, 0x100),
                "clock-frequency": UART_CLOCK,
                "interrupts": UART_IRQ,
                **external,
            }
        ),
    }
    for slot in range(VIRTIO_SLOTS):
        address = VIRTIO + slot * VIRTIO_SIZE
        nodes[f"virtio_mmio@{address:x}"] = Node(
            {
                "compatible": "virtio,mmio",
                "reg": cells64(address, VIRTIO_SIZE),
                "interrupts": VIRTIO_IRQ + slot,
                **external,
            }
        )
    return nodes


class EmptySlot:
    """A virtio-mmio slot without a device: DeviceID reads as 0 (virtio 1.2, 4.2.2)."""

    def read(self, offset: int, size: int) -> int:
        """MagicValue and Version, so that a driver's probe sees an empty slot and not a fault."""
        return {(0x000, 4): 0x74726976, (0x004, 4): 2}.get((offset, size), 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """Nobody listens."""
