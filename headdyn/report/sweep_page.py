"""A sweep's page: the answers, the main picture and the table of effects; everything else folds behind them.

A section is a module of report/sections with a function from the sweep's record to a Section, or to None where the
record has nothing to show; it is one entry of SECTIONS. Packages that runs name add theirs (extension.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from headdyn.core.numbers import count
from headdyn.report import extension
from headdyn.report.looks import key_name, level_of
from headdyn.report.page import write_page
from headdyn.report.section import Section
from headdyn.report.sections import (
    answers,
    effects,
    glossary,
    heads,
    jobs,
    matched_loss,
    patterns,
    probes,
    quality,
    series,
    series_changes,
    series_checkpoints,
    series_curves,
    summary,
    text_topics,
    training,
)
from headdyn.sweep.record import SweepRecord

SECTIONS: Sequence[Callable[[SweepRecord], Section | None]] = (
    jobs.unfinished,
    answers.section,
    series.section,
    effects.section,
    summary.section,
    effects.every_outcome,
    series_curves.section,
    series_changes.section,
    matched_loss.section,
    training.section,
    training.recovery,
    probes.section,
    heads.section,
    patterns.section,
    series_checkpoints.section,
    text_topics.section,
    jobs.section,
    quality.section,
    glossary.section,
)


def write_sweep_page(folder: Path) -> Path:
    """report.html of an ended sweep, from its records alone: one file that opens from disk with no network."""
    sweep = SweepRecord.read(folder)
    made = [section for make in SECTIONS if (section := make(sweep)) is not None]
    added = extension.sections(sweep)
    page = folder / "report.html"
    varied = {key_name(key): {level_of(job, key): level_of(job, key) for job in sweep.jobs} for key in sweep.varied}
    runs = {job.number: {key_name(key): level_of(job, key) for key in sweep.varied} for job in sweep.jobs}
    write_page(page, title=sweep.name, lead=_lead(sweep), sections=_placed(made, added), runs=runs, varied=varied)
    return page


def _placed(made: Sequence[Section], added: Sequence[Section]) -> list[Section]:
    """What packages add stands before the sections of any sweep: its open parts behind the answers, then its folds."""
    opened = [section for section in made if not section.folded]
    lead = [section for section in opened if section.anchor in ("unfinished", "answers")]
    rest = [section for section in opened if section not in lead]
    folded = [section for section in made if section.folded]
    return [*lead, *(s for s in added if not s.folded), *rest, *(s for s in added if s.folded), *folded]


def _lead(sweep: SweepRecord) -> Markup:
    """One line on what the page is of, and its command."""
    parts = [f"{len(sweep.complete)} of {count(len(sweep.jobs), 'run')} complete"]
    seeds = {str(job.factors.get("seed")) for job in sweep.complete}
    parts += [count(len(seeds), "seed")] if seeds else []
    if sweep.written:
        parts.append(f"report of {sweep.written.replace('T', ' ').replace('+00:00', ' UTC')}")
    line = Markup('<p class="soft">{}{}</p>').format(
        " · ".join(parts), Markup('; <b class="failed">{} not</b>').format(len(sweep.failed)) if sweep.failed else ""
    )
    if not sweep.command:
        return line
    command = Markup('<div class="command"><pre id="command">{}</pre><button data-copy="command">copy</button></div>')
    return line + command.format(sweep.command)
