"""The figures of the study's Run 1 beside ours, only for runs that follow the study's protocol."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from headdyn.core.numbers import count, fixed, spelled
from headdyn.core.statistics import effect_over_seeds
from headdyn.report.blocks import Cell, Section, Table, bullets
from headdyn.studies.pages import facts
from headdyn.studies.topic_order import retention
from headdyn.sweep.factors import level_label
from headdyn.sweep.groups import flat
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord


def sections(sweep: SweepRecord) -> list[Section]:
    """The retention of the order's effect and, for runs under protocol=original, the study's figures beside ours."""
    return [*retention.sections(sweep), *_study_beside(sweep)]


def _study_beside(sweep: SweepRecord) -> list[Section]:
    reported = facts("topic_order")
    trainings = [job for job in sweep.jobs if "data_ordering" in job.factors]
    jobs = [job for job in trainings if job.factors.get("protocol") == reported["protocol"]]
    if not jobs:
        return []
    same = [job for job in jobs if job.factors.get("mode") == reported["mode"]]
    blocks = beside(same, reported) if same else [other_modes(jobs)]
    return [Section("beside", "The study's figures beside ours", blocks)]


def other_modes(jobs: Sequence[Job]) -> str:
    """A sentence on why these runs are not compared with the study's table."""
    modes = ", ".join(dict.fromkeys(str(job.factors.get("mode")) for job in jobs))
    return (
        "The study reports figures for its Run 1 alone (27 M parameters, V 4096, T 512, 10,000 steps). These runs "
        f"follow its protocol at mode={modes}: another corpus and another model, so that its table is no yardstick for "
        "them. mode=run1 protocol=original repeats Run 1 and shows it here."
    )


def beside(jobs: Sequence[Job], reported: Mapping[str, Any]) -> list[Any]:
    """The study's table with our values in the same cells."""
    columns = reported["columns"]
    rows, numbers = [], []
    for row in reported["rows"]:
        cell = {name: row[name] for name in ("attention", "data_ordering", "position_enc")}
        ours = [job for job in jobs if all(job.factors.get(name) == level for name, level in cell.items())]
        label = " ".join(level_label(name, level) for name, level in cell.items())
        cells: list[str | Cell] = [label]
        for study_value, (scalar, form) in zip(row["values"], columns.items(), strict=True):
            cells += [Cell(fixed(study_value, form["decimals"])), our_cell(ours, scalar, form["scale"])]
        rows.append(cells)
        numbers.append(" ".join(str(job.number) for job in ours))
    headings = [f"{form['title']}\n{whose}" for form in columns.values() for whose in ("the study", "ours")]
    about = (
        f"Source: {reported['source']}. Uniform guessing {reported['random_loss_nats']:.4f} nats; the study's own "
        f"estimate of the floor {reported['bayes_loss_nats_claimed']} nats; runtime {reported['runtime']}."
    )
    table = Table(columns=["", *headings], rows=rows, runs=numbers)
    claims = Markup("<p>What it claimed:</p>\n") + bullets(reported["claims"])
    return [deviations(jobs, reported["settings"]), table, about, claims]


def our_cell(jobs: Sequence[Job], name: str, scale: float) -> Cell:
    """One run's value with its interval over sequences, or several seeds' mean with Student's interval over seeds."""
    scalars = [job.scalar(name) for job in jobs if job.scalar(name).get("value") is not None]
    if not scalars:
        reasons = dict.fromkeys(str(job.scalar(name).get("reason", "")) for job in jobs)
        return Cell(reason="; ".join(reasons) or "not run")
    scalar, note = scalars[0], ""
    if len(scalars) > 1:
        scalar = vars(effect_over_seeds(np.array([each["value"] for each in scalars])))
        note = count(len(scalars), "seed")
    value, _, interval = spelled(scalar, scale=scale).partition(" ")
    return Cell(value, interval, note=note)


def deviations(jobs: Sequence[Job], settings: Mapping[str, Any]) -> str:
    """The settings that differ from the study's, so that the two columns are not taken for the same experiment."""
    differing = dict.fromkeys(
        f"{key}={config[key]} where the study had {theirs}"
        for config in (flat(job.run.manifest.get("config", {})) for job in jobs)
        for key, theirs in settings.items()
        if key in config and config[key] != theirs
    )
    return f"Not the study's settings: {'; '.join(differing)}." if differing else ""
