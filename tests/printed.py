"""What the documentation prints: files to type in, commands, Python code."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"(?:<!-- (?:not run by tests: ([^>]+?)|needs: ([^>]+?)|ends with status (\d)) -->\n)?```(\w+)([^\n]*)\n(.*?)```",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block. A comment above may say what it `needs`, the `reason` why no test runs it, or its `exit_status`."""

    language: str
    options: str
    text: str
    needs: str = ""  # the hub, a GPU, a cluster
    reason: str = ""
    exit_status: int = 0  # what its commands end with

    @property
    def run(self) -> bool:
        """Whether a test runs it, where it has what it needs."""
        return not self.reason

    @property
    def title(self) -> str:
        """The file that the block is to be typed into; "" for none."""
        match = re.search(r'title="([^"]+)"', self.options)
        return match[1] if match else ""

    @property
    def commands(self) -> list[list[str]]:
        """The arguments of every `headdyn …` and `python -m headdyn.… > FILE` in a block of commands."""
        lines = self.text.splitlines() if self.language == "bash" else []
        ours = ("headdyn ", "python -m headdyn.")
        return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(ours)]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [
        Block(language, options, text, needs, reason, int(status or 0))
        for reason, needs, status, language, options, text in found
    ]


def printed_files(page: Path) -> dict[str, str]:
    """The files that a page prints whole, by name."""
    return {block.title: block.text for block in blocks(page) if block.title}


def type_in(page: Path, folder: Path) -> None:
    """Put the files that a page prints into a folder."""
    for name, text in printed_files(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
