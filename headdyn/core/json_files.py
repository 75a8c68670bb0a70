"""JSON files: written whole or not at all, and read with errors that name the file. Imports nothing heavy."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headdyn.core.whole_files import whole_file


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    with whole_file(path) as file:
        file.write_text(text, encoding="utf-8")


def json_lines(path: Path, encoding: str = "utf-8-sig") -> Iterator[tuple[str, Any]]:
    """The place, FILE:LINE, and the content of every line that is not blank.

    Raises ValueError, which names the line, for one that is not JSON.
    """
    with path.open(encoding=encoding) as file:
        for number, line in enumerate(file, 1):
            try:
                if line.strip():
                    yield f"{path}:{number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number} is not JSON ({error}); mend or remove the line") from error


def read_json(path: Path) -> Any:
    """The JSON at `path`. Raises ValueError, which names the file and what to do, if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged, it holds no JSON ({error}); run its command again") from error
