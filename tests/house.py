"""The index of files in docs/house.md, made from the first sentence of every module's docstring.

`python -m tests.house` (or `make index`) writes it anew; tests/test_house.py fails where it is out of date.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "docs" / "house.md"
BEGIN, END = "<!-- index of files: begin -->", "<!-- index of files: end -->"


def modules() -> list[Path]:
    """Every module of the package, folders' own `__init__.py` where they say something."""
    return [file for file in sorted((ROOT / "headdyn").rglob("*.py")) if "conf" not in file.parts and sentence(file)]


def sentence(file: Path) -> str:
    """The first sentence of a module's docstring, without its full stop; "" for an empty `__init__.py`."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return paragraph.split(". ")[0].removesuffix(".")


def index() -> str:
    """One heading a folder, one line a module."""
    lines: list[str] = []
    folder = None
    for file in sorted(modules(), key=lambda file: (file.parent, file.name != "__init__.py", file.name)):
        if file.parent != folder:
            folder = file.parent
            lines += ["", f"**{folder.relative_to(ROOT)}/**", ""]
        lines.append(f"- `{file.name}` {sentence(file)}")
    return "\n".join(lines).strip()


def with_index(text: str) -> str:
    """The document with the index as it is now."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{index()}\n\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    HOUSE.write_text(with_index(HOUSE.read_text(encoding="utf-8")), encoding="utf-8")
