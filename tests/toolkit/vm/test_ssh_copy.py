"""`vtk vm cp` by OpenSSH's SFTP server, and by one that lies: whole files or none, as they were, and nowhere else."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paramiko import ECDSAKey

from minivmm.errors import ConfigError
from tests.toolkit.vm.conftest import MakeMachine
from tests.toolkit.vm.ssh_server import CONTENT, SshServer
from toolkit.vm.directory import Machines
from toolkit.vm.errors import Unreachable, Unsupported
from toolkit.vm.machine import Machine
from toolkit.vm.ssh_connection import connected
from toolkit.vm.ssh_copy import Copied, Place, copy
from toolkit.vm.ssh_files import Facts, Files, Kind, LocalFiles
from toolkit.vm.ssh_sftp import open_files

Reached = Callable[..., Machine]
CP = [sys.executable, "-m", "toolkit.cli", "vm", "cp"]


def cp(*words: object, recursive: bool = False, preserve: bool = False) -> Copied:
    *sources, destination = map(str, words)
    return copy(Machines(), sources, destination, recursive=recursive, preserve=preserve)


def tree(path: Path) -> dict[bytes, tuple[int, int | None, bytes | None]]:
    """All that is below `path`: kind and mode, time, content."""
    found: dict[bytes, tuple[int, int | None, bytes | None]] = {}
    for directory, directories, files in os.walk(os.fsencode(path)):
        for name in (*directories, *files):
            file = os.path.join(directory, name)
            known = os.lstat(file)
            content = None
            if stat.S_ISLNK(known.st_mode):
                content = b"-> " + os.readlink(file)
            elif stat.S_ISREG(known.st_mode):
                content = Path(os.fsdecode(file)).read_bytes()
            time = None if stat.S_ISLNK(known.st_mode) else int(known.st_mtime)
            found[os.path.relpath(file, os.fsencode(path))] = (known.st_mode, time, content)
    return found


@pytest.fixture
def plenty(tmp_path: Path) -> Path:
    """A tree of all that a name, a mode and a time can be."""
    root = tmp_path / "plenty"
    (root / "a b" / "ü").mkdir(parents=True)
    (root / "a b" / "new\nline").write_bytes(b"")
    (root / "-r").write_bytes(os.urandom(3 << 20 | 1))
    (root / "~").write_text("home?")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o4751)
    (root / "a b" / "ü" / "$(id)").write_text("x")
    Path(os.fsdecode(os.fsencode(root) + b"/no\xffutf8")).write_text("y")
    (root / "dangling").symlink_to("../no where")
    (root / "loop").symlink_to(".")
    (root / "closed").mkdir()
    (root / "closed" / "in it").write_text("z")
    (root / "closed").chmod(0o555)
    os.utime(root / "a b", (1, 981173106))
    os.utime(root / "-r", (1, 981173106))
    return root


def test_a_tree_comes_back_as_it_went(reached: Reached, plenty: Path, tmp_path: Path) -> None:
    reached()
    went = cp(plenty, f"a:{tmp_path}/there", recursive=True, preserve=True)
    assert (went.failed, went.files, went.links, went.directories) == ([], 7, 2, 4)
    assert went.bytes == sum(
        len(content) for _, _, content in tree(plenty).values() if content and content[:3] != b"-> "
    )
    assert tree(tmp_path / "there") == tree(plenty)
    came = cp(f"a:{tmp_path}/there", tmp_path / "here", recursive=True, preserve=True)
    assert came.failed == []
    assert tree(tmp_path / "here") == tree(plenty)


def test_from_machine_to_machine(reached: Reached, plenty: Path, tmp_path: Path) -> None:
    reached("a")
    reached("b")
    (tmp_path / "into").mkdir()
    assert cp(f"a:{plenty}/", f"b:{tmp_path}/into", recursive=True, preserve=True).failed == []
    assert tree(tmp_path / "into" / "plenty") == tree(plenty)


def test_without_preserve_the_umask_and_what_was_there_decide(reached: Reached, plenty: Path, tmp_path: Path) -> None:
    reached()
    (tmp_path / "there").mkdir()
    kept = tmp_path / "there" / "-r"
    kept.touch(0o640)
    kept.chmod(0o640)
    sources = [f"{plenty}/-r", f"{plenty}/run", f"{plenty}/~"]
    for to in (f"a:{tmp_path}/there", str(tmp_path / "there")):
        froms = sources if to.startswith("a:") else [f"a:{source}" for source in sources]
        before = os.umask(0o022)
        assert cp(*froms, to).failed == []
        os.umask(before)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "there").iterdir()}
        assert modes == {"-r": 0o640, "run": 0o751 & ~0o022, "~": 0o644}
        (tmp_path / "there" / "run").unlink()
        (tmp_path / "there" / "~").unlink()


def test_a_named_link_is_followed_and_stays(reached: Reached, tmp_path: Path) -> None:
    reached()
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "new").write_text("new")
    assert cp(tmp_path / "new", f"a:{tmp_path}/link").failed == []
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    assert cp(f"a:{tmp_path}/link", tmp_path / "copy").failed == []
    assert not (tmp_path / "copy").is_symlink()


@pytest.mark.parametrize("where", ["here", "there"])
@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_a_copy_cut_short_leaves_what_was_there(
    reached: Reached, tmp_path: Path, where: str, failure: type[BaseException]
) -> None:
    machine = reached()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "file").write_text("old")

    def chunks() -> Iterator[bytes]:
        yield b"x" * (2 << 20)
        raise failure

    def cut_short(files: Files) -> None:
        with pytest.raises(failure):
            files.write(str(tmp_path / "d" / "file"), chunks(), None, preserve=False)

    if where == "here":
        cut_short(LocalFiles())
    else:
        with connected(machine) as transport:
            cut_short(open_files(machine, transport))
    assert [(file.name, file.read_text()) for file in (tmp_path / "d").iterdir()] == [("file", "old")]


def test_a_machine_that_goes_away_leaves_no_half_file(reached: Reached, tmp_path: Path) -> None:
    machine = reached()
    with connected(machine) as transport:

        def chunks() -> Iterator[bytes]:
            yield b"x" * (2 << 20)
            transport.close()
            yield b"x"

        with pytest.raises(Unreachable, match="is not reached by ssh"):
            open_files(machine, transport).write(str(tmp_path / "file"), chunks(), None, preserve=False)
    assert not (tmp_path / "file").exists()


def test_what_fails_is_told_and_the_rest_is_copied(reached: Reached, tmp_path: Path) -> None:
    reached()
    source = tmp_path / "source"
    (source / "taken").mkdir(parents=True)
    (source / "taken" / "in it").write_text("x")
    (source / "z").write_text("z")
    os.mkfifo(source / "fifo")
    (tmp_path / "there" / "source").mkdir(parents=True)
    (tmp_path / "there" / "source" / "taken").write_text("a file")
    copied = cp(source, tmp_path / "nothing", f"a:{tmp_path}/there", recursive=True)
    assert sorted(copied.failed) == sorted(
        [
            f"{tmp_path}/nothing: no such file or directory",
            f"{source}/fifo: not copied: a device, socket or pipe",
            f"a:{tmp_path}/there/source/taken: there is a file of that name",
        ]
    )
    assert (tmp_path / "there" / "source" / "z").read_text() == "z"
    assert (tmp_path / "there" / "source" / "taken").read_text() == "a file"


def test_a_guest_cannot_lead_a_copy_out_of_its_directory(reached: Reached, tmp_path: Path) -> None:
    reached()
    (tmp_path / "guest" / "d").mkdir(parents=True)
    (tmp_path / "guest" / "d" / "evil").write_text("evil")
    (tmp_path / "outside").mkdir()
    (tmp_path / "here" / "guest").mkdir(parents=True)
    (tmp_path / "here" / "guest" / "d").symlink_to(tmp_path / "outside")  # by an earlier copy
    copied = cp(f"a:{tmp_path}/guest", tmp_path / "here", recursive=True)
    assert copied.failed == [f"{tmp_path}/here/guest/d: there is a symbolic link of that name"]
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.fixture
def serve(make: MakeMachine) -> Iterator[Callable[[list[str] | None], None]]:
    """Starts the in-process server of machine `a`: with an SFTP server that lists these names, or with none."""
    servers: list[SshServer] = []

    def start(names: list[str] | None) -> None:
        machine = make()
        public_key = (machine.directory / "id_ed25519.pub").read_text()
        servers.append(SshServer(machine.config().ssh_port, ECDSAKey.generate(), public_key, names))

    yield start
    for server in servers:
        server.close()


Serve = Callable[[list[str] | None], None]


@pytest.mark.parametrize("names", [["../evil"], ["a", "a"], ["/etc/passwd"], ["a\0b"]])
def test_names_that_cannot_be_are_refused(serve: Serve, tmp_path: Path, names: list[str]) -> None:
    serve(names)
    copied = cp("a:/tree", tmp_path / "here", recursive=True)
    assert len(copied.failed) == 1
    assert "a listing that cannot be" in copied.failed[0]
    assert list((tmp_path / "here").iterdir()) == []


def test_reads_that_are_short_are_put_together(serve: Serve, tmp_path: Path) -> None:
    serve([])
    assert cp("a:/short", tmp_path / "file").failed == []
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_reply_of_more_than_was_asked_for_is_refused(serve: Serve, tmp_path: Path) -> None:
    serve([])
    assert cp("a:/greedy", tmp_path / "file").failed == ["a:/greedy: a reply of 32769 bytes to a request for 32768"]
    assert not (tmp_path / "file").exists()


def test_a_guest_without_an_sftp_server_is_told(serve: Serve, tmp_path: Path) -> None:
    serve(None)
    with pytest.raises(Unsupported, match="has no SFTP server") as told:
        cp("a:/file", tmp_path / "file")
    assert "vtk vm exec a -- cat FILE > FILE" in str(told.value)


def test_a_file_that_does_not_tell_its_size_is_copied_to_its_end(reached: Reached, tmp_path: Path) -> None:
    reached()
    assert cp("a:/proc/self/limits", tmp_path / "limits").failed == []
    assert "Max open files" in (tmp_path / "limits").read_text()


def test_standard_input_and_output_are_files(reached: Reached, tmp_path: Path) -> None:
    reached()
    there = f"a:{tmp_path}/there"
    done = subprocess.run([*CP, "-", there], input=b"a\0b", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    done = subprocess.run([*CP, there, "-"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"a\0b")
    done = subprocess.run([*CP, "--json", there, tmp_path / "here"], capture_output=True, check=False)
    assert json.loads(done.stdout) | {"seconds": 0} == {
        "schema": 1,
        "files": 1,
        "directories": 0,
        "links": 0,
        "bytes": 3,
        "seconds": 0,
        "failed": [],
    }


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize("words", [("a", "b"), ("a", "m:b", "c"), ("-", "m:a", "m:"), ("a", "no name:b"), ("", "m:")])
def test_what_cannot_be_meant_is_said_before_a_machine_is_asked(words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        cp(*words)


def test_a_colon_belongs_to_a_machine_before_the_first_slash_only() -> None:
    assert Place.read("web:") == Place("web", ".")
    assert Place.read("web:~/a b:c") == Place("web", "a b:c")
    assert Place.read("./web:a") == Place("", "./web:a")
    assert Facts.of(stat.S_IFIFO, 0, 0).kind is Kind.OTHER
