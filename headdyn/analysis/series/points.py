"""The records of a series' runs, one point per revision: the input of every analysis of a series.

Letters as in splits.py: S labelled splits, P pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headdyn.analysis.head_profiles import PROFILES, Profiles, read_profiles
from headdyn.analysis.interventions.pair_rows import succeeds
from headdyn.analysis.interventions.splits import Splits, read_splits
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import HEADS, RunRecord
from headdyn.core.store import file_hash
from headdyn.models.revisions import check_integrity

if TYPE_CHECKING:
    from headdyn.analysis.circuit_factors import Factors

CIRCUITS = "circuits.safetensors"  # in a run's folder: what `head_matching.save_circuits` wrote
SPLITS = ("splits", "control_splits")  # tables of Specialization
CLUSTERS = ("clusterings", "distances")  # tables of HeadClusters
SUCCESSES = ("plain_success", "even_success", "odd_success", "all_success", "source_success")  # shares of right answers
TASK_METRICS = (*SUCCESSES, "plain_nats", "loss_nats")  # how well a model does its task


@dataclass(frozen=True, kw_only=True)
class SplitSummary:
    """One checkpoint's splits in short: the strength of every split, and even/odd pair by pair."""

    splits: Splits
    layer: int
    pairs: tuple[str, ...]
    even_P: np.ndarray  # Δ in nats with the even heads patched
    odd_P: np.ndarray
    strength_S: np.ndarray  # strength of Δ, nats
    success_S: np.ndarray  # strength of success: share of pairs right with one half patched less that with the other
    balanced_S: np.ndarray | None = None  # strength of Δ with bug and control pairs of equal weight; None: no controls

    @classmethod
    def of(cls, table: pa.Table, controls: pa.Table | None = None) -> Self:
        """From the tables `splits` and `control_splits`. Raises ValueError where `splits` holds several layers."""
        layers = pc.unique(table["layer"]).to_pylist()
        if len(layers) != 1:
            raise ValueError(
                f"the splits are of layers {layers}, and a series takes those of one layer; set "
                "analysis.specialization.null_at_every_layer=false"
            )
        splits, delta_SP = read_splits(table, layers[0])
        return cls(
            splits=splits,
            layer=layers[0],
            pairs=tuple(table["pair"].slice(0, delta_SP.shape[1]).to_pylist()),
            even_P=delta_SP[splits.reference],
            odd_P=delta_SP[::-1][splits.reference],
            strength_S=splits.strengths(delta_SP),
            success_S=splits.strengths(succeeds(delta_SP)),
            balanced_S=None if controls is None else splits.balanced(delta_SP, read_splits(controls, layers[0])[1]),
        )


@dataclass(frozen=True, kw_only=True)
class SeriesPoint:
    """One revision of a series. A failed one has its error and nothing else.

    `table` holds the rows of all its analyses. Heads are matched by `circuits` (the weights of one layer's heads) and
    by `profiles` (the behaviour of all heads); `clusters` are the tables that `cluster_divergence` compares. `step` is
    None where the revision's name states no step.
    """

    revision: str
    step: int | None
    table: HeadTable = field(default_factory=lambda: HeadTable.concat([]))
    splits: SplitSummary | None = None
    state_hash: str | None = None
    circuits: Mapping[str, Factors] | None = None
    profiles: Profiles | None = None
    clusters: Mapping[str, pa.Table] | None = None
    error: str | None = None


def in_order(points: Sequence[SeriesPoint]) -> list[SeriesPoint]:
    """The points in the order of training; those without a step come last."""
    return sorted(points, key=lambda point: (point.step is None, point.step or 0))


def with_metric(points: Sequence[SeriesPoint], metric: str) -> dict[int, dict[str, Any]]:
    """The model row of a metric by step, at the points that have a value for it."""
    rows = {point.step: point.table.summary().get(metric, {}) for point in points if point.step is not None}
    return {step: row for step, row in rows.items() if "value" in row}


def excluded_from(points: Sequence[SeriesPoint], final: str | None) -> tuple[dict[str, str], list[list[str]]]:
    """The revisions that do not count, with the reason (failed ones left out), and groups with equal weights.

    `final` is the revision that is the end of training; None is the last of `points`, which are in order.
    """
    hashes = {p.revision: p.state_hash for p in points if p.state_hash is not None}
    last = final or next((p.revision for p in reversed(points) if p.step is not None), None)
    duplicates, excluded = check_integrity(hashes, last)
    stepless = {p.revision: "its name states no step" for p in points if p.step is None and p.error is None}
    return {**excluded, **stepless}, duplicates


_TABLES = (*SPLITS, *CLUSTERS, *PROFILES)


def content_of(record: RunRecord) -> str:
    """SHA-256 of everything that `read_point` reads from a run's folder."""
    digest = hashlib.sha256(repr([record.status, record.manifest.get("error"), _state_hash(record)]).encode())
    for name in (HEADS, CIRCUITS, *(f"{table}.parquet" for table in _TABLES)):
        if (record.folder / name).exists():
            digest.update(f" {name} {file_hash(record.folder / name)}".encode())
    return digest.hexdigest()


def _state_hash(record: RunRecord) -> str | None:
    return record.manifest.get("checkpoint", {}).get("state_hash")


def read_point(record: RunRecord, revision: str, step: int | None) -> SeriesPoint:
    """The point of one revision from its run's folder; a run that is not complete gives a point with its error.

    Reads heads.parquet, the tables and circuits that the run wrote for series, and the weights' hash in the manifest.
    """
    from headdyn.analysis.series.head_matching import load_circuits

    folder = record.folder
    if record.status != "complete":
        return SeriesPoint(revision=revision, step=step, error=record.manifest.get("error") or f"run {record.status}")
    paths = {name: folder / f"{name}.parquet" for name in _TABLES}
    tables = {name: pq.read_table(path) for name, path in paths.items() if path.exists()}
    return SeriesPoint(
        revision=revision,
        step=step,
        table=record.heads(),
        splits=SplitSummary.of(tables["splits"], controls=tables.get("control_splits")) if "splits" in tables else None,
        state_hash=_state_hash(record),
        circuits=load_circuits(folder / CIRCUITS) if (folder / CIRCUITS).exists() else None,
        profiles=read_profiles({name: tables[name] for name in PROFILES if name in tables}) or None,
        clusters={name: tables[name] for name in CLUSTERS} if set(tables) >= set(CLUSTERS) else None,
    )
