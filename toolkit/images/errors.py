"""Errors of the image store and of what fills it.

VtkError
├── ConfigError
│   ├── ImageNameError     a name that cannot be a directory of the store
│   └── ImageExists        the name is taken, by an image made from something else
├── ImageError
│   ├── ImageNotFound      no image of that name
│   ├── ImageInUse         a machine's disk is an overlay on it
│   └── ChecksumMismatch   what was downloaded is not what was asked for
└── HostError
    ├── ToolMissing        a program that builds images is not installed
    ├── ImageBuildFailed   one of them failed: `cause` has its last words
    ├── DownloadFailed     the server or the network did not deliver
    └── StoreBroken        the store's file system refuses: full, read-only, not ours
"""

from __future__ import annotations

from minivmm.errors import ConfigError, HostError, ImageError


class ImageNameError(ConfigError):
    """A name that cannot be an image's."""


class ImageExists(ConfigError):
    """The name is taken."""


class ImageNotFound(ImageError):
    """There is no image of that name."""


class ImageInUse(ImageError):
    """The image cannot go: machines have their disks on it."""


class ChecksumMismatch(ImageError):
    """What was downloaded is not what was asked for."""


class ToolMissing(HostError):
    """A program that builds images is not installed."""


class ImageBuildFailed(HostError):
    """A program that builds images failed."""


class DownloadFailed(HostError):
    """The server or the network did not deliver."""


class StoreBroken(HostError):
    """The store's file system refuses."""
