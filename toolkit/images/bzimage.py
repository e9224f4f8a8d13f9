"""The ELF kernel inside a bzImage: it starts sooner, for the guest need not decompress it.

Linux, Documentation/arch/x86/boot.rst: "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import lzma
import struct
import zlib
from pathlib import Path

from minivmm.errors import ImageError

SETUP_SECTS = 0x1F1  # u8: size of the setup code in 512-byte sectors, less the boot sector; 0 means 4
HEADER_MAGIC = 0x202  # "HdrS"
PAYLOAD = 0x248  # u32 payload_offset from the protected-mode code, u32 payload_length (protocol 2.08)
SECTOR = 512

ELF_MAGIC = b"\x7fELF"
XZ_MAGIC = b"\xfd7zXZ\0"
GZIP_MAGIC = b"\x1f\x8b"


def payload(path: Path) -> bytes:
    """The compressed kernel inside the bzImage at `path`. Raises ImageError."""
    image = path.read_bytes()
    if image[HEADER_MAGIC : HEADER_MAGIC + 4] != b"HdrS":
        raise ImageError(path, "not a bzImage: no HdrS", offset=HEADER_MAGIC)
    if len(image) < PAYLOAD + 8:
        raise ImageError(path, "the header is not whole", offset=len(image))
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start = ((image[SETUP_SECTS] or 4) + 1) * SECTOR + offset
    if not 0 < length <= len(image) - start:
        raise ImageError(path, f"a payload of {length} bytes at {start:#x} is not in the file", offset=PAYLOAD)
    return image[start : start + length]


def vmlinux(path: Path) -> bytes:
    """The ELF kernel inside the bzImage at `path`, for payloads that are not compressed, XZ or gzip.

    Raises ImageError, also for the other compressions: the bzImage itself boots in any case.
    """
    packed = payload(path)
    try:
        if packed.startswith(ELF_MAGIC):
            return packed
        # Four bytes after the stream, the kernel's build notes the unpacked size: decompressors that stop at
        # the stream's end are wanted.
        if packed.startswith(XZ_MAGIC):
            return lzma.LZMADecompressor().decompress(packed)
        if packed.startswith(GZIP_MAGIC):
            return zlib.decompressobj(wbits=31).decompress(packed)  # 31: with a gzip header
    except (lzma.LZMAError, zlib.error) as error:
        raise ImageError(path, "the payload does not decompress", cause=str(error)) from error
    raise ImageError(path, f"payload of an unknown kind: it starts with {packed[:6].hex()}")
