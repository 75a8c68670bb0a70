"""A run's or a sweep's results as files: figures for print, drawn without a browser, and studies to commit.

Everything is made from the sweep's records, so every number in a study was produced by a command.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headdyn.core.figures import Figure, rendered
from headdyn.core.json_files import read_json
from headdyn.report.blocks import Heading, Section
from headdyn.report.sections.answers import all_statements
from headdyn.report.sections.runs import outcome_table
from headdyn.report.sections.series import changes, verdict_table
from headdyn.report.sweep_page import sections
from headdyn.sweep.record import SweepRecord, is_run
from headdyn.sweep.series_record import read_series

RESULTS = "results.md"
COPIED = ("summary.csv", "timeline.csv", "effects.json", "matched_loss.json", "verdict.json")


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
    for name, spec in specs.items():
        (out / f"{name}.{kind}").write_bytes(rendered(spec, kind))
    return [out / f"{name}.{kind}" for name in specs]


def sweep_figures(sweep: SweepRecord) -> dict[str, Figure]:
    """The figures that a sweep's page draws from records, named by their heading and their title.

    Where two sections draw figures of one name, the second one's starts with its section; a third one's gets a number.
    """
    figures: dict[str, Figure] = {}
    for section in sections(sweep):
        heading = ""
        for block in section.parts:
            heading = block if isinstance(block, Heading) else heading
            for figure in block if isinstance(block, list) else [block]:
                if isinstance(figure, Figure):
                    name = _file_name(heading, figure.spec().get("title", ""))
                    name = f"{section.anchor}_{name}" if name in figures else name
                    figures[f"{name}_{len(figures)}" if name in figures else name] = figure
    return figures


def _file_name(heading: str, title: str | Mapping[str, Any]) -> str:
    text = title.get("text", "") if isinstance(title, Mapping) else title
    words = f"{heading} {text if isinstance(text, str) else ' '.join(text)}"
    return re.sub(r"\W+", "_", words.lower().replace("δ", "delta").replace("'", ""), flags=re.ASCII).strip("_")


def write_study(folder: Path, out: Path) -> list[Path]:
    """Write a sweep's results into `out`, whose README.md is left as it is. Returns the files written.

    results.md has the command, the table and the answers in words; charts are SVG files; tables are copied as they are.
    Raises ValueError for a folder that is no finished sweep's.
    """
    pictures = write_figures(folder, "svg", out)
    copies = [Path(shutil.copyfile(folder / name, out / name)) for name in COPIED if (folder / name).is_file()]
    (out / RESULTS).write_text(_results(SweepRecord.read(folder), pictures), encoding="utf-8")
    return [*pictures, *copies, out / RESULTS]


def _results(sweep: SweepRecord, pictures: Sequence[Path]) -> str:
    manifests = [job.run.manifest for job in sweep.complete]
    lines = [f"# Results of {sweep.name}", ""]
    lines += ["Written by `python -m headdyn.report SWEEP --study FOLDER` from the sweep's records; not edited.", ""]
    lines += [f"    {sweep.command}", ""] if sweep.command else []
    for name, key in (("code", "git"), ("started", "started")):
        values = sorted({str(manifest[key]) for manifest in manifests if manifest.get(key)})
        lines += [f"- {name}: {' to '.join(dict.fromkeys((values[0], values[-1])))}"] if values else []
    machines = {", ".join(f"{k} {v}" for k, v in manifest["machine"].items()) for manifest in manifests}
    lines.append(f"- machine: {' | '.join(sorted(machines))}")
    lines += [f"- group {name}: {settings}" for name, settings in sweep.group_settings.items()]
    lines += [f"- merged: `{source['command']}`" for source in sweep.sources if source.get("command")]
    lines += ["", outcome_table(sweep, sweep.complete).markdown()]
    lines += ["Brackets hold 95 % intervals; null: what chance gives.", ""]
    for job in sweep.failed:
        lines.append(f"- {job.run.name}: {job.run.status}. {job.run.manifest.get('error', 'it left no error')}")
    for statement in all_statements(sweep):
        lines += [f"## {statement.question}" + (f" ({statement.group})" if statement.group else ""), ""]
        lines += [*(f"- {sentence}" for sentence in statement.sentences), ""]
    verdicts = [block for series in read_series(sweep) for block in (Heading(series.title), verdict_table(series))]
    emergence = Section("", "", [block for block in verdicts if isinstance(block, Heading) or block.rows])
    lines += [section.markdown() for section in (emergence, changes(sweep)) if section is not None]
    lines += [f"![{path.stem}]({path.name})\n" for path in pictures]
    return "\n".join(lines).rstrip() + "\n"
