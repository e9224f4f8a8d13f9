"""The kernel inside a bzImage is found, and a file that is none is refused in words."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivmm.boot import bzimage
from minivmm.boot.elf import MAGIC
from minivmm.errors import ImageError
from tests.minivmm.test_lz4 import block as lz4_block
from tests.minivmm.test_lz4 import frame as lz4_frame

ELF = MAGIC + bytes(range(256)) * 8


def bz_image(payload: bytes, *, setup_sectors: int = 4, offset: int = 0x100) -> bytearray:
    image = bytearray((setup_sectors + 1) * bzimage.SECTOR + offset)
    image[bzimage.SETUP_SECTS] = setup_sectors
    image[bzimage.HEADER_MAGIC : bzimage.HEADER_MAGIC + 4] = b"HdrS"
    struct.pack_into("<II", image, bzimage.PAYLOAD, offset, len(payload))
    return image + payload


def lz4(content: bytes) -> bytes:
    return lz4_frame(lz4_block(content))


@pytest.mark.parametrize("pack", [bytes, lzma.compress, gzip.compress, lz4], ids=["plain", "xz", "gzip", "lz4"])
def test_the_kernel_comes_out_as_it_went_in(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bz_image(pack(ELF) + struct.pack("<I", len(ELF)) * (pack is not bytes)))
    assert bzimage.vmlinux(path) == ELF


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the zstd program is not on PATH (try: sudo apt install zstd)")
def test_a_zstandard_payload_is_unpacked_by_what_the_host_has(tmp_path: Path) -> None:
    packed = subprocess.run(["zstd", "-c", "-19"], input=ELF, capture_output=True, timeout=60, check=True).stdout
    path = tmp_path / "vmlinuz"
    path.write_bytes(bz_image(packed + struct.pack("<I", len(ELF))))
    assert bzimage.vmlinux(path) == ELF
    path.write_bytes(bz_image(packed[:20] + bytes(20) + struct.pack("<I", len(ELF))))
    with pytest.raises(ImageError, match="does not decompress"):
        bzimage.vmlinux(path)


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python unpacks Zstandard itself")
def test_without_zstandard_the_error_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bz_image(bzimage.ZSTD_MAGIC + bytes(40)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImageError, match="apt install zstd"):
        bzimage.vmlinux(path)


@pytest.mark.parametrize("magic", [bzimage.XZ_MAGIC, bzimage.GZIP_MAGIC, b"\x02\x21\x4c\x18", b"BZh9"])
def test_a_damaged_or_unknown_payload_is_refused(magic: bytes, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bz_image(magic + b"\xff" * 40))
    with pytest.raises(ImageError, match=r"does not decompress|unknown kind"):
        bzimage.vmlinux(path)


def test_no_setup_sectors_means_four(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    image = bz_image(ELF, setup_sectors=4)
    image[bzimage.SETUP_SECTS] = 0
    path.write_bytes(image)
    assert bzimage.vmlinux(path) == ELF


def test_a_payload_outside_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bz_image(ELF)[:-1])
    with pytest.raises(ImageError, match="is not in the file"):
        bzimage.vmlinux(path)


@given(st.binary(max_size=2048), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # one file, written anew each time
def test_no_file_makes_it_fail_in_another_way(tmp_path: Path, content: bytes, with_magic: bool) -> None:
    image = bytearray(content)
    if with_magic:
        image[bzimage.HEADER_MAGIC : bzimage.HEADER_MAGIC + 4] = b"HdrS"
    path = tmp_path / "vmlinuz"
    path.write_bytes(image)
    with suppress(ImageError):
        bzimage.vmlinux(path)
