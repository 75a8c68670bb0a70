"""Heads with a role, pictures of their attention patterns, and the patterns of as many heads as fit into a page."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from markupsafe import Markup
from safetensors import safe_open

from headdyn.core.figures import Figure
from headdyn.core.numbers import fixed, p_value
from headdyn.core.pictures import pattern_grid
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import PATTERNS
from headdyn.report.blocks import Heading, Section, Table, figure_html
from headdyn.report.sections.training import shared_label
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

# Each role and its metrics: the head with the largest value of the first metric that was measured has the role.
# On text, `selectivity` comes last, because it is also large for heads that prefer their own document.
ROLES: Mapping[str, Sequence[str]] = {
    "most topic-selective": ("selectivity_documents", "selectivity"),
    "strongest previous-token": ("previous_token",),
    "strongest induction": ("induction",),
    "largest effect when patched": ("sufficiency_nats",),
    "writes most of the answer": ("answer_direct_nats",),
}
_ABOUT = (
    "In each training the head with the largest value of a role's metric before any change of positions (in a series, "
    "at the last checkpoint) has the role. Its pattern on the first stored sequence stands beside the same head's in "
    "the training's other arms. White lines: a new topic begins. All heads' patterns are under “Heads, layer by layer”."
)
_SEQUENCES = 2  # rows of a run's figure: a head's role should be visible on both sequences
Row = tuple[tuple[int, int], Sequence[Job]]  # a head (layer, head) and the runs to show it in


def head_metrics(table: HeadTable) -> list[str]:
    """The metrics that have a value for at least one head, in the table's order."""
    of_heads = pc.and_(pc.is_valid(table.table["head"]), pc.is_valid(table.table["value"]))
    return list(dict.fromkeys(table.table.filter(of_heads)["metric"].to_pylist()))


def heads_of_training(siblings: Sequence[Job]) -> dict[str, tuple[int, int]]:
    """The head (layer, head) with each role, by role, in the training's arm before any change of positions."""
    first = next((job for job in siblings if not job.recalibrated), siblings[0])
    return heads_by_role(first.heads)


def heads_by_role(table: HeadTable) -> dict[str, tuple[int, int]]:
    """The head (layer, head) with each role, by role; roles whose metric was not measured are left out."""
    by_role = {role: table.matrix(metric) for role, metric in metrics_of_roles(head_metrics(table)).items()}
    return {role: divmod(int(np.nanargmax(value_LH)), value_LH.shape[1]) for role, value_LH in by_role.items()}


def metrics_of_roles(measured: Container[str]) -> dict[str, str]:
    """By role, the first of its metrics that is among `measured`; roles without one are left out."""
    of_role = {role: [metric for metric in metrics if metric in measured] for role, metrics in ROLES.items()}
    return {role: metrics[0] for role, metrics in of_role.items() if metrics}


def patterns_by_role(table: HeadTable, path: Path) -> Figure:
    """A column for each head with a role, a row for each stored sequence (two at most), with topic boundaries.

    `path` is the run's patterns.safetensors. Without attention statistics no head has a role; head 0.0 is shown then.
    """
    roles: dict[tuple[int, int], list[str]] = {}
    for role, head in (heads_by_role(table) or {"no roles were measured": (0, 0)}).items():
        roles.setdefault(head, []).append(role)
    with safe_open(path, framework="np") as file:
        topics_NT = file.get_tensor("topics")[:_SEQUENCES]
        slices = [file.get_slice(f"pattern.{layer}")[: len(topics_NT), head : head + 1] for layer, head in roles]
    boundaries = [(np.flatnonzero(np.diff(topics_T)) + 1).tolist() for topics_T in topics_NT]
    return pattern_grid(
        np.concatenate(slices, axis=1).astype(np.float32),
        rows=[f"sequence {n}" for n in range(1, len(topics_NT) + 1)],
        columns=[f"{' and '.join(names)}\nlayer {layer}, head {head}" for (layer, head), names in roles.items()],
        boundaries=boundaries,
        title="Attention patterns" + (" (lines: a new topic begins)" if any(boundaries) else ""),
    )


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
    """The head's values of the roles' metrics that the run measured."""
    rows = {row["metric"]: row for row in job.heads.where(layer=layer, head=head).rows() if row["value"] is not None}
    texts = []
    for metric, row in ((job.metric(name), rows[name]) for name in metrics_of_roles(rows).values()):
        q = f" (q {p_value(row['q'])})" if row["q"] is not None else ""
        texts.append(f"{metric.label} {fixed(metric.scale * row['value'], metric.digits)} {metric.unit}".rstrip() + q)
    return ", ".join(texts)


@dataclass(frozen=True)
class RunPatterns:
    """The patterns of one run that a page holds, of N sequences of T tokens.

    `codes` holds for each head (layer, head) one byte string per sequence: the lower triangle of its pattern, row by
    row, each weight w as the byte 255·√w, so that w is off by at most 0.4 % · √w. `left_out` says what did not fit.
    """

    tokens_NT: np.ndarray
    topics_NT: np.ndarray
    topic_names: Sequence[str]
    codes: Mapping[tuple[int, int], Sequence[bytes]]
    left_out: str


def patterns_that_fit(jobs: Sequence[Job], budget: int) -> dict[int, RunPatterns]:
    """Attention patterns by job number; together their base64 has at most about `budget` bytes, shared evenly."""
    with_patterns = [job for job in jobs if (job.run.folder / PATTERNS).is_file()]
    return {job.number: _run_patterns(job, budget // len(with_patterns)) for job in with_patterns}


def _run_patterns(job: Job, budget: int) -> RunPatterns:
    """The first sequence of as many heads as fit, those with a role first; then further sequences, if all heads fit."""
    with safe_open(job.run.folder / PATTERNS, framework="np") as file:
        names = list(file.keys())
        layers = sorted(int(name.removeprefix("pattern.")) for name in names if name.startswith("pattern."))
        tokens_NT, topics_NT = file.get_tensor("tokens"), file.get_tensor("topics")
        slices = {layer: file.get_slice(f"pattern.{layer}") for layer in layers}
        heads = [(layer, head) for layer in layers for head in range(slices[layer].get_shape()[1])]
        lower_triangle = np.tril_indices(tokens_NT.shape[1])
        fitting = max(1, budget // (4 * (len(lower_triangle[0]) // 3 + 1)))
        chosen = _by_best_rank(job, heads)[:fitting]
        sequences = min(len(tokens_NT), max(1, fitting // len(heads)))
        codes = {}
        for layer, head in chosen:
            pattern_NTT = slices[layer][:sequences, head : head + 1][:, 0].astype(np.float32)
            code_NX = np.rint(255 * np.sqrt(pattern_NTT[:, *lower_triangle])).astype(np.uint8)
            codes[layer, head] = [code_X.tobytes() for code_X in code_NX]
    left_out = [f"{sequences} of {len(tokens_NT)} sequences are here"] if sequences < len(tokens_NT) else []
    if len(chosen) < len(heads):
        left_out.append(f"{len(chosen)} of {len(heads)} heads are here, those that rank highest in a role")
    numbered = [f"topic {i}" for i in range(int(topics_NT.max()) + 1)]
    names = job.run.manifest.get("corpus", {}).get("topic_names") or numbered
    return RunPatterns(tokens_NT[:sequences], topics_NT[:sequences], names, codes, "; ".join(left_out))


def _by_best_rank(job: Job, heads: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Heads by their best rank in any role, so that a budget leaves out those that rank low in all."""
    ranks = []
    for metric in metrics_of_roles(head_metrics(job.heads)).values():
        value_LH = np.nan_to_num(job.heads.matrix(metric), nan=-np.inf)
        rank = np.argsort(np.argsort(-value_LH.ravel(), kind="stable"), kind="stable")
        ranks.append(rank.reshape(value_LH.shape))
    return sorted(heads, key=lambda head: min((int(rank[head]) for rank in ranks), default=0))
