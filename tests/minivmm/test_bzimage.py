"""The kernel inside a bzImage is found, and a file that is none is refused in words."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivmm.errors import ImageError
from minivmm.boot import bzimage

ELF = bzimage.ELF_MAGIC + bytes(range(256)) * 8


def bz_image(payload: bytes, *, setup_sectors: int = 4, offset: int = 0x100) -> bytearray:
    image = bytearray((setup_sectors + 1) * bzimage.SECTOR + offset)
    image[bzimage.SETUP_SECTS] = setup_sectors
    image[bzimage.HEADER_MAGIC : bzimage.HEADER_MAGIC + 4] = b"HdrS"
    struct.pack_into("<II", image, bzimage.PAYLOAD, offset, len(payload))
    return image + payload


@pytest.mark.parametrize("pack", [bytes, lzma.compress, gzip.compress], ids=["plain", "xz", "gzip"])
def test_the_kernel_comes_out_as_it_went_in(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bz_image(pack(ELF) + struct.pack("<I", len(ELF)) * (pack is not bytes)))
    assert bzimage.vmlinux(path) == ELF


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
