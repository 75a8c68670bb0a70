"""Figures as files, drawn without a browser: those of a run or a sweep for print, those of a study to commit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headdyn.core.figures import Figure, rendered
from headdyn.core.records import read_json
from headdyn.report import extension
from headdyn.report.sections.effects import effect_figures
from headdyn.report.sections.probes import probe_figures
from headdyn.report.sections.training import loss_figures, recovery_figures
from headdyn.report.series.curves import other_curves, primary_curve
from headdyn.report.series.record import Series, read_series
from headdyn.sweep.record import SweepRecord, is_run


def write_figures(folder: Path, kind: str) -> list[Path]:
    """Draw every figure of a run or a sweep into its figures/, as files of this kind (core.figures.FORMATS)."""
    specs = stored(folder)
    if not is_run(folder):
        specs |= {name: figure.spec() for name, figure in sweep_figures(SweepRecord.read(folder)).items()}
    return [write_figure(spec, folder / "figures" / f"{name}.{kind}") for name, spec in specs.items()]


def write_figure(spec: Mapping[str, Any], path: Path) -> Path:
    """Draw one specification as the kind of file that the path's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(rendered(spec, path.suffix[1:]))
    return path


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """The specifications that a run or a sweep stored, by the name of their file."""
    return {path.stem: read_json(path) for path in sorted((folder / "figures").glob("*.json"))}


def sweep_figures(sweep: SweepRecord) -> dict[str, Figure]:
    """The figures of a sweep's page that are drawn from its records, by name."""
    figures: dict[str, Figure] = {}
    for number, each in enumerate(series := read_series(sweep), 1):
        name = "series" if len(series) == 1 else f"series_{number}"
        figures |= {
            f"{name}_{slug(title)}": figure for title, figure in {**_primary(each), **other_curves(each)}.items()
        }
    for name, drawn in {
        "loss": loss_figures(sweep),
        "recovery": recovery_figures(sweep),
        "probes": probe_figures(sweep),
        "effects": effect_figures(sweep, sweep.outcomes.names),
    }.items():
        figures |= {name if len(drawn) == 1 else f"{name}_{slug(title)}": figure for title, figure in drawn.items()}
    return figures | extension.figures(sweep)


def slug(title: str) -> str:
    """A figure's title as a part of a file's name."""
    return re.sub(r"\W+", "_", title.lower().replace("δ", "delta").replace("'", ""), flags=re.ASCII).strip("_")


def _primary(series: Series) -> dict[str, Figure]:
    figure = primary_curve(series)
    return {} if figure is None or series.primary is None else {series.metric(series.primary).label: figure}
