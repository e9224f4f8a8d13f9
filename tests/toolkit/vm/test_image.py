"""A machine on an image of the store: what it takes from it, and that the image knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minivmm.errors import VtkError
from tests.minivmm.images import elf64
from tests.toolkit.guests import CODES, NOTE
from toolkit.images.store import ImageStore, Kind
from toolkit.vm.directory import MachineDirectory, Machines
from toolkit.vm.machine import Machine
from toolkit.vm.making import Parts, create
from toolkit.vm.provider import MIB
from toolkit.vm.waiting import wait


@pytest.fixture
def store(machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return ImageStore(machines=machines.root)


def on_image(machines: Machines, store: ImageStore, kind: Kind) -> MachineDirectory:
    with store.build("i") as staging:
        (staging.directory / "vmlinuz").write_bytes(elf64(CODES["echo"], note=NOTE))
        (staging.directory / "disk.qcow2").write_bytes(bytes(MIB))
        staging.publish(kind, kernel="vmlinuz", disk="disk.qcow2", cmdline="console=ttyS0", user="debian", inputs={})
    return create(machines, "a.b_", Parts("i", append="quiet", memory=32 * MIB, accelerator="tcg"))


def test_it_boots_what_the_image_says(machines: Machines, store: ImageStore) -> None:
    config = on_image(machines, store, "tiny").config()
    assert (config.append, config.user, config.seed) == ("console=ttyS0 quiet", "debian", False)
    assert Path(config.kernel).parent == store.get("i").directory


def test_the_image_stays_as_long_as_the_machine(machines: Machines, store: ImageStore) -> None:
    directory = on_image(machines, store, "tiny")
    with pytest.raises(VtkError, match=r"a\.b_"):
        store.delete("i")
    Machine(directory).delete(machines)
    store.delete("i")


@pytest.mark.qemu
def test_a_cloud_images_machine_has_a_seed_and_knows_its_host_key(machines: Machines, store: ImageStore) -> None:
    directory = on_image(machines, store, "debian")
    seed = (directory / "seed.iso").read_bytes()
    assert (directory / "id_ed25519.pub").read_text().strip().encode() in seed
    host_key = (directory / "known_hosts").read_text().split(None, 1)[1].strip()
    assert json.dumps(host_key).encode() in seed
    assert b'"local-hostname": "a-b"' in seed
    machine = Machine(directory)
    machine.start()
    assert wait(machine, "console:ready", 30.0)
