"""Programs nobody here wrote, on both engines: Debian's busybox and bash for riscv64, and Lua, behave as ever."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.minivmm.emulator.debian import Debian

pytestmark = pytest.mark.slow
BUSYBOX = ("busybox-static", "usr/bin/busybox")
BASH = ("bash-static", "usr/bin/bash-static")


@pytest.fixture(scope="module")
def debian() -> Debian:
    return Debian()


@pytest.fixture(params=["interpret", "translate"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a text and a file of random bytes."""
    directory = tmp_path_factory.mktemp("root")
    rng = random.Random(7)
    lines = (" ".join(str(rng.randrange(1000)) for _ in range(rng.randrange(8))) for _ in range(300))
    (directory / "text").write_text("\n".join(lines) + "\n")
    (directory / "bytes").write_bytes(rng.randbytes(20_000))
    (directory / "folder").mkdir()
    (directory / "folder" / "empty").touch()
    return directory


def vtk(
    engine: str, program: Path, *arguments: str, root: Path | None = None, data: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """The program under vtk, as a user starts it."""
    options = ("--accel", engine, "--timeout", "300", *(("--root", str(root)) if root else ()))
    command = [sys.executable, "-m", "toolkit.cli", "run", "--user", *options, str(program), "--", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=False, timeout=400)


SAME_AS_COREUTILS = [
    ("cat", "text"),
    ("sort", "text"),
    ("sort", "-n", "-r", "text"),
    ("uniq", "-c", "text"),
    ("wc", "-l", "text"),
    ("sha256sum", "bytes", "text"),
    ("md5sum", "bytes"),
    ("head", "-n", "7", "text"),
    ("tail", "-c", "100", "text"),
    ("od", "-x", "bytes"),
    ("cut", "-d", " ", "-f", "2", "text"),
    ("base64", "bytes"),
    ("ls", "-1", "."),
    ("ls", "folder"),
    ("expr", "6", "*", "7"),
    ("seq", "1", "10"),
    ("sed", "-n", "s/1/one/gp", "text"),
    ("grep", "-c", "99", "text"),
    ("stat", "-c", "%n %s %F", "text", "folder"),
    ("find", "folder"),
    ("diff", "text", "text"),
    ("basename", "/a/b.c", ".c"),
]


@pytest.mark.parametrize("command", SAME_AS_COREUTILS, ids=" ".join)
def test_busybox_says_what_the_hosts_programs_say(
    debian: Debian, engine: str, root: Path, command: tuple[str, ...]
) -> None:
    expected = subprocess.run(
        command, cwd=root, capture_output=True, check=False, timeout=60, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    )
    found = vtk(engine, debian.program(*BUSYBOX), *command, root=root)
    assert (found.stdout, found.returncode) == (expected.stdout, expected.returncode), found.stderr
    assert found.stderr == b""


def test_busybox_reads_a_pipe_to_its_end(debian: Debian, engine: str) -> None:
    data = random.Random(3).randbytes(100_000)
    found = vtk(engine, debian.program(*BUSYBOX), "sha256sum", data=data)
    assert found.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_busybox_compresses_what_the_host_can_unpack(debian: Debian, engine: str, root: Path) -> None:
    found = vtk(engine, debian.program(*BUSYBOX), "gzip", "-c", "text", root=root)
    assert zlib.decompress(found.stdout, wbits=31) == (root / "text").read_bytes()


def test_busybox_changes_files_as_it_is_told(debian: Debian, engine: str, tmp_path: Path) -> None:
    script = """
        mkdir -p a/b
        sh -c echo${IFS}one>a/b/file
        ln -s b/file a/link
        cp a/link a/copy
        mv a/copy a/moved
        chmod 600 a/moved
        touch -d @1000000 a/moved
        tar cf all.tar a
        rm -r a
        tar xf all.tar
        stat -c %a:%Y a/moved
    """
    busybox = debian.program(*BUSYBOX)
    for line in script.strip().splitlines():
        found = vtk(engine, busybox, *line.split(), root=tmp_path)
        assert (found.returncode, found.stderr) == (0, b""), line
    assert found.stdout == b"600:1000000\n"
    assert (tmp_path / "a" / "moved").read_text() == "one\n"


def test_a_second_process_is_refused_and_said_so(debian: Debian, engine: str) -> None:
    found = vtk(engine, debian.program(*BUSYBOX), "sh", "-c", "echo one | cat")
    assert found.returncode != 0
    assert b"can't fork: Function not implemented" in found.stderr
    assert b"system call 220 is not known here" in found.stderr  # clone


def test_bash_computes_and_keeps_tables(debian: Debian, engine: str) -> None:
    script = (
        "for i in {1..200}; do ((sum += i)); m[i%7]+=$i; done; echo $sum ${#m[3]}; printf '%05.2f %x\\n' 3.14159 255"
    )
    expected = subprocess.run(("bash", "-c", script), capture_output=True, check=True, timeout=60).stdout
    assert vtk(engine, debian.program(*BASH), "-c", script).stdout == expected


LUA = """
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end
print(_VERSION, fib(15), 2 ^ 0.5, 1 / 3, math.pi, 10 // 3, -7 % 3, 1e300 * 1e10, math.tointeger(2 ^ 53))
local t = {} for i = 1, 200 do t[i] = i * 7919 % 1009 end table.sort(t) print(t[1], t[100], t[200])
print(string.format("%5.2f|%-8s|%x|%q", 3.14159, "left", 255, "a\\nb"), ("hello"):rep(3, "-"))
for w in ("one two three"):gmatch("%a+") do io.write(w:upper(), ",") end print()
local co = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i * i) end end) print(co(), co(), co())
local s = 0.0 for i = 1, 500 do s = s + math.sin(i) * math.sqrt(i) end print(string.format("%.10f", s))
print(pcall(error, "wrong", 0)) print(io.read("n", "l")) print(io.read("a"))
"""
SAID = """\
Lua 5.4	610	1.4142135623731	0.33333333333333	3.1415926535898	3	2	inf	9007199254740992
0	492	1001
 3.14|left    |ff|"a\\
b"	hello-hello-hello
ONE,TWO,THREE,
1	4	9
{sum:.10f}
false	wrong
42	 rest
more
lines

"""


def test_lua_runs_a_program(debian: Debian, engine: str, tmp_path: Path) -> None:
    import math

    table = sorted(i * 7919 % 1009 for i in range(1, 201))
    total = 0.0
    for i in range(1, 501):
        total += math.sin(i) * math.sqrt(i)
    expected = SAID.format(sum=total).replace("0	492	1001", f"{table[0]}	{table[99]}	{table[199]}")
    (tmp_path / "program.lua").write_text(LUA)
    found = vtk(engine, debian.lua(), "/program.lua", root=tmp_path, data=b"42 rest\nmore\nlines\n")
    assert found.stdout.decode() == expected
    assert (found.stderr, found.returncode) == (b"", 0)


def test_lua_answers_line_by_line(debian: Debian, engine: str) -> None:
    found = vtk(engine, debian.lua(), "-i", data=b"print(6 * 7)\nfor i = 1, 2 do\nprint(i)\nend\nerror('no')\n")
    said = found.stdout.decode()
    assert "> 42\n" in said
    assert "1\n2\n" in said
    assert "no" in found.stderr.decode()
