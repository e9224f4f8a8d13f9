"""Reading the project's Markdown: fenced blocks, in order, with their language."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """One fenced block. `line` is the fence's, for messages."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        """Where it is, for a test's id."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """All fenced blocks of a document."""
    text = document.read_text(encoding="utf-8")
    return [
        Block(document, text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in _FENCE.finditer(text)
    ]


def commands() -> list[tuple[str, Block]]:
    """Every command line shown in an `sh` block: continuation lines joined, comments dropped."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.language == "sh":
                for line in block.text.replace("\\\n", " ").splitlines():
                    line = re.sub(r"\s+#.*$", "", line).strip()
                    if line and not line.startswith("#"):
                        found.append((line, block))
    return found
