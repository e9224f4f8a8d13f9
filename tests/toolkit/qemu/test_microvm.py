"""The command line, and what is refused before QEMU sees it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from minivmm.errors import ConfigError, ImageError
from tests.toolkit.guests import write_guest
from toolkit.qemu.microvm import Accelerator, Microvm


class FakeDisk(NamedTuple):
    path: Path
    read_only: bool = False


@pytest.fixture
def config(tmp_path: Path) -> Microvm:
    return Microvm(write_guest(tmp_path, "exit0"))


def command_line(config: Microvm) -> list[str]:
    return config.arguments("qemu", qmp=7, serial=8, hvc=None, paused=True)


def test_a_disk_keeps_a_comma_in_its_name(config: Microvm, tmp_path: Path) -> None:
    disk = tmp_path / "a,b=c.img"
    disk.write_bytes(bytes(512))
    line = command_line(replace(config, disks=(FakeDisk(disk, True),)))
    node = json.loads(line[line.index("-blockdev") + 1])
    assert node["file"]["filename"] == str(disk)
    assert node["read-only"] is True


def test_the_accelerators_get_a_cpu_model_they_have(config: Microvm) -> None:
    assert "max" in command_line(config)
    assert "host,-arch-capabilities" in command_line(replace(config, accelerator=Accelerator.KVM))


@pytest.mark.parametrize("memory", [0, 1, (64 << 20) + 1])
def test_memory_that_is_not_whole_mebibytes_is_refused(config: Microvm, memory: int) -> None:
    with pytest.raises(ConfigError):
        replace(config, memory=memory).check()


@pytest.mark.parametrize("cpus", [0, 289])
def test_a_count_of_cpus_qemu_lacks_is_refused(config: Microvm, cpus: int) -> None:
    with pytest.raises(ConfigError):
        replace(config, cpus=cpus).check()


def test_more_virtio_devices_than_slots_are_refused(config: Microvm, tmp_path: Path) -> None:
    disks = (FakeDisk(tmp_path / "disk"),) * 8
    with pytest.raises(ConfigError):
        replace(config, disks=disks, rng=True).check()


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"#!/bin/sh\n", bytes(0x300)])
def test_a_file_that_is_no_kernel_is_refused(config: Microvm, tmp_path: Path, content: bytes) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    with pytest.raises(ImageError):
        replace(config, image=image).check()


def test_a_directory_is_refused(config: Microvm, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        replace(config, image=tmp_path).check()


def test_a_disk_that_is_not_there_is_refused(config: Microvm, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        replace(config, disks=(FakeDisk(tmp_path / "none.img"),)).check()
