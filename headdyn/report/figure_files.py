"""Figures as files, drawn without a browser: those of a run or a sweep for print, those of a study to commit."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headdyn.core.figures import Figure, rendered
from headdyn.core.json_files import read_json
from headdyn.report.blocks import Heading
from headdyn.report.sweep_page import sections
from headdyn.sweep.record import SweepRecord, is_run


def write_figures(folder: Path, kind: str, out: Path | None = None) -> list[Path]:
    """Draw every figure of a run or a sweep as a file of this kind (core.figures.FORMATS), into `out` or its figures/.

    Stored figures keep the names of their files; figures that a sweep's page draws from records are named by their
    titles. The explorer of heads is left out, because it needs its menus. Returns the files written.
    """
    specs = {path.stem: read_json(path) for path in sorted((folder / "figures").glob("*.json"))}
    if not is_run(folder):
        specs = {name: figure.spec() for name, figure in sweep_figures(SweepRecord.read(folder)).items()} | specs
    out = out or folder / "figures"
    out.mkdir(parents=True, exist_ok=True)
    files = {out / f"{name}.{kind}": spec for name, spec in specs.items()}
    for path, spec in files.items():
        path.write_bytes(rendered(spec, kind))
    return list(files)


def sweep_figures(sweep: SweepRecord) -> dict[str, Figure]:
    """The figures that a sweep's page draws from records, named by their heading and their title.

    Where two sections draw figures of one name, the later one's has the section in front; a third gets a number.
    """
    figures: dict[str, Figure] = {}
    for section in sections(sweep):
        heading = ""
        for block in section.parts:
            heading = block if isinstance(block, Heading) else heading
            for figure in block if isinstance(block, list) else [block]:
                if isinstance(figure, Figure):
                    name = slug(f"{heading} {_title(figure.spec())}")
                    name = f"{section.anchor}_{name}" if name in figures else name
                    figures[f"{name}_{len(figures)}" if name in figures else name] = figure
    return figures


def _title(spec: Mapping[str, Any]) -> str:
    title = spec.get("title", "")
    text = title.get("text", "") if isinstance(title, Mapping) else title
    return text if isinstance(text, str) else " ".join(text)


def slug(title: str) -> str:
    """A figure's title as a file's name."""
    return re.sub(r"\W+", "_", title.lower().replace("δ", "delta").replace("'", ""), flags=re.ASCII).strip("_")
