"""A sweep's results as files to commit: `headdyn report SWEEP --study experiments/NAME`.

results.md holds the command, the table and the answers in words; charts are SVG files; tables are copied as they are.
Everything is made from the sweep's records, so every number in a study was produced by a command.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from headdyn.report.blocks import Heading, Section
from headdyn.report.figure_files import write_figures
from headdyn.report.sections import series
from headdyn.report.sections.answers import all_statements
from headdyn.report.sections.summary import outcome_table
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import read_series

RESULTS = "results.md"
COPIED = ("summary.csv", "timeline.csv", "effects.json", "matched_loss.json", "verdict.json")


def write_study(folder: Path, out: Path) -> list[Path]:
    """Write a sweep's results into `out`, whose README.md is left as it is. Returns the files written.

    Raises ValueError for a folder that is no finished sweep's.
    """
    pictures = write_figures(folder, "svg", out)
    copies = [Path(shutil.copyfile(folder / name, out / name)) for name in COPIED if (folder / name).is_file()]
    (out / RESULTS).write_text(_results(SweepRecord.read(folder), pictures), encoding="utf-8")
    return [*pictures, *copies, out / RESULTS]


def _results(sweep: SweepRecord, pictures: Sequence[Path]) -> str:
    """The numbers and words of a sweep in Markdown."""
    manifests = [job.run.manifest for job in sweep.complete]
    lines = [f"# Results of {sweep.name}", ""]
    lines += ["Written by `python -m headdyn.report SWEEP --study FOLDER` from the sweep's records; not edited.", ""]
    lines += [f"    {sweep.command}", ""] if sweep.command else []
    for name, key in (("code", "git"), ("started", "started")):
        facts = sorted({str(manifest[key]) for manifest in manifests if manifest.get(key)})
        lines += [f"- {name}: {' to '.join(dict.fromkeys((facts[0], facts[-1])))}"] if facts else []
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
    verdicts = [block for each in read_series(sweep) for block in (Heading(each.title), series.verdict_table(each))]
    dated = Section("", "", [block for block in verdicts if isinstance(block, Heading) or block.rows])
    lines += [section.markdown() for section in (dated, series.changes(sweep)) if section is not None]
    lines += [f"![{path.stem}]({path.name})\n" for path in pictures]
    return "\n".join(lines).rstrip() + "\n"
