"""Courses of trainings that never were, with the curves that a test wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from headdyn.studies.landmarks.courses import Course


def course(
    steps: Sequence[int],
    metrics: Mapping[str, Sequence[float]],
    *,
    losses: Mapping[int, float] | None = None,
    scalars: Mapping[str, float] | None = None,
    **factors: Any,
) -> Course:
    """A training with these metrics at its snapshots, held-out losses by step, and scalars of its last run."""
    jobs = []
    for k, step in enumerate(steps):
        values = {**(scalars or {}), **{name: column[k] for name, column in metrics.items()}}
        run = SimpleNamespace(value=values.get)
        series = {"val_loss_nats": list((losses or {}).items())}
        given = {"seed": 0, **factors, "revision": f"step{step}"}
        jobs.append(SimpleNamespace(run=run, metrics=series, factors=given, number=k))
    return Course(jobs, ", ".join(f"{k} {v}" for k, v in factors.items()))  # type: ignore[arg-type]
