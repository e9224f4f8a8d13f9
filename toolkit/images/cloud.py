"""Cloud images: other people's disks, downloaded, checked, and kept as qcow2. They boot by their own boot loader."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from pathlib import PurePosixPath

from toolkit.images import download
from toolkit.images.overlay import to_qcow2
from toolkit.images.store import Image, ImageStore, checked_name


def pull(
    store: ImageStore,
    url: str,
    sha256: str,
    name: str | None = None,
    *,
    user: str = "debian",
    replace: bool = False,
    progress: download.Progress = lambda _there, _total: None,
    waiting: Callable[[str], None] = lambda _: None,
) -> Image:
    """The disk at `url` as an image, named as the file when `name` is None; `user` is whom its cloud-init lets in.

    Raises ConfigError, DownloadFailed, ChecksumMismatch, ImageError (not a disk), ImageExists, ToolMissing.
    """
    inputs = {"sha256": download.checked_sha256(sha256)}
    name = checked_name(name or default_name(download.checked_url(url)))
    with store.build(name, waiting=waiting) as staging:
        if not replace and (kept := store.find(name, inputs)) is not None:
            return kept
        with download.downloaded(url, sha256, progress) as file:
            to_qcow2(file, staging.directory / "disk.qcow2")
            return staging.publish("cloud", disk="disk.qcow2", user=user, inputs=inputs, replace=replace)


def default_name(url: str) -> str:
    """The file's name in the URL without its suffix: "debian-12-genericcloud-amd64"."""
    file = PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    return file.stem if file.suffix in (".qcow2", ".img", ".raw") else file.name
