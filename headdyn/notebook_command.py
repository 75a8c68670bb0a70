"""`headdyn notebook [FOLDER]`: put the notebook into a folder and open it with marimo (extra `notebook`)."""

import argparse
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_PACKAGED = Path(__file__).parent / "notebook.py"
NOTEBOOK = _PACKAGED if _PACKAGED.is_file() else Path(__file__).parents[1] / "docs" / "notebook.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Copy the notebook, unless the folder has a copy already, and open it. Returns marimo's exit status."""
    parser = argparse.ArgumentParser(prog="headdyn notebook", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="default: this folder")
    parser.add_argument("--copy", action="store_true", help="copy the notebook and do not open it")
    arguments = parser.parse_args(argv)
    copy = arguments.folder / "headdyn_notebook.py"
    try:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        if not copy.exists():
            shutil.copyfile(NOTEBOOK, copy)
    except OSError as error:
        print(f"headdyn notebook: {error}; name another folder", file=sys.stderr)
        return 2
    print(f"notebook: {copy}")
    if arguments.copy:
        return 0
    if importlib.util.find_spec("marimo") is None:
        print("headdyn: the notebook needs marimo; pip install 'headdyn[notebook]'", file=sys.stderr)
        return 2
    return subprocess.run([sys.executable, "-m", "marimo", "edit", str(copy)], check=False).returncode
