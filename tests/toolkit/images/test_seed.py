"""A seed is a disk that cloud-init recognises, with what the machine is told and nothing Linux would refuse."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from minivmm.errors import ConfigError
from toolkit.images.seed import Seed

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI me@here"


def read(path: Path, name: str) -> str:
    iso = pycdlib.PyCdlib()
    iso.open(str(path))
    try:
        content = io.BytesIO()
        iso.get_file_from_iso_fp(content, rr_path=f"/{name}")
        return content.getvalue().decode()
    finally:
        iso.close()


def cloud_config(seed: Seed) -> dict[str, Any]:
    first, _, text = seed.files()["user-data"].partition("\n")
    assert first == "#cloud-config"
    config = json.loads(text)
    assert isinstance(config, dict)
    return config


def test_the_disk_has_the_label_and_the_files_of_nocloud(tmp_path: Path) -> None:
    seed = Seed("i-1", "web", authorized_keys=[KEY])
    path = seed.write(tmp_path / "seed.iso")
    assert path.read_bytes()[16 * 2048 + 40 : 16 * 2048 + 72].rstrip() == b"cidata"  # ECMA-119, 8.4.7
    for name, text in seed.files().items():
        assert read(path, name) == text
    assert [file.name for file in tmp_path.iterdir()] == ["seed.iso"]


def test_only_the_owner_can_read_the_disk(tmp_path: Path) -> None:
    path = Seed("i-1", "web", host_key=("private", "public")).write(tmp_path / "seed.iso")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_machine_is_told_its_name_its_user_and_the_key() -> None:
    seed = Seed("i-1", "web", "ann", [f"{KEY}\n"])
    config = cloud_config(seed)
    assert config["hostname"] == "web"
    assert config["locale"] == "C.UTF-8"
    (user,) = config["users"]
    assert user["name"] == "ann"
    assert user["ssh_authorized_keys"] == [KEY]
    assert user["lock_passwd"] is True
    assert json.loads(seed.files()["meta-data"]) == {"instance-id": "i-1", "local-hostname": "web"}


def test_a_host_key_given_is_the_only_one() -> None:
    config = cloud_config(Seed("i-1", "web", host_key=("private", "public")))
    assert config["ssh_keys"] == {"ed25519_private": "private", "ed25519_public": "public"}
    assert config["ssh_deletekeys"] is True


def test_what_is_added_is_in_the_cloud_config() -> None:
    config = cloud_config(Seed("i-1", "web", extra={"runcmd": ["true"]}))
    assert config["runcmd"] == ["true"]


@pytest.mark.parametrize("name", ["", "a b", "-web", "web_1", "a" * 64, "web\n", "café"])
def test_a_host_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="host name"):
        Seed("i-1", name).files()


@pytest.mark.parametrize("user", ["", "a b", "Ann", "a:b"])
def test_a_user_that_cannot_be_is_refused(user: str) -> None:
    with pytest.raises(ConfigError, match="user's name"):
        Seed("i-1", "web", user).files()


def test_a_private_key_is_not_given_away_as_an_authorized_one() -> None:
    with pytest.raises(ConfigError, match=r"\.pub"):
        Seed("i-1", "web", authorized_keys=["-----BEGIN OPENSSH PRIVATE KEY-----\nx"]).files()
