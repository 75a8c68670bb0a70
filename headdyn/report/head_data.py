"""What the page's script shows of a head: its statistics, its attention patterns, its course over snapshots."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from safetensors import safe_open

from headdyn.core.records import HeadTable
from headdyn.sweep.record import Job

PATTERNS = "patterns.safetensors"
PATTERN_BYTES = 9_000_000  # of all patterns in a page, base64 included
_COLUMNS = ("value", "ci_low", "ci_high", "null", "p", "q")

# What makes a head worth a look: the role, and the metric whose largest value has it.
ROLES: Mapping[str, str] = {
    "most topic-selective": "selectivity",
    "strongest previous-token": "previous_token",
    "strongest induction": "induction",
}


def statistics(job: Job) -> dict[str, dict[str, Any]]:
    """Every head metric of a run: `{metric: {value: [L][H], ci_low: …}}`, None where absent; empty columns left out."""
    out: dict[str, dict[str, Any]] = {}
    for metric in head_metrics(job.heads):
        columns = {name: job.heads.matrix(metric, name) for name in _COLUMNS}
        out[metric] = {name: _rounded(matrix) for name, matrix in columns.items() if not np.isnan(matrix).all()}
    return out


def head_metrics(table: HeadTable) -> list[str]:
    """The metrics that have a value for any head, in the table's order; one absent for all has nothing to show."""
    of_heads = pc.and_(pc.is_valid(table.table["head"]), pc.is_valid(table.table["value"]))
    return list(dict.fromkeys(table.table.filter(of_heads)["metric"].to_pylist()))


def training_course(arms: Sequence[Job]) -> dict[str, Any]:
    """Head metrics over the steps of the training that these arms stand on; {} where fewer than two were analysed.

    Snapshots are those that any arm analysed, the end is the arm whose positions stayed as they were trained.
    """
    tables = {
        int(path.stem.removeprefix("heads_step")): HeadTable.read(path)
        for job in arms
        for path in _snapshot_tables(job.run.folder)
    }
    for job in arms:
        if not job.recalibrated and len(job.heads):
            tables[job.heads.table["step"][0].as_py()] = job.heads
    return _course(tables, log_x=False)


def series_course(jobs: Mapping[int, Job]) -> dict[str, Any]:
    """Head metrics over the checkpoints of a series, by step; {} where fewer than two have a metric."""
    return _course({step: job.heads for step, job in jobs.items()}, log_x=True)


def _course(tables: Mapping[int, HeadTable], *, log_x: bool) -> dict[str, Any]:
    """`{steps, log_x, metrics: {metric: {value: [step][L][H], ci_low: …}}}`; columns that are empty are left out."""
    steps = sorted(tables)
    there = {step: head_metrics(table) for step, table in tables.items()}
    by_metric = {}
    for metric in dict.fromkeys(metric for step in reversed(steps) for metric in there[step]):
        shown = [step for step in steps if metric in there[step]]
        if len(shown) < 2:
            continue
        shape = tables[shown[-1]].matrix(metric).shape
        columns = {}
        for name in ("value", "ci_low", "ci_high", "null"):
            matrices = {step: tables[step].matrix(metric, name) for step in shown}
            if not all(np.isnan(matrix).all() for matrix in matrices.values()):
                columns[name] = [_rounded(matrices.get(step, np.full(shape, np.nan))) for step in steps]
        by_metric[metric] = columns
    return {"steps": steps, "log_x": log_x, "metrics": by_metric} if by_metric else {}


def patterns(jobs: Sequence[Job], budget: int = PATTERN_BYTES) -> dict[int, dict[str, Any]]:
    """Attention patterns by job number, as many sequences and heads as fit the budget; what was left out is said.

    A head has an entry for each kept sequence: the lower triangle row by row, a byte a weight holding 255·√weight (so
    that a weight w is off by at most 0.4 % · √w), deflated and in base64.
    """
    with_patterns = [job for job in jobs if (job.run.folder / PATTERNS).is_file()]
    share = budget // max(1, len(with_patterns))
    return {job.number: _patterns(job, share) for job in with_patterns}


def telling_heads(siblings: Sequence[Job]) -> dict[str, tuple[int, int]]:
    """For one training: the head that has each role most, judged in its first arm (RoPE before what came of it)."""
    first = next((job for job in siblings if not job.recalibrated), siblings[0])
    return telling(first.heads)


def telling(table: HeadTable) -> dict[str, tuple[int, int]]:
    """The head (layer, head) that has each role most, by role; roles whose metric was not measured are left out."""
    there = head_metrics(table)
    found: dict[str, tuple[int, int]] = {}
    for role, metric in ROLES.items():
        if metric in there:
            value_LH = table.matrix(metric)
            layer, head = np.unravel_index(np.nanargmax(value_LH), value_LH.shape)
            found[role] = (int(layer), int(head))
    return found


def _patterns(job: Job, budget: int) -> dict[str, Any]:
    """The first sequence of as many heads as fit, telling ones first; then further sequences, of all heads or none."""
    with safe_open(job.run.folder / PATTERNS, framework="np") as file:
        names = list(file.keys())
        layers = sorted(int(match[1]) for match in (re.fullmatch(r"pattern\.(\d+)", name) for name in names) if match)
        tokens_NT, topics_NT = file.get_tensor("tokens"), file.get_tensor("topics")
        slices = {layer: file.get_slice(f"pattern.{layer}") for layer in layers}
        order = _telling_first(job, [(layer, h) for layer in layers for h in range(slices[layer].get_shape()[1])])
        triangle = np.tril_indices(tokens_NT.shape[1])
        kept: dict[str, list[str]] = {}
        used = sequences = 0
        while sequences < len(tokens_NT):
            packed: dict[str, str] = {}
            for layer, head in order:
                pattern_TT = slices[layer][sequences : sequences + 1, head : head + 1][0, 0]
                text = _packed(pattern_TT[triangle])
                if kept | packed and used + len(text) > budget:
                    break
                used += len(text)
                packed[f"{layer}.{head}"] = text
            if kept and len(packed) < len(order):
                break
            for name, text in packed.items():
                kept.setdefault(name, []).append(text)
            sequences += 1
            if len(packed) < len(order):
                break
    left_out = []
    if sequences < len(tokens_NT):
        left_out.append(f"{sequences} of {len(tokens_NT)} sequences are here")
    if len(kept) < len(order):
        left_out.append(f"{len(kept)} of {len(order)} heads are here, the most telling ones")
    topic_names = job.run.manifest.get("corpus", {}).get("topic_names")
    return {
        "length": tokens_NT.shape[1],
        "sequences": sequences,
        "tokens": tokens_NT[:sequences].tolist(),
        "topics": topics_NT[:sequences].tolist(),
        "topic_names": topic_names or [f"topic {i}" for i in range(int(topics_NT.max()) + 1)],
        "heads": kept,
        "left_out": "; ".join(left_out),
    }


def _telling_first(job: Job, heads: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Heads by the best rank they have in any role, so that a budget drops the dullest."""
    there = [metric for metric in ROLES.values() if metric in head_metrics(job.heads)]
    ranks = []
    for metric in there:
        value_LH = np.nan_to_num(job.heads.matrix(metric), nan=-np.inf)
        place_LH = np.empty(value_LH.size, int)
        place_LH[np.argsort(-value_LH.ravel(), kind="stable")] = np.arange(value_LH.size)
        ranks.append(place_LH.reshape(value_LH.shape))
    return sorted(heads, key=lambda head: min((int(rank[head]) for rank in ranks), default=0))


def _packed(weight_X: np.ndarray) -> str:
    shade_X = np.rint(255 * np.sqrt(weight_X.astype(np.float32))).astype(np.uint8)
    return base64.b64encode(zlib.compress(shade_X.tobytes(), 6)).decode()


def _snapshot_tables(folder: Path) -> list[Path]:
    return sorted(folder.glob("heads_step*.parquet"))


def _rounded(matrix: np.ndarray) -> list[list[float | None]]:
    """As far as any interval of a reader's table asks for; None where absent."""
    return [[None if np.isnan(v) else float(f"{v:.6g}") for v in row] for row in matrix]
