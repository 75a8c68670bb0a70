"""The pages of experiments/ as pages of the site, and the list of them, results.md, with their answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "experiments"
_ENTRY = re.compile(r"^- \[(?P<title>[^]]+)\]\((?P<path>\w+/README\.md)\)$", re.MULTILINE)


def files() -> Iterator[Path]:
    """Every file that a page of experiments/ links to or shows, and the pages themselves."""
    for page in sorted(FOLDER.glob("*/*.md")):
        yield page
        links = re.findall(r"\]\((\w[^):]*)\)", page.read_text(encoding="utf-8"))
        yield from (page.parent / link for link in dict.fromkeys(links) if not link.endswith(".md"))


def page(path: Path) -> str:
    """A page of experiments/ whose links to docs/ are relative to the site; those to programs become plain text."""
    text = re.sub(r"\[([^]]+)\]\(\.\./\.\./docs/tools/[^)]+\)", r"\1", path.read_text(encoding="utf-8"))
    return text.replace("](../../docs/", "](../../")


def overview() -> str:
    """experiments/README.md with each page's answer under its link.

    Raises ValueError for a page without an answer, or with a link in it, which would lead elsewhere from here.
    """
    return _ENTRY.sub(_with_answer, (FOLDER / "README.md").read_text(encoding="utf-8"))


def _with_answer(entry: re.Match[str]) -> str:
    text = (FOLDER / entry["path"]).read_text(encoding="utf-8")
    if (answer := re.search(r"^\*\*Answer\.\*\* (.+?)\n\n", text, re.MULTILINE | re.DOTALL)) is None:
        raise ValueError(f"experiments/{entry['path']} has no paragraph that begins with **Answer.**")
    if "](" in answer[1]:
        raise ValueError(f"experiments/{entry['path']} has a link in its answer; move it below")
    lines = " ".join(answer[1].split())
    return f"### [{entry['title']}](experiments/{entry['path']})\n\n{lines}\n"
