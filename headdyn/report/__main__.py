"""`headdyn report PATH [PATH …] [--out FOLDER]`: rebuild a report from records, or merge several.

One run or one sweep gets its report.html anew. Several folders are merged into a new one at --out: seeds are pooled
where all other settings agree; runs with other settings form groups of their own. --study and --figures: files.py.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from headdyn.core.figures import FORMATS
from headdyn.core.numbers import count
from headdyn.report.files import write_figures, write_study
from headdyn.report.run_page import write_run_page
from headdyn.report.sweep_page import write_sweep_page
from headdyn.report.terminal import print_summary
from headdyn.sweep.merge import merge
from headdyn.sweep.record import SweepRecord, is_run, matched_loss_json, rewrite, sweep_json, write_run_table
from headdyn.sweep.series_record import collect_series


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 2, with one line on stderr, for folders that no report can be made of."""
    parser = argparse.ArgumentParser(
        prog="headdyn report",
        description="Rebuild the report of a finished run or sweep from its records, or merge several into a new one.",
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a run's folder or a sweep's")
    parser.add_argument("--out", type=Path, help="where the merged report goes; needed for more than one PATH")
    parser.add_argument("--study", type=Path, help="also write a sweep's results here: Markdown, SVG charts, tables")
    parser.add_argument("--figures", choices=FORMATS, help="also draw every figure as such a file, into PATH/figures/")
    arguments = parser.parse_args(argv)
    try:
        folder = build(arguments.paths, arguments.out, arguments.study)
        if arguments.figures:
            files = write_figures(folder, arguments.figures)
            print(f"figures: {folder / 'figures'} ({count(len(files), f'{arguments.figures} file')})")
    except ValueError as error:
        print(f"headdyn report: {error}", file=sys.stderr)
        return 2
    return 0


def build(paths: Sequence[Path], out: Path | None, study: Path | None = None) -> Path:
    """Rebuild or merge; returns the folder that has the report.

    Raises ValueError for an unfinished or a foreign folder, before anything is written.
    """
    console, folder = Console(), out or paths[0]
    if out is None and len(paths) > 1:
        raise ValueError(f"{len(paths)} folders are merged into a new one; name it with --out=FOLDER")
    if out is not None:
        merge(paths, out)
    elif is_run(folder):
        if study is not None:
            raise ValueError(f"{folder} is a single run, and --study writes the results of a sweep; leave it out")
        console.print(f"report: {write_run_page(folder)}", highlight=False, soft_wrap=True)
        return folder
    else:
        sweep_json(folder)
        collect_series(paths)  # refuses damaged records before anything is written
        rewrite(folder, matched_loss_json(folder)["pairs"])
    write_run_table(folder)
    print_summary(console, SweepRecord.read(folder), write_sweep_page(folder))
    if study is not None:
        console.print(f"study: {write_study(folder, study)[-1]}", highlight=False, soft_wrap=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
