"""The answers: every question that a sweep's records can answer, one sentence each, with the details behind it."""

from __future__ import annotations

from markupsafe import Markup

from headdyn.report import extension
from headdyn.report.markup import bullets, fold, heading, soft
from headdyn.report.section import Section
from headdyn.report.sections import prompts
from headdyn.report.sections.jobs import group_settings
from headdyn.report.series.record import read_series
from headdyn.report.series.words import series_statements
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import Statement, statements


def section(sweep: SweepRecord) -> Section:
    """Questions about series first, then those of packages that runs name, then what any sweep can be asked."""
    answered = [*series_statements(read_series(sweep)), *extension.headlines(sweep), *statements(sweep)]
    if len(sweep.complete) == 1:
        answered += prompts.statements(sweep.complete[0])
    settings = group_settings(sweep)
    parts = []
    for group in dict.fromkeys([*(statement.group for statement in answered)]):
        if group in settings:
            parts.append(heading(f"{group}: {settings[group]}"))
        mine = [statement for statement in answered if statement.group == group]
        parts.append(Markup('<dl class="answers">{}</dl>').format(Markup("\n").join(map(_entry, mine))))
    if not answered:
        parts.append(soft("No complete run has the numbers that the sentences are made of."))
    return Section("answers", "Answers", Markup("\n").join(parts), folded=False)


def _entry(statement: Statement) -> Markup:
    first, *more = statement.sentences
    first = f"{first[:-1]}." if first.endswith(":") else first
    answer = fold(first, bullets(more)) if more else Markup('<p class="only">{}</p>').format(first)
    return Markup("<dt>{}</dt><dd>{}</dd>").format(statement.question, answer)
