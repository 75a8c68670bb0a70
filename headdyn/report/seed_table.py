"""The figures of the study that this project repeats, beside ours: only where ours were made as the study's were."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from headdyn.core.numbers import count, fixed, level, spelled
from headdyn.core.statistics import t_interval
from headdyn.sweep.groups import flat
from headdyn.sweep.record import Job, SweepRecord


@dataclass(frozen=True)
class SeedTable:
    """The study's table beside ours, or why it is not shown (`reason`). Cells are (theirs, ours)."""

    source: str = ""
    reason: str = ""
    warning: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[tuple[str, Sequence[tuple[str, str]], Sequence[int]]] = ()
    claims: Sequence[str] = ()
    facts: str = ""


def seed_table(sweep: SweepRecord) -> SeedTable | None:
    """None where no run follows protocol=seed: the study's figures are compared with nothing else."""
    study = _study()
    seed_jobs = [job for job in sweep.jobs if job.factors.get("protocol") == study["protocol"]]
    if not seed_jobs:
        return None
    jobs = [job for job in seed_jobs if job.factors.get("mode") == study["mode"]]
    if not jobs:
        modes = ", ".join(dict.fromkeys(str(job.factors.get("mode")) for job in seed_jobs))
        return SeedTable(
            reason=(
                "The study reports figures for its Run 1 alone (27 M parameters, V 4096, T 512, 10,000 steps). These "
                f"runs follow its protocol at mode={modes}: another corpus and another model, so that its table is no "
                "yardstick for them. mode=run1 protocol=seed repeats Run 1 and shows it here."
            )
        )
    columns = study["columns"]
    rows = []
    for row in study["rows"]:
        cell = {name: row[name] for name in ("attention", "data_ordering", "position_enc")}
        ours = [job for job in jobs if all(job.factors.get(name) == level for name, level in cell.items())]
        pairs = [
            (fixed(theirs, form["decimals"]), _ours(ours, scalar, form["scale"]))
            for theirs, (scalar, form) in zip(row["values"], columns.items(), strict=True)
        ]
        rows.append((" ".join(map(level, cell.values())), pairs, [job.number for job in ours]))
    facts = (
        f"Uniform guessing {study['random_loss_nats']:.4f} nats; the study's own estimate of the floor "
        f"{study['bayes_loss_nats_claimed']} nats; runtime {study['runtime']}."
    )
    titles = [form["title"] for form in columns.values()]
    warning = _deviations(jobs, study["settings"])
    return SeedTable(study["source"], "", warning, titles, rows, study["claims"], facts)


def _ours(jobs: Sequence[Job], scalar: str, scale: float) -> str:
    """One run's value with its interval over sequences, or several seeds' mean with Student's interval over seeds."""
    there = [job.scalar(scalar) for job in jobs if job.scalar(scalar).get("value") is not None]
    if not there:
        reasons = dict.fromkeys(str(job.scalar(scalar).get("reason", "")) for job in jobs)
        return f"absent: {'; '.join(reasons) or 'not run'}"
    if len(there) == 1:
        return spelled(there[0], scale=scale)
    values = np.array([found["value"] for found in there])
    low, high = t_interval(values)
    over = {"value": float(values.mean()), "ci_low": float(low), "ci_high": float(high)}
    return f"{spelled(over, scale=scale)} ({count(len(values), 'seed')})"


def _deviations(jobs: Sequence[Job], settings: Mapping[str, Any]) -> str:
    """What was run otherwise than in the study, so that the two columns are not taken for the same experiment."""
    found: dict[str, None] = {}
    for job in jobs:
        config = flat(job.run.manifest.get("config", {}))
        for key, theirs in settings.items():
            if key in config and config[key] != theirs:
                found[f"{key}={config[key]} where the study had {theirs}"] = None
    return f"Not the study's settings: {'; '.join(found)}." if found else ""


@cache
def _study() -> dict[str, Any]:
    path = Path(__file__).with_name("seed_tables.json")
    return json.loads(path.read_text(encoding="utf-8"))["mini_qwen3_run1"]
