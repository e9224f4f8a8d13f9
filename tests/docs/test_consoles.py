"""What the documents show of a session at the keyboard is what happens, from the first command to the last."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.docs.consoles import Step, files, missing, steps
from tests.docs.documents import DOCUMENTS, ROOT
from toolkit.images.store import ImageStore
from toolkit.user_cache import user_cache
from toolkit.vm import presence
from toolkit.vm.directory import MachineDirectory

PAGES = [page for page in DOCUMENTS if steps(page)]
PAGE_TIMEOUT = 3600.0  # seconds; images are built, and a Debian is booted, emulated
HOME = "/home/me"  # what the documents call the user's home
BIN = ".local/bin"  # in it

# The images a page takes for granted; they are the user's own where those are there.
GIVEN = {"docs/vm.md": ("debian",), "docs/vm-ssh.md": ("debian",)}

# Exit statuses that are the point of the command.
EXPECTED_STATUS = {"pytest -q test_boot.py": 1}


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's home: with what vtk has downloaded before, a place for ssh's files, and nothing else."""
    home = tmp_path / "home"
    (home / ".cache/vtk").mkdir(parents=True)
    (home / ".ssh").mkdir(mode=0o700)
    (home / BIN).mkdir(parents=True)
    if (packages := user_cache("packages")).is_dir():
        (home / ".cache/vtk/packages").symlink_to(packages)
    for program in ("ssh", "scp"):  # which take the home from passwd(5), not from $HOME
        if (real := shutil.which(program)) is not None:
            (home / BIN / program).write_text(f'#!/bin/sh\nexec {real} -F "$HOME/.ssh/config" "$@"\n')
            (home / BIN / program).chmod(0o755)
    return home


@pytest.fixture
def served(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The cloud image that the documents pull from elsewhere: what to write in place of their URL and checksum."""
    directory = tmp_path / "served"
    directory.mkdir()
    name = "debian-12-genericcloud-amd64.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", directory / name, "1M"], check=True, timeout=60)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    checksum = hashlib.sha256((directory / name).read_bytes()).hexdigest()
    yield {"https://example.org/": f"http://127.0.0.1:{server.server_port}/", "--sha256 …": f"--sha256 {checksum}"}
    server.shutdown()
    thread.join()
    server.server_close()


def give(home: Path, names: tuple[str, ...]) -> None:
    """The images, in the home's store: links to the user's own files, which are never written to."""
    store = home / ".local/share/vtk/images"
    store.mkdir(parents=True)
    for name in names:
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(ImageStore().path / name, store / name, copy_function=os.link)
        if not (store / name / "image.json").is_file():
            shutil.rmtree(store / name, ignore_errors=True)
            build = [sys.executable, "-m", "toolkit.cli", "image", "build", name]
            subprocess.run(build, env=os.environ | {"HOME": str(home)} | _no_xdg(), check=True, timeout=PAGE_TIMEOUT)


def _no_xdg() -> dict[str, str]:
    return dict.fromkeys(("XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "")


def play(page: list[Step], home: Path, cwd: Path, replaced: dict[str, str]) -> list[tuple[int | None, str]]:
    """Types the commands into one shell. Returns the status and the output of each; None where the time was up."""
    mark = secrets.token_hex(8)
    lines = []
    for step in page:
        command = step.command
        for text, real in replaced.items():
            command = command.replace(text, real)
        lines.append(f"{command}\nprintf '\\n{mark} %d\\n' $?")
    environment = os.environ | _no_xdg() | {"HOME": str(home), "NO_COLOR": "1", "LC_ALL": "C.UTF-8"}
    environment["PATH"] = f"{home / BIN}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment["PYTHONPATH"] = str(ROOT)  # the pages of this checkout, and its vtk
    for name in ("VTK_DEBUG", "COLUMNS", *(name for name in os.environ if name.startswith("PYTEST_"))):
        environment.pop(name, None)
    with (cwd / "came").open("wb") as came:
        shell = subprocess.Popen(
            ["bash", "-c", "\n".join(lines)],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=came,
            stderr=came,
            start_new_session=True,
        )
        try:
            shell.wait(PAGE_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    text = (cwd / "came").read_text(errors="replace").replace(str(home), HOME)
    for shown, real in replaced.items():
        text = text.replace(real, shown)
    played: list[tuple[int | None, str]] = []
    for _ in page:
        output, _, text = text.partition(f"\n{mark} ")
        status, _, text = text.partition("\n")
        played.append((int(status) if status else None, output))
    return played


@pytest.mark.slow
@pytest.mark.qemu
@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_session_shown_goes_as_shown(page: Path, home: Path, tmp_path: Path, served: dict[str, str]) -> None:
    give(home, GIVEN.get(str(page.relative_to(ROOT)), ()))
    work = tmp_path / "work"
    work.mkdir()
    for name, text in files(page).items():
        (work / name).write_text(text)
    shown = steps(page)
    try:
        played = play(shown, home, work, served)
    finally:
        for directory in (home / ".local/state/vtk/machines").glob("[!.]*/"):
            assert presence.kill(MachineDirectory(directory), 10.0)
    for step, (status, output) in zip(shown, played, strict=True):
        where = f"{page.name}:{step.line}: {step.command}"
        assert status == EXPECTED_STATUS.get(step.command, 0), f"{where}: status {status}\n{output}"
        assert missing(step.shown, output) == [], f"{where}: these lines did not come; what came:\n{output}"
        assert "Traceback" not in output


def test_a_file_is_shown_under_its_name(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\n# test_a.py\nx = 1\n```\n```python\n# why not\ny\n```\n```sh\n$ # a.py\n```\n")
    assert files(page) == {"test_a.py": "# test_a.py\nx = 1\n"}


def test_a_session_is_read_as_commands_and_their_output(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("text\n```console\n$ a \\\n  -b\nx\n\ny\n$ c\n```\n```sh\n$ no\n```\n")
    assert steps(page) == [Step("a \\\n  -b", ["x", "", "y"], 3), Step("c", [], 8)]
    page.write_text("```console\nx\n```\n")
    with pytest.raises(ValueError, match="output before a command"):
        steps(page)


@pytest.mark.parametrize(
    ("shown", "came", "lacking"),
    [
        (["d  running  17 768M"], "NAME\nd   running 4 1G\n", []),
        (["2026-11-16 at 0.5 s", "end"], "2031-01-02 at 71 s\nmore\nend", []),
        (["1.3M of 2 KiB"], "0 of 7 MiB", []),
        (["b", "a"], "a\nb", ["a"]),
        (["d stopped"], "d running", ["d stopped"]),
        (["a … z", "…", "end"], "a b c z\nend", []),
        (["a … z"], "a b c", ["a … z"]),
        (["vtk: waiting up to 5 s for d: ssh ..."], "", []),
        (["gone", "here"], "here", ["gone"]),
        (["6.1", "end"], "\x1bc\x1b[?7l\x1b[2JBIOS\r\nBooting..\x1bc\x1b[?7l\x1b[2J6.1\r\n\x1b[1mend\x1b(B\x1b[m", []),
    ],
)
def test_a_shown_line_has_a_counterpart_but_for_numbers(shown: list[str], came: str, lacking: list[str]) -> None:
    assert missing(shown, came) == lacking
