"""A kernel is unpacked once, and whatever happened to the cache, what comes out is the kernel."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from minivmm.boot import bzimage, kernel_cache
from minivmm.errors import ImageError
from tests.minivmm.test_bzimage import ELF, bz_image


@pytest.fixture
def vmlinuz(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(bz_image(gzip.compress(ELF)))
    return path


def cannot_unpack(*_: object) -> bytes:
    raise AssertionError("unpacked again")


def test_the_second_time_nothing_is_unpacked(vmlinuz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "a" / "cache"
    assert kernel_cache.vmlinux(vmlinuz, cache) == ELF
    monkeypatch.setattr(bzimage, "unpack", cannot_unpack)
    assert kernel_cache.vmlinux(vmlinuz, cache) == ELF


def test_another_kernel_in_the_same_file_is_another_kernel(vmlinuz: Path, tmp_path: Path) -> None:
    kernel_cache.vmlinux(vmlinuz, tmp_path / "cache")
    vmlinuz.write_bytes(bz_image(gzip.compress(ELF + b"newer")))
    assert kernel_cache.vmlinux(vmlinuz, tmp_path / "cache") == ELF + b"newer"


def test_a_damaged_entry_is_made_anew(vmlinuz: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kernel_cache.vmlinux(vmlinuz, cache)
    (entry,) = cache.iterdir()
    entry.write_bytes(b"")
    assert kernel_cache.vmlinux(vmlinuz, cache) == ELF
    assert entry.read_bytes() == ELF


def test_a_cache_that_cannot_be_is_done_without(vmlinuz: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    assert kernel_cache.vmlinux(vmlinuz, tmp_path / "file" / "cache") == ELF


def test_a_kernel_that_does_not_unpack_leaves_nothing(vmlinuz: Path, tmp_path: Path) -> None:
    vmlinuz.write_bytes(bz_image(gzip.compress(ELF)[:20] + bytes(40)))
    with pytest.raises(ImageError):
        kernel_cache.vmlinux(vmlinuz, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_kernels_used_last_are_kept(vmlinuz: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kernel_cache.vmlinux(vmlinuz, cache)
    (first,) = cache.iterdir()
    for number in range(kernel_cache.KEPT + 2):
        other = tmp_path / f"vmlinuz{number}"
        other.write_bytes(bz_image(gzip.compress(ELF + bytes([number]))))
        kernel_cache.vmlinux(vmlinuz, cache)  # used all the while
        kernel_cache.vmlinux(other, cache)
        for age, entry in enumerate(sorted(cache.iterdir(), key=lambda file: file.stat().st_mtime_ns, reverse=True)):
            os.utime(entry, (1e9 - age, 1e9 - age))  # the order that seconds would have made
    assert first in cache.iterdir()
    assert len(list(cache.iterdir())) == kernel_cache.KEPT
