"""A sweep's page: the answers, the main picture and the table of effects; all other sections are folded.

Each entry of SECTIONS is a function in a module of report/sections: it makes a Section from the sweep's record, or
returns None where the record has nothing to show. Packages that runs name add their own sections (extension.py).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from headdyn.core.numbers import capital, count
from headdyn.report.blocks import Section
from headdyn.report.extension import added
from headdyn.report.looks import key_name, level_of
from headdyn.report.page import PAGE, made_of, write_page
from headdyn.report.sections import (
    answers,
    effects,
    glossary,
    heads,
    jobs,
    patterns,
    probes,
    quality,
    runs,
    series,
    text_topics,
    training,
    training_seeds,
)
from headdyn.sweep.record import SweepRecord

SECTIONS: Sequence[Callable[[SweepRecord], Section | None]] = (
    jobs.unfinished,
    answers.section,
    training_seeds.section,
    series.verdict,
    effects.section,
    runs.summary,
    effects.every_outcome,
    series.over_training,
    series.changes,
    effects.at_matched_loss,
    training.section,
    training.recovery,
    probes.section,
    heads.section,
    patterns.section,
    series.checkpoints,
    text_topics.section,
    jobs.section,
    quality.section,
    glossary.section,
)


def write_sweep_page(folder: Path) -> Path:
    """Write report.html of an ended sweep from its records alone."""
    sweep = SweepRecord.read(folder)
    levels = {job.number: {key_name(key): level_of(job, key) for key in sweep.varied} for job in sweep.jobs}
    return write_page(folder / PAGE, title(sweep), _lead(sweep), sections(sweep), levels, made_of(sweep))


def title(sweep: SweepRecord) -> str:
    """The page's title: `Matrix: order × attention × positions (smoke)`, `mini qwen3: 6 checkpoints (laptop)`."""
    names = {str(job.factors.get("experiment") or job.factors.get("model") or "") for job in sweep.jobs}
    modes = {str(job.factors.get("mode") or "") for job in sweep.jobs}
    name = (names.pop().replace("_", " ") if len(names) == 1 else "") or sweep.name
    factors = [key_name(factor.name) for factor in sweep.factors]
    revisions = sweep.varied.get("revision", ())
    factors += [count(len(revisions), "checkpoint")] if revisions else []
    mode = f" ({modes.pop()})" if len(modes) == 1 and any(modes) else ""
    return f"{capital(name)}{': ' if factors else ''}{' × '.join(factors)}{mode}"


def sections(sweep: SweepRecord) -> list[Section]:
    """The sections of a sweep's page in order: open ones, then folded ones.

    Jobs that did not finish and the answers come first. After them, among open and among folded sections, those that
    packages add come before headdyn's own.
    """
    own = [section for make in SECTIONS if (section := make(sweep)) is not None]
    first = [section for section in own if section.anchor in ("unfinished", "answers")]
    ordered = [*first, *added("sections", sweep), *(section for section in own if section not in first)]
    return sorted(ordered, key=lambda section: section.folded)


def _lead(sweep: SweepRecord) -> Markup:
    """One line about the sweep, and its command."""
    parts = [sweep.name, f"{len(sweep.complete)} of {count(len(sweep.jobs), 'run')} complete"]
    seeds = {str(job.factors.get("seed")) for job in sweep.complete}
    parts += [count(len(seeds), "seed")] if seeds else []
    if sweep.written:
        parts.append(f"report of {sweep.written.replace('T', ' ').replace('+00:00', ' UTC')}")
    failed = Markup('; <b class="failed">{} not</b>').format(len(sweep.failed)) if sweep.failed else ""
    line = Markup('<p class="soft">{}{}</p>').format(" · ".join(parts), failed)
    command = Markup('<div class="command"><pre id="command">{}</pre><button data-copy="command">copy</button></div>')
    return line + command.format(sweep.command) if sweep.command else line
