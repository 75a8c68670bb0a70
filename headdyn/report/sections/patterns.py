"""Attention patterns of heads with a role: for each training and role the same head in every arm of the training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from safetensors import safe_open

from headdyn.core.numbers import fixed, p_value
from headdyn.core.pictures import pattern_grid
from headdyn.report.blocks import Heading, Section, Table, figure_html
from headdyn.report.head_data import PATTERNS, ROLES, heads_of_training, metrics_of_roles
from headdyn.report.sections.training import shared_label
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

_ABOUT = (
    "A role's head in a training is the one with the largest value of the role's metric before any change of positions "
    "(in a series, at the last checkpoint). Its pattern on the first stored sequence stands beside the same head's in "
    "the training's other arms. White lines: a new topic begins. All heads' patterns are under “Heads, layer by layer”."
)

Row = tuple[tuple[int, int], Sequence[Job]]  # a head (layer, head) and the runs to show it in


def section(sweep: SweepRecord) -> Section | None:
    """For each role a picture with one row per training, and a table of the heads' numbers."""
    blocks: list[Any] = [_ABOUT]
    for role in ROLES:
        rows: list[Row] = []
        for siblings in map(_few, sweep.siblings):
            of_checkpoints = len({job.factors.get("revision") for job in siblings}) > 1
            head = heads_of_training(siblings[-1:] if of_checkpoints else siblings).get(role)
            arms = [job for job in siblings if (job.run.folder / PATTERNS).is_file()]
            if head is not None and arms:
                rows.append((head, arms))
        if rows:
            lines = [[job.label, f"{head[0]}.{head[1]}", _facts(job, *head)] for head, arms in rows for job in arms]
            numbers = [job.number for _, arms in rows for job in arms]
            table = Table(columns=["run", "layer.head", "what it measures"], rows=lines, runs=numbers)
            blocks += [Heading(f"The {role} head of each training"), _picture(rows), table]
    return Section("patterns", "Attention patterns of heads with a role", blocks) if len(blocks) > 1 else None


def _picture(rows: Sequence[Row]) -> Markup:
    """One row per training, one column per arm; the place of an arm that a training lacks stays empty."""
    arms = list(dict.fromkeys(_arm(job, jobs) for _, jobs in rows for job in jobs))
    patterns: dict[tuple[int, int], np.ndarray] = {}
    edges = []
    for row, ((layer, head), jobs) in enumerate(rows):
        for job in jobs:
            with safe_open(job.run.folder / PATTERNS, framework="np") as file:
                pattern_QK = file.get_slice(f"pattern.{layer}")[:1, head : head + 1][0, 0]
                topics_T = file.get_tensor("topics")[0]
            patterns[row, arms.index(_arm(job, jobs))] = pattern_QK.astype(np.float32)
        edges.append((np.flatnonzero(np.diff(topics_T)) + 1).tolist())
    size = max(len(pattern_QK) for pattern_QK in patterns.values())
    pattern_RCQK = np.full((len(rows), len(arms), size, size), np.nan)
    for place, pattern_QK in patterns.items():
        pattern_RCQK[place][: len(pattern_QK), : len(pattern_QK)] = pattern_QK
    names = [f"{shared_label(jobs)}: {layer}.{head}" for (layer, head), jobs in rows]
    figure = pattern_grid(pattern_RCQK, rows=names, columns=arms, boundaries=edges)
    return figure_html(figure, [job.number for _, jobs in rows for job in jobs])


def _arm(job: Job, siblings: Sequence[Job]) -> str:
    """The words of a run's label that the other runs of its training lack."""
    shared = shared_label(siblings).split()
    return " ".join(word for word in job.label.split() if word not in shared) or job.label


def _few(siblings: Sequence[Job]) -> Sequence[Job]:
    """All arms of a training, or at most six of its checkpoints, evenly spaced, with the first and the last."""
    if len(siblings) <= 6 or len({job.factors.get("revision") for job in siblings}) == 1:
        return siblings
    return [siblings[round(i * (len(siblings) - 1) / 5)] for i in range(6)]


def _facts(job: Job, layer: int, head: int) -> str:
    """The head's values of the roles' metrics, as far as the run measured them."""
    rows = {row["metric"]: row for row in job.heads.where(layer=layer, head=head).rows() if row["value"] is not None}
    texts = []
    for metric, row in ((job.metric(name), rows[name]) for name in metrics_of_roles(rows).values()):
        q = f" (q {p_value(row['q'])})" if row["q"] is not None else ""
        texts.append(f"{metric.label} {fixed(metric.scale * row['value'], metric.digits)} {metric.unit}".rstrip() + q)
    return ", ".join(texts)
