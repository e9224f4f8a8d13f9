"""What images are made with: programs that are missing, fail or hang are named, with what to do; overlays hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from minivmm.errors import ConfigError, ImageError
from toolkit.images import debian, debian_root, overlay, steps
from toolkit.images.cloud import default_name
from toolkit.images.errors import ImageBuildFailed, ToolMissing
from toolkit.images.store import ImageStore

needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="no qemu-img (try: apt install qemu-utils)")


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images", tmp_path / "machines")


def test_a_missing_program_is_named_with_its_package(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(overlay, "SYSTEM_PATH", "/nowhere")
    with pytest.raises(ToolMissing, match="mmdebstrap is not installed") as missing:
        debian.build(store)
    assert missing.value.remedy == "sudo apt install mmdebstrap"
    assert store.list() == []


def test_the_last_words_of_a_program_that_fails_are_told() -> None:
    heard: list[str] = []
    with pytest.raises(ImageBuildFailed, match="probe failed with status 3") as failure:
        steps.run(["sh", "-c", "echo no such suite >&2; exit 3"], "probe", timeout=30.0, progress=heard.append)
    assert failure.value.cause == "no such suite"
    assert heard == ["no such suite"]


def test_a_program_that_hangs_is_ended_with_all_it_started() -> None:
    heard: list[str] = []
    with pytest.raises(ImageBuildFailed, match="did not end"):
        steps.run(["sh", "-c", "sleep 600 & echo $! >&2; wait"], "probe", timeout=0.3, progress=heard.append)
    gone_by(int(heard[0]))


def test_a_program_is_ended_when_its_watcher_is_interrupted() -> None:
    heard: list[str] = []

    def interrupt(line: str) -> None:
        heard.append(line)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.run(["sh", "-c", "sleep 600 & echo $! >&2; wait"], "probe", timeout=30.0, progress=interrupt)
    gone_by(int(heard[0]))


WATCHER = """
from toolkit.images import steps
steps.run(["sh", "-c", "trap '' TERM; (trap - TERM; exec sleep 600) & echo $! >&2; wait"], "probe", timeout=60.0,
          progress=lambda line: print(line, flush=True))
"""


def test_a_program_is_ended_with_all_it_started_when_its_watcher_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", WATCHER], stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        pid = int(watcher.stdout.readline())
        watcher.kill()
    gone_by(pid)


def test_a_program_gets_its_input_and_its_status_is_told(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"words")
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        steps.run(["cat"], "probe", timeout=30.0, source=source, target=target)
    assert (tmp_path / "out").read_bytes() == b"words"


def gone_by(pid: int, limit: float = 10.0) -> None:
    """Returns when the process is dead, reaped or not."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state in "ZX":
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} still runs")


@pytest.mark.parametrize("package", ["--hook", "Curl", "a b", "a,b", ""])
def test_what_cannot_be_a_package_never_reaches_mmdebstrap(store: ImageStore, package: str) -> None:
    with pytest.raises(ConfigError, match="Debian package"):
        debian.build(store, packages=[package])


def test_what_cannot_be_a_suite_never_reaches_mmdebstrap(store: ImageStore) -> None:
    with pytest.raises(ConfigError, match="suite"):
        debian.build(store, suite="--mode=root")


def test_a_disk_too_small_for_the_root_is_refused(store: ImageStore) -> None:
    with pytest.raises(ConfigError, match="too small"):
        debian.build(store, size=1 << 20)


def test_the_files_put_into_a_root_belong_to_root(tmp_path: Path) -> None:
    debian_root.write_files(tmp_path / "files.tar")
    with tarfile.open(tmp_path / "files.tar") as tar:
        assert {(member.uid, member.gid) for member in tar} == {(0, 0)}
        assert {member.mode for member in tar if member.isreg()} == {0o644}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_an_ordinary_user_without_subordinate_ids_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match="ordinary user") as missing:
        debian_root.mode()
    assert missing.value.remedy == "sudo apt install uidmap"


@needs_qemu_img
def test_an_overlay_is_a_qcow2_backed_by_the_image(store: ImageStore, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(b"disk" * 1024 + bytes(1 << 20))
    with store.build("one") as staging:
        overlay.to_qcow2(raw, staging.directory / "disk.qcow2")
        image = staging.publish("cloud", disk="disk.qcow2", inputs={})
    assert image.disk is not None
    before = image.disk.read_bytes()
    found = overlay.info(overlay.overlay(image, tmp_path / "overlay.qcow2", 8 << 20))
    assert found["format"] == "qcow2"
    assert found["virtual-size"] == 8 << 20
    assert found["full-backing-filename"] == str(image.disk)
    assert image.disk.read_bytes() == before


@needs_qemu_img
def test_a_downloaded_disk_may_not_name_files_of_this_host(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(1 << 20))
    with store.build("one") as staging:
        overlay.to_qcow2(tmp_path / "secret", staging.directory / "disk.qcow2")
        image = staging.publish("cloud", disk="disk.qcow2", inputs={})
    backed = overlay.overlay(image, tmp_path / "backed.qcow2")
    with pytest.raises(ImageError, match="not a whole disk"):
        overlay.to_qcow2(backed, tmp_path / "copy.qcow2")


def test_an_image_without_a_disk_has_no_overlays(store: ImageStore, tmp_path: Path) -> None:
    with store.build("one") as staging:
        image = staging.publish("tiny", inputs={})
    with pytest.raises(ImageError, match="has no disk"):
        overlay.overlay(image, tmp_path / "overlay.qcow2")


def test_an_image_pulled_is_named_as_its_file() -> None:
    assert default_name("https://example.org/x/debian-12-generic-amd64.qcow2?a=b") == "debian-12-generic-amd64"
    assert default_name("https://example.org/jammy.v2") == "jammy.v2"
