"""The answers: every question that a sweep's records can answer, one sentence each, with the details behind it."""

from dataclasses import replace
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import number, p_is, units
from headdyn.report.blocks import Heading, Section, bullets, fold
from headdyn.report.extension import added
from headdyn.report.sections import prompts
from headdyn.sweep.effect_words import ONE_SEED, without_warning
from headdyn.sweep.jobs import of_prompts
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import read_series
from headdyn.sweep.series_words import series_statements
from headdyn.sweep.training_seeds import statements as repeated
from headdyn.sweep.words import Statement, statements

_MORE_SEEDS = "Several seeds, such as seed=0,1,2,3, give intervals, and tell how small an effect they would detect."


def section(sweep: SweepRecord) -> Section:
    """The answers, group by group.

    Packages' verdicts come first, then a single run's primary outcome, trainings with several seeds, series of
    checkpoints, packages' other answers, those of any sweep, and those of a single run on prompts.
    """
    answers = _after_verdicts(sweep)
    if len(sweep.jobs) == 1 and sweep.complete:
        answers = [*_primary(sweep), *answers, *prompts.statements(sweep.complete[0])]
    answers = [*added("verdicts", sweep), *answers]
    settings = sweep.group_settings
    blocks: list[Any] = []
    for group in dict.fromkeys(answer.group for answer in answers):
        blocks += [Heading(f"{group}: {settings[group]}")] if group in settings else []
        of_group = [answer for answer in answers if answer.group == group]
        if sum(ONE_SEED in answer.sentences[0] for answer in of_group) > 1:  # warn once, not in every answer
            blocks.append(f"{ONE_SEED} {_MORE_SEEDS}")
            of_group = [replace(answer, sentences=without_warning(answer.sentences)) for answer in of_group]
        blocks.append(Markup('<dl class="answers">{}</dl>').format(Markup("\n").join(map(_entry, of_group))))
    return Section("answers", "Answers", blocks or ["No complete run has the numbers for any answer."], folded=False)


def all_statements(sweep: SweepRecord) -> list[Statement]:
    """Every answer that the sweep's records, and the packages that its runs name, can give."""
    return [*added("verdicts", sweep), *_after_verdicts(sweep)]


def _after_verdicts(sweep: SweepRecord) -> list[Statement]:
    return [*repeated(sweep), *series_statements(read_series(sweep)), *added("headlines", sweep), *statements(sweep)]


def _primary(sweep: SweepRecord) -> list[Statement]:
    """The primary outcome of one run on a corpus, beside what chance gives."""
    (job,), name = sweep.complete, sweep.primary
    if name is None or of_prompts([job]) or job.scalar(name).get("value") is None:
        return []
    scalar, metric = job.scalar(name), job.metric(name)
    over, null = units(scalar), metric.scale * (scalar.get("null") or 0.0)
    test = f" ({p_is(scalar['p'])})" if scalar.get("p") is not None else ""
    value = f"{metric.spelled(scalar)} {metric.unit}".rstrip() + (f" over {over}" if over else "")
    return [Statement(f"How large is the run's {metric.label}?", [f"{value}; chance gives {number(null)}{test}."])]


def _entry(statement: Statement) -> Markup:
    first, *more = statement.sentences
    first = f"{first[:-1]}." if first.endswith(":") else first
    answer = fold(first, bullets(more)) if more else Markup('<p class="only">{}</p>').format(first)
    return Markup("<dt>{}</dt><dd>{}</dd>").format(statement.question, answer)
