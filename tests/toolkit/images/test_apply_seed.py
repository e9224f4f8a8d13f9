"""What the image `debian` does at its first boot: all that a seed of vtk's own says, and nothing of any other seed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from toolkit.images import apply_seed
from toolkit.images.seed import Seed

KEYS = ("-----BEGIN OPENSSH PRIVATE KEY-----\nx\n-----END OPENSSH PRIVATE KEY-----\n", "ssh-ed25519 HOST")
OURS = Seed("i-1", "web", "me", ["ssh-ed25519 A", "ssh-ed25519 B"], host_key=KEYS)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with the user `me` in it, before its first boot; its only disk is tmp_path/dev/vdb."""
    root = tmp_path / "root"
    for directory in ("etc/ssh", "etc/default", "etc/sudoers.d", "home/me", "run/cloud-init"):
        (root / directory).mkdir(parents=True)
    (root / "etc/passwd").write_text(f"me:x:{os.getuid()}:{os.getgid()}::/home/me:/bin/bash\n")
    (root / "etc/ssh/ssh_host_rsa_key").write_text("of the image")
    (root / "run/cloud-init/enabled").touch()
    (tmp_path / "block/vdb").mkdir(parents=True)
    (tmp_path / "block/zz").mkdir()  # a drive without a medium
    (tmp_path / "dev").mkdir()
    found = apply_seed.find_seed
    monkeypatch.setattr(
        apply_seed, "find_seed", lambda _block, _devices: found(str(tmp_path / "block"), str(tmp_path / "dev"))
    )
    monkeypatch.setattr(os, "fchown", lambda *_: None)  # files of root's are for root to make
    return root


def boot(root: Path, seed: Seed) -> str:
    seed.write(root.parent / "dev" / "vdb")
    return apply_seed.main(str(root))


def test_a_seed_of_ours_is_followed_and_cloud_init_is_told(root: Path) -> None:
    assert boot(root, OURS) == "instance i-1: set up as its seed says"
    assert (root / "etc/hostname").read_text() == "web\n"
    assert "127.0.1.1\tweb\n" in (root / "etc/hosts").read_text()
    assert (root / "home/me/.ssh/authorized_keys").read_text() == "ssh-ed25519 A\nssh-ed25519 B\n"
    assert (root / "etc/sudoers.d/90-vtk-users").read_text() == "me ALL=(ALL) NOPASSWD:ALL\n"
    assert (root / "etc/ssh/ssh_host_ed25519_key").read_text() == KEYS[0]
    assert (root / "etc/ssh/ssh_host_ed25519_key").stat().st_mode & 0o777 == 0o600
    assert not (root / "etc/ssh/ssh_host_rsa_key").exists()
    assert (root / "run/vtk-seeded").exists()
    assert [path.name for path in (root / "run/cloud-init").iterdir()] == ["disabled"]


def test_at_the_next_boot_the_users_own_changes_stay(root: Path) -> None:
    boot(root, OURS)
    (root / "etc/hostname").write_text("mine\n")
    (root / "run/vtk-seeded").unlink()
    assert boot(root, OURS) == "instance i-1: known"
    assert (root / "etc/hostname").read_text() == "mine\n"
    assert (root / "run/vtk-seeded").exists()


def test_another_instance_is_set_up_anew(root: Path) -> None:
    boot(root, OURS)
    boot(root, OURS._replace(instance_id="i-2", hostname="other"))
    assert (root / "etc/hostname").read_text() == "other\n"


@pytest.mark.parametrize(
    "seed",
    [
        OURS._replace(extra={"packages": ["curl"]}),
        OURS._replace(extra={"runcmd": ["true"]}),
        OURS._replace(extra={"users": ["default"]}),
        OURS._replace(password="secret"),
        OURS._replace(host_key=None),
        OURS._replace(network={"version": 2, "ethernets": {}}),
    ],
)
def test_a_seed_with_more_in_it_is_left_to_cloud_init_untouched(root: Path, seed: Seed) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert "left to cloud-init" in boot(root, seed)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("user-data", "#!/bin/sh\n"),
        ("user-data", "#cloud-config\nhostname: web\n"),
        ("user-data", "#cloud-config\n[]\n"),
        ("meta-data", ""),
        ("meta-data", "{}"),
        ("network-config", "null"),
    ],
)
def test_a_file_of_another_kind_is_left_to_cloud_init(file: str, text: str) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        apply_seed.understood(OURS.files() | {file: text})


def test_without_a_seed_nothing_is_done(root: Path) -> None:
    (root.parent / "dev/vdb").write_bytes(bytes(100_000))
    assert apply_seed.main(str(root)) == "no seed disk: left to cloud-init"
    assert not (root / "run/vtk-seeded").exists()


def test_a_setting_up_that_fails_is_left_to_cloud_init(root: Path) -> None:
    (root / "etc/sudoers.d").rmdir()
    (root / "etc/sudoers.d").touch()
    assert "left to cloud-init" in boot(root, OURS)
    assert not (root / "run/vtk-seeded").exists()


@pytest.mark.parametrize("cut", [0, 100, 16 * 2048 + 180, 24 * 2048, 28 * 2048 + 40])
def test_a_torn_disk_does_no_harm(root: Path, cut: int) -> None:
    OURS.write(root.parent / "seed")
    (root.parent / "dev/vdb").write_bytes((root.parent / "seed").read_bytes()[:cut])
    assert "left to cloud-init" in apply_seed.main(str(root))


def test_what_a_seed_of_ours_asks_for_is_all_that_it_may_ask_for() -> None:
    config = json.loads(OURS.files()["user-data"].partition("\n")[2])
    assert set(config) == apply_seed.CONFIG_KEYS
    assert set(config["users"][0]) == apply_seed.USER_KEYS
    assert json.loads(OURS.files()["network-config"]) == apply_seed.NETWORK
