"""Single heads on pages: which heads have a role, and as many attention patterns as fit a page."""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from safetensors import safe_open

from headdyn.core.records import HeadTable
from headdyn.core.run_folder import PATTERNS
from headdyn.sweep.jobs import Job

# Each role, and its metrics: the largest value of the first that was measured gives one of a run's heads the role.
# `selectivity` of text is also that of heads that prefer their own document.
ROLES: Mapping[str, Sequence[str]] = {
    "most topic-selective": ("selectivity_documents", "selectivity"),
    "strongest previous-token": ("previous_token",),
    "strongest induction": ("induction",),
    "largest effect when patched": ("sufficiency_nats",),
    "writes most of the answer": ("answer_direct_nats",),
}


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

    @property
    def sequences(self) -> int:
        return len(self.tokens_NT)

    @property
    def length(self) -> int:
        return self.tokens_NT.shape[1]


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
    heads: dict[str, tuple[int, int]] = {}
    for role, metric in metrics_of_roles(head_metrics(table)).items():
        value_LH = table.matrix(metric)
        layer, head = np.unravel_index(np.nanargmax(value_LH), value_LH.shape)
        heads[role] = (int(layer), int(head))
    return heads


def metrics_of_roles(measured: Container[str]) -> dict[str, str]:
    """The metric that each role goes by, where `measured` are those there are; roles without one are left out."""
    of_role = {role: [metric for metric in metrics if metric in measured] for role, metrics in ROLES.items()}
    return {role: metrics[0] for role, metrics in of_role.items() if metrics}


def patterns_that_fit(jobs: Sequence[Job], budget: int) -> dict[int, RunPatterns]:
    """Attention patterns by job number; together their base64 has at most about `budget` bytes, shared evenly."""
    with_patterns = [job for job in jobs if (job.run.folder / PATTERNS).is_file()]
    return {job.number: _run_patterns(job, budget // len(with_patterns)) for job in with_patterns}


def _run_patterns(job: Job, budget: int) -> RunPatterns:
    """The first sequence of as many heads as fit, those with a role first; then further sequences, if all heads fit."""
    with safe_open(job.run.folder / PATTERNS, framework="np") as file:
        names = list(file.keys())
        layers = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"pattern\.(\d+)", name)))
        tokens_NT, topics_NT = file.get_tensor("tokens"), file.get_tensor("topics")
        slices = {layer: file.get_slice(f"pattern.{layer}") for layer in layers}
        heads = [(layer, head) for layer in layers for head in range(slices[layer].get_shape()[1])]
        below = np.tril_indices(tokens_NT.shape[1])
        fitting = max(1, budget // (4 * (len(below[0]) // 3 + 1)))
        chosen = _by_best_rank(job, heads)[:fitting]
        sequences = min(len(tokens_NT), max(1, fitting // len(heads)))
        codes = {}
        for layer, head in chosen:
            pattern_NTT = slices[layer][:sequences, head : head + 1][:, 0].astype(np.float32)
            code_NX = np.rint(255 * np.sqrt(pattern_NTT[:, *below])).astype(np.uint8)
            codes[layer, head] = [code_X.tobytes() for code_X in code_NX]
    left_out = [f"{sequences} of {len(tokens_NT)} sequences are here"] if sequences < len(tokens_NT) else []
    if len(chosen) < len(heads):
        left_out.append(f"{len(chosen)} of {len(heads)} heads are here, those that rank highest in a role")
    names = job.run.manifest.get("corpus", {}).get("topic_names")
    names = names or [f"topic {i}" for i in range(int(topics_NT.max()) + 1)]
    return RunPatterns(tokens_NT[:sequences], topics_NT[:sequences], names, codes, "; ".join(left_out))


def _by_best_rank(job: Job, heads: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Heads by their best rank in any role, so that a budget leaves out those that rank low in all."""
    ranks = []
    for metric in metrics_of_roles(head_metrics(job.heads)).values():
        value_LH = np.nan_to_num(job.heads.matrix(metric), nan=-np.inf)
        rank = np.argsort(np.argsort(-value_LH.ravel(), kind="stable"), kind="stable")
        ranks.append(rank.reshape(value_LH.shape))
    return sorted(heads, key=lambda head: min((int(rank[head]) for rank in ranks), default=0))
