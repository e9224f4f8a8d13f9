"""Which machine `vtk run` makes of a guest: minivmm's on KVM, QEMU's microvm, a paravirtual domain, or an emulated one.

A kernel that was made for domains only, as its ELF notes say, becomes one; one that knows both ways, as Debian's, and
a guest of ours become one when they are asked to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from minivmm.errors import ConfigError, HostError, ImageError
from toolkit.user_cache import user_cache

if TYPE_CHECKING:
    from minivmm import Disk, Machine, RiscvMachine, XenMachine
    from minivmm.emulator.lockstep.machine import LockstepMachine
    from minivmm.emulator.trace import Tracer
    from toolkit.qemu import QemuMachine

    AnyMachine = Machine | QemuMachine | XenMachine | RiscvMachine | LockstepMachine

BARE, XEN, RISCV64 = "bare", "xen", "riscv64"
EMULATORS = ("interpret", "translate")
LOCKSTEP = "lockstep"  # both
MEMORY = 64 << 20  # bytes, where the user does not say
LINUX_MEMORY = 256 << 20
LINUX_CONSOLE = "console=hvc0"  # where a domain's console ring is, to Linux


class Wish(NamedTuple):
    """What the user asked for."""

    guest: str
    memory: int | None
    cpus: int
    cmdline: str
    disks: Sequence[Disk]
    boot: str
    virtio_console: bool
    rng: bool
    accelerator: str | None
    xen: bool
    initrd: Path | None
    audit: int
    arch: str | None = None
    lockstep: bool = False
    stride: int | None = None
    tracer: Callable[[], Tracer | None] | None = None
    """Makes what is told of every event, when the machine is one that can be traced."""


class Plan(NamedTuple):
    """What is made of it."""

    image: Path
    platform: str
    """BARE, XEN or RISCV64, as guest_os names what a guest is built for."""
    accelerator: str
    reason: str
    """Why it is not the accelerator one would expect; empty when it is."""
    build: Callable[[Callable[[bytes], None] | None], AnyMachine]
    """Makes the machine around a console callback. Raises VtkError for whatever cannot be."""


class Kernel(NamedTuple):
    """What an image says of itself."""

    packed: bool = False
    """A bzImage: a domain's kernel may be inside."""
    for_domains: bool = False
    for_machines: bool = True
    is_linux: bool = False


def plan(wish: Wish) -> Plan:
    """Finds the guest and the machine for it. Raises VtkError."""
    named = is_name(wish.guest)
    emulated = wish.arch == RISCV64 or (wish.arch is None and (wish.accelerator in EMULATORS or wish.lockstep))
    if emulated or (wish.arch is None and not named and is_riscv64(wish.guest)):
        return _emulated(wish, built(wish.guest, RISCV64) if named else find_file(wish.guest))
    for option, given in {
        f"--accel {wish.accelerator}": wish.accelerator in EMULATORS,
        "--lockstep": wish.lockstep,
        "--stride": wish.stride is not None,
        "--trace": wish.tracer is not None,
    }.items():
        if given:
            raise ConfigError(
                f"{option} is for RISC-V guests", cause="x86-64 runs on KVM or in QEMU", remedy="--arch riscv64"
            )
    xen = wish.xen or (named and is_for_domains_only(wish.guest))
    image = built(wish.guest, XEN if xen else BARE) if named else find_file(wish.guest)
    kernel = Kernel() if named else look(image)
    if xen or (kernel.for_domains and not kernel.for_machines):
        return _domain(wish, image, kernel)
    for option, given in {"--initrd": wish.initrd is not None, "--audit": bool(wish.audit)}.items():
        if given:
            raise ConfigError(
                f"{option} goes with a Xen domain", cause=f"{wish.guest} boots as a machine", remedy=f"--xen {option} …"
            )
    if kernel.packed:
        raise ImageError(image, "is a bzImage", cause="machines here boot ELF kernels", remedy="vtk run --xen")
    return _machine(wish, image)


# --- the guest -------------------------------------------------------------------------------------------------------
def is_name(guest: str) -> bool:
    """Whether this is the name of a guest of ours, not a file."""
    if "/" in guest or guest.endswith(".elf"):
        return False
    from guest_os import guests

    return guest in guests()


def is_for_domains_only(guest: str) -> bool:
    """Whether this guest of ours is about what a machine does not have."""
    from guest_os import guests

    return guests()[guest].platforms == (XEN,)


def built(name: str, platform: str) -> Path:
    """The image of a guest of ours. Raises BuildError, ImageError when there is none for the platform."""
    from guest_os import guests, image
    from toolkit.building import announce_build

    if platform not in guests()[name].platforms:
        if platform == RISCV64:
            raise ImageError(name, "is not made for RISC-V", cause="it is about x86 processors, or about Xen")
        raise ImageError(name, "is not made for Xen domains", cause="it drives what only a machine has: virtio-mmio")
    announce_build()
    return image(name, platform)


def find_file(name: str) -> Path:
    """The file called so. Raises ImageError, with the guest the user may have meant."""
    if "/" in name or name.endswith(".elf") or Path(name).exists():
        return Path(name)
    import difflib

    from guest_os import guests

    close = difflib.get_close_matches(name, guests(), n=1)
    remedy = f"vtk run {close[0]}" if close else "vtk guest list"
    raise ImageError(name, "no guest and no file is called so", remedy=remedy)


def is_riscv64(name: str) -> bool:
    """Whether the file called so is an ELF file for RISC-V."""
    from minivmm.boot.elf import EM_RISCV, MAGIC

    try:
        with open(name, "rb") as file:
            start = file.read(20)
    except OSError:  # whoever loads it will say so
        return False
    return start[:4] == MAGIC and int.from_bytes(start[18:20], "little") == EM_RISCV


def look(image: Path) -> Kernel:
    """What the file says of itself; of one that is no kernel, whoever loads it will say so."""
    from minivmm.boot import bzimage, pvh, xen_image
    from minivmm.boot.elf import Elf, read_image

    try:
        data = read_image(image)
        if bzimage.is_bzimage(data):
            return Kernel(packed=True, is_linux=True)
        elf = Elf(image, data)
        if not xen_image.is_xen(elf):
            return Kernel()
        kernel = Kernel(for_domains=True, for_machines=pvh.entry_point(elf) is not None)
    except ImageError:
        return Kernel()
    with contextlib.suppress(ImageError):  # the domain's builder says it again
        return kernel._replace(is_linux=xen_image.parse(elf).guest_os == "linux")
    return kernel


# --- the machine -----------------------------------------------------------------------------------------------------
def _domain(wish: Wish, image: Path, kernel: Kernel) -> Plan:
    """A paravirtual domain. What only a machine has is refused, not ignored."""
    lacks = {
        "--disk": (bool(wish.disks), "a domain has no virtio devices"),
        "--virtio-console": (wish.virtio_console, "a domain has no virtio devices: its console is a ring of Xen's"),
        "--rng": (wish.rng, "a domain has no virtio devices"),
        "--boot": (wish.boot != "auto", "a domain has a boot protocol of its own"),
        "--accel tcg": (wish.accelerator == "tcg", "domains run on minivmm only, and that on KVM"),
    }
    for option, (given, cause) in lacks.items():
        if given:
            raise ConfigError(f"{option} does not go with a Xen domain", cause=cause, remedy="leave it out")
    memory = wish.memory if wish.memory is not None else LINUX_MEMORY if kernel.is_linux else MEMORY
    cmdline = wish.cmdline
    if kernel.is_linux and not any(word.startswith("console=") for word in cmdline.split()):
        cmdline = f"{LINUX_CONSOLE} {cmdline}".rstrip()

    def build(console: Callable[[bytes], None] | None) -> XenMachine:
        from minivmm import XenMachine
        from toolkit.telling import told_when_long

        doing = "unpacking the kernel, which is kept for the next time" if kernel.packed else "building the domain"
        with told_when_long(doing):
            return XenMachine(
                image,
                memory=memory,
                cpus=wish.cpus,
                cmdline=cmdline,
                initrd=wish.initrd,
                console=console,
                audit=wish.audit,
                kernel_cache=user_cache("kernels"),
            )

    return Plan(image, XEN, "kvm", "", build)


def _emulated(wish: Wish, image: Path) -> Plan:
    """A RISC-V machine. What it does not have is refused, not ignored."""
    lacks = {
        "--xen": (wish.xen, "Xen domains are of this host's processor"),
        "--initrd": (wish.initrd is not None, "the machine has no loader for it"),
        "--audit": (bool(wish.audit), "it has no frames of Xen's"),
        "--boot": (wish.boot != "auto", "there is one way to boot it: ELF or raw, with a device tree"),
        "--cpus": (wish.cpus != 1, "it has one hart"),
        f"--accel {wish.accelerator}": (
            wish.accelerator is not None and wish.accelerator not in EMULATORS,
            "its processor is emulated, by interpretation or by translation",
        ),
        f"--accel {wish.accelerator} with --lockstep": (
            wish.accelerator is not None and wish.lockstep,
            "that interprets and translates, both",
        ),
        "--trace with --lockstep": (
            wish.tracer is not None and wish.lockstep,
            "it tells of one engine, --accel interpret or --accel translate",
        ),
        "--stride": (wish.stride is not None and not wish.lockstep, "it belongs to --lockstep"),
    }
    for option, (given, cause) in lacks.items():
        if given:
            raise ConfigError(f"{option} does not go with a RISC-V machine", cause=cause, remedy="leave it out")
    accelerator = LOCKSTEP if wish.lockstep else wish.accelerator or "translate"

    def build(console: Callable[[bytes], None] | None) -> RiscvMachine | LockstepMachine:
        from minivmm import RiscvMachine

        parts: dict[str, Any] = {
            "memory": MEMORY if wish.memory is None else wish.memory,
            "cmdline": wish.cmdline,
            "disks": wish.disks,
            "virtio_console": wish.virtio_console,
            "rng": wish.rng,
            "console": console,
        }
        if wish.lockstep:
            from minivmm.emulator.lockstep.machine import STRIDE, LockstepMachine

            return LockstepMachine(image, stride=STRIDE if wish.stride is None else wish.stride, **parts)
        tracer = None if wish.tracer is None else wish.tracer()
        return RiscvMachine(image, accelerator=accelerator, tracer=tracer, **parts)

    return Plan(image, RISCV64, accelerator, "", build)


def _machine(wish: Wish, image: Path) -> Plan:
    """A machine like QEMU's microvm, under minivmm or QEMU."""
    accelerator, reason = _choose(wish.accelerator)
    memory = MEMORY if wish.memory is None else wish.memory

    def build(console: Callable[[bytes], None] | None) -> Machine | QemuMachine:
        if accelerator == "tcg":
            from toolkit.qemu import Accelerator, QemuMachine

            return QemuMachine(
                image,
                accelerator=Accelerator.TCG,
                memory=memory,
                cpus=wish.cpus,
                cmdline=wish.cmdline,
                disks=wish.disks,
                virtio_console=wish.virtio_console,
                rng=wish.rng,
                console=console,
            )
        from minivmm import Boot, Machine

        return Machine(
            image,
            boot=Boot(wish.boot),
            memory=memory,
            cpus=wish.cpus,
            cmdline=wish.cmdline,
            disks=wish.disks,
            virtio_console=wish.virtio_console,
            rng=wish.rng,
            console=console,
        )

    if accelerator == "tcg" and wish.boot == "linux64":
        raise ConfigError(
            "QEMU cannot enter a guest by the Linux 64-bit protocol",
            cause="its microvm boots ELF files by PVH",
            remedy="--boot pvh",
        )
    return Plan(image, BARE, accelerator, reason, build)


def _choose(asked: str | None) -> tuple[str, str]:
    """The accelerator, kvm where it is usable, and why it is not. Raises HostError when it was asked for and is not."""
    if asked == "tcg":
        return "tcg", ""
    from minivmm.kvm.system import Kvm

    try:
        Kvm().close()
    except HostError as error:
        if asked == "kvm":
            raise
        return "tcg", error.message + (f" ({error.cause}); try: {error.remedy}" if error.remedy else "")
    return "kvm", ""
