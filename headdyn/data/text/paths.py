"""The files of the user's text below a path. Imports nothing heavy, so that a wrong path is refused at once."""

from pathlib import Path
from typing import Literal

TxtDocuments = Literal["file", "blank_lines"]
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")


def files_of(path: Path) -> tuple[list[Path], int]:
    """The file itself, or every file of a known type under the folder; and how many files of other types it has.

    Hidden files are ignored. Raises ValueError if there is no file to read.
    """
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"data.path={path} is of unknown type {path.suffix!r}; known are {', '.join(SUFFIXES)}")
        if path.stat().st_size == 0:
            raise ValueError(f"data.path={path} is empty; give a file with documents")
        return [path], 0
    if not path.is_dir():
        raise ValueError(f"data.path={path} does not exist; give a file or a folder")
    files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    known = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not known:
        contents = f"{len(files)} files, none" if files else "no files, so none"
        raise ValueError(f"data.path={path} holds {contents} of a known type ({', '.join(SUFFIXES)})")
    return known, len(files) - len(known)
