"""Files by URL: resumed where they broke off, and given their name only when their checksum is the one expected.

The part that is there is kept in the user's cache as SHA256.part, so another call, from another process, goes on from
it (RFC 9110, 14: Range and Content-Range). What the checksum vouches for need not be the same server twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from minivmm.errors import ConfigError
from toolkit.images.errors import ChecksumMismatch, DownloadFailed
from toolkit.user_cache import user_cache

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # connections in a row that brought nothing new
PAUSE = 1.0  # seconds before the second attempt, doubled for each one after
CHUNK = 1 << 18

Progress = Callable[[int, int | None], None]  # bytes there, bytes in all when the server says


def checked_sha256(text: str) -> str:
    """The checksum in lower case. Raises ConfigError when it is none."""
    if re.fullmatch(r"[0-9a-fA-F]{64}", text) is None:
        raise ConfigError(f"{text!r} is no SHA-256", cause="it is 64 hexadecimal digits", remedy="see its SHA256SUMS")
    return text.lower()


def checked_url(url: str) -> str:
    """`url` when it is http or https. Raises ConfigError."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} cannot be downloaded", cause="only http:// and https:// can")
    return url


@contextlib.contextmanager
def downloaded(
    url: str,
    sha256: str,
    progress: Progress = lambda _there, _total: None,
    *,
    directory: Path | None = None,
    pause: float = PAUSE,
) -> Iterator[Path]:
    """The file, for the block; it is removed when the block ends without an exception.

    Raises ConfigError, DownloadFailed (what came is kept) and ChecksumMismatch (what came is removed).
    """
    url, sha256 = checked_url(url), checked_sha256(sha256)
    directory = directory or user_cache("downloads")
    directory.mkdir(parents=True, exist_ok=True)
    part = directory / f"{sha256}.part"
    with part.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadFailed(
                f"another vtk is downloading {url}", cause=f"it holds {part}", remedy="wait for it"
            ) from None
        digest = hashlib.sha256()
        file.seek(0)
        while chunk := file.read(CHUNK):
            digest.update(chunk)
        if digest.hexdigest() != sha256:  # else all of it was here, from a run that was killed
            digest = _fetch(url, file, digest, progress, pause)
        if digest.hexdigest() != sha256:
            part.unlink(missing_ok=True)
            raise ChecksumMismatch(
                url,
                "is not the file expected",
                cause=f"its SHA-256 is {digest.hexdigest()}, not {sha256}: another release, or damaged on its way",
                remedy="compare with the SHA256SUMS beside it",
            )
        yield part
        part.unlink(missing_ok=True)


def _fetch(url: str, file: IO[bytes], digest: hashlib._Hash, progress: Progress, pause: float) -> hashlib._Hash:
    """Appends what is missing, over as many connections as it takes. Returns the digest of the whole."""
    failures = 0
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            digest, whole = _append(url, file, digest, progress)
            if whole:
                return digest
            why = "the connection ended early"
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416 and before:  # nothing after what we have: let the checksum judge it
                return digest
            if error.code < 500 and error.code not in (408, 429):
                raise DownloadFailed(f"cannot download {url}", cause=f"{error.code} {error.reason}") from error
            why = f"{error.code} {error.reason}"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            why = str(getattr(error, "reason", error))
        failures = 0 if file.seek(0, os.SEEK_END) > before else failures + 1
        if failures == ATTEMPTS:
            raise DownloadFailed(
                f"cannot download {url}",
                cause=f"{why}; {file.tell()} bytes are kept",
                remedy="the same command again goes on from there",
            )
        time.sleep(pause * 2**failures)


def _append(url: str, file: IO[bytes], digest: hashlib._Hash, progress: Progress) -> tuple[hashlib._Hash, bool]:
    """One connection's worth. Returns the digest so far, and whether the end was reached."""
    there = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if there and not _continues(response, there):
            file.truncate(0)  # a server without ranges sends it all again
            there, digest = 0, hashlib.sha256()
        length = response.headers.get("Content-Length")
        total = there + int(length) if length and length.isdigit() else None
        progress(there, total)
        while chunk := response.read1(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            there += len(chunk)
            progress(there, total)
        file.flush()
    return digest, total is None or there >= total


def _continues(response: http.client.HTTPResponse, there: int) -> bool:
    """Whether the answer is 206 Partial Content from byte `there` on (RFC 9110, 15.3.7)."""
    return response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {there}-")
