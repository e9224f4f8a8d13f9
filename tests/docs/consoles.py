"""The `console` blocks of a document: what is typed, what is shown, and whether what was shown is what came.

And the files that it shows, for those commands to work on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.docs.documents import blocks

PROMPT = "$ "
ELLIPSIS = "…"  # in a shown line: anything; a line of it alone: any lines

# Said or not, as the host and the clock have it.
DEPENDS = re.compile(r"^vtk: (.* \.\.\.|.*running under emulation.*|another vtk is .*)$")

# ECMA-48: ED 2 and RIS wipe the screen; a control sequence (5.4) and an escape sequence (ECMA-35, 13.1).
WIPED = re.compile(r"\x1b(\[2J|c)")
CONTROL = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[ -/]*[0-~])")

NAMED = re.compile(r"# ([\w-]+\.\w+)\n")


class Step(NamedTuple):
    """One command, as typed, and the lines that the document shows after it."""

    command: str
    shown: list[str]
    line: int  # in the document


def steps(document: Path) -> list[Step]:
    """All commands of a document's `console` blocks, in order. A line that begins a block without a prompt is a
    ValueError."""
    found: list[Step] = []
    for block in blocks(document):
        if block.language != "console":
            continue
        typing = False
        for number, line in enumerate(block.text.splitlines(), block.line + 1):
            if line.startswith(PROMPT):
                found.append(Step(line.removeprefix(PROMPT), [], number))
                typing = True
            elif not found or (number == block.line + 1):
                raise ValueError(f"{document.name}:{number}: output before a command")
            elif typing and found[-1].command.endswith("\\"):
                found[-1] = found[-1]._replace(command=f"{found[-1].command}\n{line}")
            else:
                typing = False
                found[-1].shown.append(line)
    return found


def files(document: Path) -> dict[str, str]:
    """The files that a document shows, by name: blocks that begin with a comment which is a file's name."""
    shown = [(NAMED.match(block.text), block.text) for block in blocks(document)]
    return {match[1]: text for match, text in shown if match}


def missing(shown: list[str], came: str) -> list[str]:
    """The shown lines that have no counterpart in what came, in order. Numbers, sizes, dates and spaces may differ."""
    rest = iter([_comparable(line) for line in _without_control(came).splitlines()])
    lacking = []
    for line in shown:
        wanted = _comparable(line)
        if not wanted or wanted == ELLIPSIS or DEPENDS.match(line):
            continue
        pattern = re.compile(".*".join(re.escape(part) for part in wanted.split(ELLIPSIS)))
        remembered = []
        for candidate in rest:
            if pattern.fullmatch(candidate):
                break
            remembered.append(candidate)
        else:
            lacking.append(line)
            rest = iter(remembered)
    return lacking


def _without_control(came: str) -> str:
    """Without what is for a terminal: a line begins where the screen was wiped, all else of ECMA-48 shows nothing."""
    return CONTROL.sub("", WIPED.sub("\n", came))


def _comparable(line: str) -> str:
    """Without what differs from run to run: numbers (also in units and dates), and how wide columns are."""
    line = re.sub(r"\d+(\.\d+)?( ?([KMGT]i?B?|B)\b)?", "0", line)
    return " ".join(line.split())
