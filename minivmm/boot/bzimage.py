"""The ELF kernel inside a bzImage: it starts sooner, for the guest need not decompress it.

Linux, Documentation/arch/x86/boot.rst: "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import importlib
import lzma
import shutil
import struct
import subprocess
import tempfile
import zlib
from pathlib import Path

from minivmm.boot import lz4
from minivmm.boot.elf import MAGIC as ELF_MAGIC
from minivmm.boot.elf import MAX_IMAGE, read_image
from minivmm.errors import ImageError

SETUP_SECTS = 0x1F1  # u8: size of the setup code in 512-byte sectors, less the boot sector; 0 means 4
HEADER_MAGIC = 0x202  # "HdrS"
PAYLOAD = 0x248  # u32 payload_offset from the protected-mode code, u32 payload_length (protocol 2.08)
SECTOR = 512

XZ_MAGIC = b"\xfd7zXZ\0"
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SIZE_NOTE = 4  # after the stream the kernel's build notes the unpacked size (gzip's own trailer is that already)


def is_bzimage(image: bytes) -> bool:
    """Whether these bytes have a bzImage's header."""
    return image[HEADER_MAGIC : HEADER_MAGIC + 4] == b"HdrS"


def payload(path: Path) -> bytes:
    """The compressed kernel inside the bzImage at `path`. Raises ImageError."""
    image = read_image(path)
    if not is_bzimage(image):
        raise ImageError(path, "not a bzImage: no HdrS", offset=HEADER_MAGIC)
    if len(image) < PAYLOAD + 8:
        raise ImageError(path, "the header is not whole", offset=len(image))
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start = ((image[SETUP_SECTS] or 4) + 1) * SECTOR + offset
    if not 0 < length <= len(image) - start:
        raise ImageError(path, f"a payload of {length} bytes at {start:#x} is not in the file", offset=PAYLOAD)
    return image[start : start + length]


def vmlinux(path: Path) -> bytes:
    """The ELF kernel inside the bzImage at `path`. Raises ImageError."""
    return unpack(path, payload(path))


def unpack(path: Path, packed: bytes) -> bytes:
    """The ELF kernel in the payload of the bzImage at `path`: not compressed, or by XZ, gzip, LZ4 or Zstandard.

    Raises ImageError, also for the other compressions: the bzImage itself boots in any case.
    """
    try:
        if packed.startswith(ELF_MAGIC):
            return packed
        # Decompressors that stop at the stream's end are wanted: SIZE_NOTE follows it.
        if packed.startswith(XZ_MAGIC):
            return lzma.LZMADecompressor().decompress(packed, MAX_IMAGE)
        if packed.startswith(GZIP_MAGIC):
            return zlib.decompressobj(wbits=31).decompress(packed, MAX_IMAGE)  # 31: with a gzip header
        if packed.startswith(lz4.MAGIC):
            return lz4.decompress(packed, MAX_IMAGE)
    except (lzma.LZMAError, zlib.error, lz4.Lz4Error) as error:
        raise ImageError(path, "the payload does not decompress", cause=str(error)) from error
    if packed.startswith(ZSTD_MAGIC):
        return _zstd(path, packed)
    raise ImageError(path, f"payload of an unknown kind: it starts with {packed[:6].hex()}")


def _zstd(path: Path, packed: bytes) -> bytes:
    """A Zstandard payload unpacked, by Python 3.14's module or the zstd program. Raises ImageError without either."""
    try:
        zstd = importlib.import_module("compression.zstd")
    except ImportError:
        return _zstd_program(path, packed)
    try:
        return bytes(zstd.ZstdDecompressor().decompress(packed, MAX_IMAGE))
    except zstd.ZstdError as error:
        raise ImageError(path, "the payload does not decompress", cause=str(error)) from error


def _zstd_program(path: Path, packed: bytes) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        raise ImageError(
            path,
            "its payload is packed with Zstandard, which cannot be unpacked here",
            cause="this Python has no compression.zstd (3.14 has), and no zstd program is on PATH",
            remedy="sudo apt install zstd",
        )
    with tempfile.TemporaryFile() as source:
        source.write(packed[:-SIZE_NOTE])  # the program refuses what follows the stream
        source.seek(0)
        command = [program, "-d", "-c", "-q"]
        with subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            content = process.stdout.read(MAX_IMAGE + 1)
            if len(content) > MAX_IMAGE:
                process.kill()
    if process.returncode:
        raise ImageError(path, "the payload does not decompress", cause=f"zstd ended with {process.returncode}")
    return content
