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
        for link in re.findall(r"\]\((\w[^):]*)\)", page.read_text(encoding="utf-8")):
            if not link.endswith(".md"):
                yield page.parent / link


def page(path: Path) -> str:
    """A page of experiments/ with links that hold in the site: docs/ is its root, and holds no programs."""
    text = re.sub(r"\[([^]]+)\]\(\.\./\.\./docs/tools/[^)]+\)", r"\1", path.read_text(encoding="utf-8"))
    return text.replace("](../../docs/", "](../../")


def overview() -> str:
    """experiments/README.md with each page's answer under its link. Raises ValueError for a page without an answer."""
    return _ENTRY.sub(_with_answer, (FOLDER / "README.md").read_text(encoding="utf-8"))


def _with_answer(entry: re.Match[str]) -> str:
    text = (FOLDER / entry["path"]).read_text(encoding="utf-8")
    if (answer := re.search(r"^\*\*Answer\.\*\* (.+?)\n\n", text, re.MULTILINE | re.DOTALL)) is None:
        raise ValueError(f"experiments/{entry['path']} has no paragraph that begins with **Answer.**")
    lines = " ".join(answer[1].split())
    return f"### [{entry['title']}](experiments/{entry['path']})\n\n{lines}\n"
