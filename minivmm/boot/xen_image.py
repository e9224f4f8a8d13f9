"""What a kernel for a paravirtual Xen domain says of itself (xen/include/public/elfnote.h).

Two ways: ELF notes of the name "Xen", or, older, a section `__xen_guest` that holds one text of NAME=VALUE pairs,
which elfnote.h calls LEGACY. A kernel that has notes is read by its notes only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from minivmm.boot import bzimage, kernel_cache
from minivmm.boot.elf import Elf, read_image
from minivmm.errors import ImageError
from minivmm.memory import PAGE_SIZE

NOTE_NAME = "Xen"
LEGACY_SECTION = "__xen_guest"
ADDRESS_SPACE = 1 << 64


class XenElfNote:
    """XEN_ELFNOTE_*: note types."""

    INFO = 0
    ENTRY = 1
    HYPERCALL_PAGE = 2
    VIRT_BASE = 3
    PADDR_OFFSET = 4
    XEN_VERSION = 5
    GUEST_OS = 6
    GUEST_VERSION = 7
    LOADER = 8
    PAE_MODE = 9
    FEATURES = 10
    BSD_SYMTAB = 11
    HV_START_LOW = 12
    L1_MFN_VALID = 13
    SUSPEND_CANCEL = 14
    INIT_P2M = 15
    MOD_START_PFN = 16
    SUPPORTED_FEATURES = 17
    PHYS32_ENTRY = 18


LEGACY_NAMES = {
    "VIRT_ENTRY": XenElfNote.ENTRY,
    "HYPERCALL_PAGE": XenElfNote.HYPERCALL_PAGE,
    "VIRT_BASE": XenElfNote.VIRT_BASE,
    "ELF_PADDR_OFFSET": XenElfNote.PADDR_OFFSET,
    "XEN_VER": XenElfNote.XEN_VERSION,
    "GUEST_OS": XenElfNote.GUEST_OS,
    "GUEST_VER": XenElfNote.GUEST_VERSION,
    "LOADER": XenElfNote.LOADER,
    "PAE": XenElfNote.PAE_MODE,
    "FEATURES": XenElfNote.FEATURES,
    "BSD_SYMTAB": XenElfNote.BSD_SYMTAB,
}

# features.h, in the order of the bits XENFEAT_*: what FEATURES calls them.
FEATURE_NAMES = (
    "writable_page_tables",
    "writable_descriptor_tables",
    "auto_translated_physmap",
    "supervisor_mode_kernel",
    "pae_pgdir_above_4gb",
    "mmu_pt_update_preserve_ad",
    "highmem_assist",
    "gnttab_map_avail_bits",
    "hvm_callback_vector",
    "hvm_safe_pvclock",
    "hvm_pirqs",
    "dom0",
)


class XenImage(NamedTuple):
    """A kernel and its notes. Addresses are the guest's virtual ones; None: the kernel does not say."""

    elf: Elf
    entry: int
    virt_base: int  # where pfn 0 is mapped
    paddr_offset: int  # p_paddr of pfn 0
    hypercall_page: int | None
    init_p2m: int | None
    supported_features: int  # bits 1 << XENFEAT_*
    required_features: int
    loader: str
    guest_os: str
    guest_version: str
    xen_version: str
    pae_mode: str
    hv_start_low: int | None
    l1_mfn_valid: tuple[tuple[int, int], ...]  # mask and value
    bsd_symtab: bool
    suspend_cancel: bool
    mod_start_pfn: bool  # an initrd need not be mapped

    @property
    def virt_start(self) -> int:
        """Where the lowest byte of the kernel is mapped."""
        return min(segment.paddr for segment in self.elf.loads) - self.paddr_offset + self.virt_base

    @property
    def virt_end(self) -> int:
        """The first address after the kernel."""
        end = max(segment.paddr + segment.memsz for segment in self.elf.loads)
        return end - self.paddr_offset + self.virt_base


def read(path: str | Path, cache: Path | None = None) -> XenImage:
    """The Xen kernel in an ELF file or in a bzImage. Raises ImageError for what is none, or is malformed.

    cache: the directory where kernels out of bzImages are kept for the next time (kernel_cache.py).
    """
    path = Path(path)
    data = read_image(path)
    if bzimage.is_bzimage(data):
        data = bzimage.vmlinux(path) if cache is None else kernel_cache.vmlinux(path, cache)
    return parse(Elf(path, data))


def is_xen(elf: Elf) -> bool:
    """Whether an image was made for a paravirtual domain: it says more than where PVH enters it. Raises ImageError."""
    said = _notes(elf).keys() - {XenElfNote.PHYS32_ENTRY}
    return bool(said) or _legacy_text(elf) is not None


def parse(elf: Elf) -> XenImage:
    """Reads the notes of `elf` and checks them against its segments. Raises ImageError."""
    if not elf.is_64:
        raise ImageError(elf.path, "is a 32-bit kernel", cause="domains here are 64-bit", remedy="an x86-64 kernel")
    if not elf.loads:
        raise ImageError(elf.path, "no segment to load")
    notes = _notes(elf)
    if notes.keys() - {XenElfNote.PHYS32_ENTRY}:
        image = _image(elf, _Reader(elf, notes))
    else:
        legacy = _legacy_text(elf)
        if legacy is None:
            raise ImageError(
                elf.path,
                "is no kernel for a Xen domain",
                cause=f'it has neither ELF notes "{NOTE_NAME}" for one nor a section {LEGACY_SECTION}',
                remedy="a kernel built with CONFIG_XEN_PV; or run it without --xen",
            )
        image = _legacy_image(elf, legacy)
    _check(image)
    return image


def _notes(elf: Elf) -> dict[int, bytes]:
    """Type and descriptor of the Xen notes; of two of a type the last counts."""
    notes = {note.type: note.desc for note in elf.notes() if note.name == NOTE_NAME}
    return notes or {note.type: note.desc for note in elf.section_notes() if note.name == NOTE_NAME}


def _legacy_text(elf: Elf) -> str | None:
    for name, section in elf.sections():
        if name == LEGACY_SECTION:
            return elf.section_bytes(section).partition(b"\0")[0].decode("ascii", "replace")
    return None


class _Reader:
    """The values by their types. A number is 1 to 8 bytes, little-endian; a text may end in a zero or not."""

    def __init__(self, elf: Elf, notes: Mapping[int, bytes]) -> None:
        self.elf = elf
        self.values = notes

    def number(self, type: int) -> int | None:
        desc = self.values.get(type)
        if desc is None:
            return None
        if len(desc) not in (1, 2, 4, 8):
            raise ImageError(self.elf.path, f"the Xen note {_name(type)} is {len(desc)} bytes long: not a number")
        return int.from_bytes(desc, "little")

    def text(self, type: int) -> str:
        return self.values.get(type, b"").partition(b"\0")[0].decode("ascii", "replace")


def _name(type: int) -> str:
    return next((name for name, number in vars(XenElfNote).items() if number == type), str(type))


def _image(elf: Elf, notes: _Reader) -> XenImage:
    """The image as its notes give it, with the defaults of elfnote.h; without ENTRY the ELF header's entry counts."""
    entry = notes.number(XenElfNote.ENTRY)
    supported, required = _features(elf, notes.text(XenElfNote.FEATURES))
    valid = notes.values.get(XenElfNote.L1_MFN_VALID, b"")
    if len(valid) % 16:
        raise ImageError(elf.path, f"the Xen note L1_MFN_VALID is {len(valid)} bytes long: not pairs of addresses")
    words = [int.from_bytes(valid[at : at + 8], "little") for at in range(0, len(valid), 8)]
    return XenImage(
        elf=elf,
        entry=elf.header.entry if entry is None else entry,
        virt_base=notes.number(XenElfNote.VIRT_BASE) or 0,
        paddr_offset=notes.number(XenElfNote.PADDR_OFFSET) or 0,
        hypercall_page=notes.number(XenElfNote.HYPERCALL_PAGE),
        init_p2m=notes.number(XenElfNote.INIT_P2M),
        supported_features=supported | (notes.number(XenElfNote.SUPPORTED_FEATURES) or 0),
        required_features=required,
        loader=notes.text(XenElfNote.LOADER),
        guest_os=notes.text(XenElfNote.GUEST_OS),
        guest_version=notes.text(XenElfNote.GUEST_VERSION),
        xen_version=notes.text(XenElfNote.XEN_VERSION),
        pae_mode=notes.text(XenElfNote.PAE_MODE),
        hv_start_low=notes.number(XenElfNote.HV_START_LOW),
        l1_mfn_valid=tuple(zip(words[::2], words[1::2], strict=True)),
        bsd_symtab=notes.text(XenElfNote.BSD_SYMTAB) == "yes",
        suspend_cancel=bool(notes.number(XenElfNote.SUSPEND_CANCEL)),
        mod_start_pfn=bool(notes.number(XenElfNote.MOD_START_PFN)),
    )


def _legacy_image(elf: Elf, text: str) -> XenImage:
    """The image as `__xen_guest` gives it: numbers in C's notation, HYPERCALL_PAGE a pfn, BSD_SYMTAB a mere name."""
    notes: dict[int, bytes] = {}
    for pair in text.split(","):
        name, _, value = pair.strip().partition("=")
        type = LEGACY_NAMES.get(name)
        if type in (XenElfNote.ENTRY, XenElfNote.HYPERCALL_PAGE, XenElfNote.VIRT_BASE, XenElfNote.PADDR_OFFSET):
            notes[type] = _legacy_number(elf, name, value).to_bytes(8, "little")
        elif type is not None:
            notes[type] = (value if type != XenElfNote.BSD_SYMTAB else "yes").encode("ascii", "replace")
    image = _image(elf, _Reader(elf, notes))
    if XenElfNote.PADDR_OFFSET not in notes:
        image = image._replace(paddr_offset=image.virt_base)
    if image.hypercall_page is not None:
        image = image._replace(hypercall_page=image.virt_base + image.hypercall_page * PAGE_SIZE)
    return image


def _legacy_number(elf: Elf, name: str, value: str) -> int:
    try:
        number = int(value, 16 if value[:2].lower() == "0x" else 10)
    except ValueError:
        number = -1
    if not 0 <= number < ADDRESS_SPACE:
        raise ImageError(elf.path, f"{LEGACY_SECTION} gives {name} as {value!r}: not a 64-bit number")
    return number


def _features(elf: Elf, text: str) -> tuple[int, int]:
    """Supported and required feature bits of a FEATURES text: names, with `!` the required ones, between `|`.

    A name we do not know is no harm, unless it is required: ImageError.
    """
    supported = required = 0
    for word in filter(None, text.split("|")):
        name = word.removeprefix("!")
        if name in FEATURE_NAMES:
            bit = 1 << FEATURE_NAMES.index(name)
            supported |= bit
            if word != name:
                required |= bit
        elif word != name:
            raise ImageError(elf.path, f"it requires the feature {name!r}, which nothing here knows")
    return supported, required


def _check(image: XenImage) -> None:
    """Raises ImageError for notes that contradict one another, or the segments, or what there is here."""
    path, start, end = image.elf.path, image.virt_start, image.virt_end
    if image.loader not in ("", "generic"):
        raise ImageError(path, f"it asks for the loader {image.loader!r}; there is the generic one only")
    if image.xen_version and not image.xen_version.startswith("xen-3.0"):
        raise ImageError(path, f"it was made for {image.xen_version!r}; the interface here is xen-3.0")
    if image.virt_base % PAGE_SIZE or image.paddr_offset % PAGE_SIZE:
        raise ImageError(path, f"VIRT_BASE {image.virt_base:#x} and PADDR_OFFSET must be whole pages")
    if not image.virt_base <= start < end <= ADDRESS_SPACE:
        raise ImageError(
            path,
            f"its segments would be mapped at {start:#x} to {end:#x}, not above VIRT_BASE {image.virt_base:#x}",
            cause=f"PADDR_OFFSET {image.paddr_offset:#x} does not fit the segments' physical addresses",
        )
    if not start <= image.entry < end:
        raise ImageError(path, f"its entry point {image.entry:#x} is not in the kernel ({start:#x} to {end:#x})")
    page = image.hypercall_page
    if page is not None and (page % PAGE_SIZE or not start <= page < end):
        raise ImageError(path, f"its hypercall page {page:#x} is no page of the kernel ({start:#x} to {end:#x})")
    if image.init_p2m is not None and image.init_p2m % PAGE_SIZE:
        raise ImageError(path, f"INIT_P2M {image.init_p2m:#x} is not a whole page's address")
