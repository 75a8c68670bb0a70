"""A sweep's results as files to commit: `python -m headdyn.report SWEEP --study experiments/NAME`.

results.md holds the command, the table and the answers in words; charts are SVG files that stand alone; the tables are
copied as they are. All of it is made from the sweep's records, so that a number in a study is one a command produced.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from headdyn.core.numbers import spelled
from headdyn.report import extension
from headdyn.report.cells import Cell, columns_for, summary_cell
from headdyn.report.figure_files import stored, sweep_figures, write_figure
from headdyn.report.sections.series_changes import changes
from headdyn.report.series.record import Series, read_series
from headdyn.report.series.words import series_statements
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import statements

RESULTS = "results.md"
COPIED = ("summary.csv", "timeline.csv", "effects.json", "matched_loss.json", "verdict.json")

_BAR = r"\|"  # a | inside a cell of a Markdown table


def write_study(sweep_folder: Path, out: Path) -> list[Path]:
    """Write a sweep's results into `out`, leaving a README.md there alone. Returns what was written.

    Raises ValueError for a folder that is no finished sweep's.
    """
    sweep = SweepRecord.read(sweep_folder)
    series = read_series(sweep)
    specs = {name: figure.spec() for name, figure in sweep_figures(sweep).items()} | stored(sweep_folder)
    written = [write_figure(spec, out / f"{name}.svg") for name, spec in specs.items()]
    for name in COPIED:
        if (sweep_folder / name).is_file():
            written.append(Path(shutil.copyfile(sweep_folder / name, out / name)))
    (out / RESULTS).write_text(_results(sweep, series, written), encoding="utf-8")
    return [*written, out / RESULTS]


def _results(sweep: SweepRecord, series: Sequence[Series], written: Sequence[Path]) -> str:
    """The numbers and words of a sweep in Markdown."""
    made = [job.run.manifest for job in sweep.complete]
    lines = [f"# Results of {sweep.name}", ""]
    lines += ["Written by `python -m headdyn.report SWEEP --study FOLDER` from the sweep's records; not edited.", ""]
    if sweep.command:
        lines += [f"    {sweep.command}", ""]
    for name, key in (("code", "git"), ("started", "started")):
        found = sorted({str(manifest[key]) for manifest in made if manifest.get(key)})
        if found:
            lines.append(f"- {name}: {found[0]}" + (f" to {found[-1]}" if len(found) > 1 else ""))
    machines = {", ".join(f"{k} {v}" for k, v in manifest["machine"].items()) for manifest in made}
    lines.append(f"- machine: {' | '.join(sorted(machines))}")
    lines += [f"- group {name}: {settings}" for name, settings in sweep.group_settings.items()]
    lines += [f"- merged: `{source['command']}`" for source in sweep.sources if source.get("command")]
    lines.append("")
    outcomes = columns_for(sweep.complete)
    titles = [f"{m.label} ({m.unit})" if m.unit else m.label for m in map(sweep.metric, outcomes)]
    lines += ["| " + " | ".join(["run", *titles]) + " |", "|" + "---|" * (1 + len(outcomes))]
    for job in sweep.complete:
        lines.append("| " + " | ".join([job.label, *(_spelled(summary_cell(job, name)) for name in outcomes)]) + " |")
    lines += ["", "Brackets hold 95 % intervals; null: what chance gives.", ""]
    for job in sweep.failed:
        lines.append(f"- {job.run.name}: {job.run.status}. {job.run.manifest.get('error', 'it left no error')}")
    for statement in [*series_statements(series), *extension.headlines(sweep), *statements(sweep)]:
        lines += [f"## {statement.question}" + (f" ({statement.group})" if statement.group else ""), ""]
        lines += [*(f"- {sentence}" for sentence in statement.sentences), ""]
    for part in changes(sweep):
        lines += [f"## {part.title}", "", part.text or f"Absent: {part.reason}.", ""]
        lines += ["| metric | value | units | meaning |", "|---|---|---|---|"] if part.rows else []
        for metric, scalar, units, meaning in part.rows:
            value = spelled(scalar) if scalar.get("value") is not None else f"absent: {scalar['reason']}"
            lines.append(f"| {metric} | {value} | {units} | {meaning.replace('|', _BAR)} |")
        lines.append("")
    pictures = [path.name for path in written if path.suffix in (".svg", ".png")]
    lines += [f"![{Path(name).stem}]({name})\n" for name in pictures]
    return "\n".join(lines).rstrip() + "\n"


def _spelled(cell: Cell) -> str:
    if cell.reason:
        return f"absent: {cell.reason}"
    return "; ".join(filter(None, (f"{cell.value} {cell.interval}".strip(), cell.null, cell.note)))
