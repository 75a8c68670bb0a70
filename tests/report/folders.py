"""Run and sweep folders made by hand, as the pipeline leaves them, with numbers that a test can work out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from headdyn.core.json_files import write_json
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import HEADS, MANIFEST, METRICS, SUMMARY
from headdyn.sweep.record import SWEEP, rewrite


def metric(label: str, unit: str, meaning: str = "", **more: Any) -> dict[str, Any]:
    """What a run's glossary says of a metric that may be an outcome."""
    plain = {"meaning": meaning or f"what {label} is", "label": label, "low": None, "high": None, "unit": unit}
    return {**plain, "scale": 1.0, "digits": 3, "difference_unit": "", "outcome": True, **more}


SHARE = {"scale": 100.0, "digits": 1, "difference_unit": "points", "low": 0.0, "high": 1.0}
POINTS = {"scale": 100.0, "digits": 2, "low": -1.0, "high": 1.0}
GLOSSARY = {
    "loss": {
        "about": "Loss on `sequences` held out. Raises ValueError where there are none.",
        "metrics": {
            "loss_nats": metric("held-out loss", "nats", "mean next-token loss", low=0.0),
            "gap_closed": metric("gap closed", "%", **SHARE | {"low": None}),
        },
    },
    "attention": {
        "about": "What heads look at.\n\nThe null is the label swap.",
        "metrics": {
            "selectivity": metric("topic selectivity", "points", "within_ratio minus its label-swap null", **POINTS),
            "within_ratio": metric("within-topic attention", "%", "attention on the query's topic", **SHARE),
            "entropy_nats": metric("attention entropy", "nats", "entropy of attention", low=0.0),
            "sink_rate": metric("attention on position 0", "%", **SHARE),
            "specialisation": metric("specialisation", "share²", digits=5),
        },
    },
    "probes": {
        "about": "What the residual stream tells of topics.",
        "metrics": {"probe_accuracy_middle": metric("probe accuracy at the middle layer", "%", **SHARE)},
    },
    "tensorlens": {
        "about": "Attention of the whole model.",
        "metrics": {
            f"{name}_selectivity_no_self": metric(f"{label} topic selectivity, self left out", "points", **POINTS)
            for name, label in (("raw", "raw attention's"), ("rollout", "rollout's"), ("tensorlens", "TensorLens'"))
        }
        | {"tensorlens_less_raw_no_self": metric("TensorLens less raw attention", "points", **POINTS)},
    },
}
OTHERS = [
    *("within_ratio", "probe_accuracy_middle", "loss_nats", "gap_closed", "raw_selectivity_no_self"),
    *("rollout_selectivity_no_self", "tensorlens_selectivity_no_self", "entropy_nats", "sink_rate", "specialisation"),
]


def measured(
    value: float, half: float = 0.01, *, null: float = 0.0, n: int = 128, unit: str = "sequence", **more: Any
) -> dict[str, Any]:
    """A scalar as summary.json holds it."""
    return {"value": value, "ci_low": value - half, "ci_high": value + half, "null": null, "n": n, "unit": unit, **more}


def scalars(**changes: Any) -> dict[str, Any]:
    """A run's scalars. A change to None takes one away."""
    plain: dict[str, Any] = {
        "random_nats": 4.0,
        "mixture_nats": 3.0,
        "floor_nats": 2.0,
        "snapshot_losses_nats": {"0": 4.1, "100": 3.2, "200": 2.4},
        "train_passes": 3.5,
        "ended_in_pass": 0.5,
        "ended_in_topic": None,
        "tokens_per_second": 20_000.0,
        "loss_nats": measured(2.4, null=4.0, n=256),
        "excess_nats": measured(0.4, n=256),
        "gap_closed": measured(0.8, n=256),
        "within_ratio": measured(0.6, null=0.5),
        "selectivity": measured(0.1, 0.02, p=0.0001, q=0.0002),
        "entropy_nats": measured(2.0, null=3.0),
        "sink_rate": measured(0.05, 0.005, null=0.06),
        "specialisation": measured(0.001, 0.0005),
        "probe_accuracy_middle": measured(0.7, null=0.35),
        "probe_ceiling": measured(0.95),
        "probe_majority": measured(0.34),
        "probe_token_identity": measured(0.345),
        "probe_position": measured(0.35),
    }
    changed = plain | changes
    return {name: value for name, value in changed.items() if value is not None}


def heads(selectivity_LH: np.ndarray, *, step: int = 200) -> HeadTable:
    """A head table with three metrics for every head and probe accuracy for every layer."""
    q_LH = np.where(selectivity_LH > 0.05, 0.001, 0.5)
    common: dict[str, Any] = {"n": 128, "unit": "sequence", "reason": "no queries to divide by"}
    places = len(selectivity_LH) + 1
    accuracy_L = np.linspace(0.34, 0.9, places)
    tables = [
        HeadTable.per_head(
            "selectivity",
            selectivity_LH,
            ci_low=selectivity_LH - 0.01,
            ci_high=selectivity_LH + 0.01,
            null=0.0,
            p=q_LH / 20,  # below 0.05 for every head: what counts is q
            q=q_LH,
            **common,
        ),
        HeadTable.per_head("within_ratio", 0.5 + selectivity_LH, null=np.full_like(selectivity_LH, 0.5), **common),
        HeadTable.per_head("entropy_nats", 2 - selectivity_LH, null=3.0, **common),
        HeadTable.per_layer(
            "probe_accuracy", accuracy_L, ci_low=accuracy_L - 0.02, ci_high=accuracy_L + 0.02, null=0.35, **common
        ),
        HeadTable.per_layer("probe_selectivity", accuracy_L - 0.5, **common),
    ]
    return HeadTable.concat(tables).labelled(run="run", model="mini_qwen3", step=step)


def patterns(path: Path, layers: int, count: int, length: int, *, sequences: int = 2, seed: int = 0) -> None:
    """Causal patterns drawn at random, rows summing to 1, and topics that change in the middle."""
    rng = np.random.default_rng(seed)
    tensors = {
        "tokens": rng.integers(0, 64, (sequences, length)).astype(np.int64),
        "topics": np.tile((np.arange(length) >= length // 2).astype(np.int64), (sequences, 1)),
    }
    for layer in range(layers):
        weight = np.tril(rng.gamma(0.3, size=(sequences, count, length, length)) + 1e-6)
        tensors[f"pattern.{layer}"] = (weight / weight.sum(-1, keepdims=True)).astype(np.float16)
    save_file(tensors, path)


def run(
    sweep: Path,
    *,
    attention: str = "mha",
    ordering: str = "shuffled",
    position: str = "rope",
    seed: int = 0,
    status: str = "complete",
    mode: str = "laptop",
    protocol: str = "corrected",
    settings: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
    selectivity_LH: np.ndarray | None = None,
    length: int = 8,
) -> dict[str, Any]:
    """One run's folder under `sweep`; its entry for sweep.json. `values` change scalars, `settings` the configuration."""
    name = f"{attention}_{ordering}_{position}_s{seed}_{mode}{protocol}"
    folder = sweep / name
    folder.mkdir(parents=True)
    factors = {
        "model": "mini_qwen3",
        "attention": attention,
        "data": "micro_languages",
        "data_ordering": ordering,
        "position_enc": position,
        "mode": mode,
        "protocol": protocol,
        "seed": seed,
    }
    manifest: dict[str, Any] = {
        "status": status,
        "name": name,
        "factors": factors,
        "seed": seed,
        "machine": {"device": "cpu", "precision": "fp32", "threads": 1},
        "config": {
            "mode": {"name": mode},
            "protocol": {"name": protocol},
            "attention": {"name": attention},
            "data_ordering": {"kind": ordering},
            "position_enc": {"name": position},
            "train": {"steps": 200},
            "data": {"seed": seed, "vocab_size": 64},
            "outcomes": {"primary": "selectivity", "others": OTHERS},
            "seed": seed,
            **(settings or {}),
        },
        "started": f"2026-01-0{1 + seed}T00:00:00+00:00",
        "versions": {"headdyn": "0.1.0", "torch": "2.13.0"},
        "python": "3.11.0",
        "git": "0123456789ab",
        "stages": {
            "corpus": {"key": f"corpus{seed}", "built": True, "build_seconds": 1.0},
            "training": {
                "key": f"training-{attention}-{ordering}-{seed}",
                "built": position == "rope",
                "build_seconds": 9.0,
            },
        },
        "seconds": {"training": 9.0, "total": 12.0},
        "peak_memory_bytes": 2**28,
        "glossary": GLOSSARY,
        "corpus": {"name": "micro", "topic_names": ["rivers", "trains"], "facts": {"generator": "matched"}},
    }
    if status != "complete":
        manifest |= {"error": "RuntimeError: the loss is no number <b>", "traceback": "Traceback: line 1"}
        write_json(folder / MANIFEST, manifest)
        return {"name": name, "factors": factors}
    recovery = {}
    if position == "drope":
        losses = {"0": 3.1, "4": 2.8, "8": 2.5}
        recovery = {
            "recalibration": {
                "steps": 8,
                "val_loss_nats": losses,
                "parent_loss_nats": 2.4,
                "recovered": False,
                "recovered_within_nats": 0.05,
            },
            "recovered": False,
        }
    write_json(folder / MANIFEST, manifest)
    write_json(folder / SUMMARY, scalars(**recovery | dict(values or {})))
    series = [(0, 4.1), (100, 3.2), (150, 2.9), (200, 2.4)]
    lines = [f'{{"step": {step}, "name": "val_loss_nats", "value": {loss}}}\n' for step, loss in series]
    (folder / METRICS).write_text("".join(lines))
    if selectivity_LH is None:
        selectivity_LH = np.array([[0.0, 0.3], [0.02, -0.04]])
    heads(selectivity_LH).write(folder / HEADS)
    patterns(folder / "patterns.safetensors", *selectivity_LH.shape, length, seed=len(name))
    return {"name": name, "factors": factors}


def sweep(
    folder: Path,
    jobs: Sequence[Mapping[str, Any]],
    pairs: Sequence[Mapping[str, Any]] = (),
    swept: Sequence[str] | None = None,
) -> Path:
    """sweep.json and what is computed over the runs; `swept` is by default what differs between them."""
    content = {
        "name": folder.name,
        "command": "python -m headdyn.run -m x=1,2",
        "written": "2026-01-09T00:00:00+00:00",
        "jobs": list(jobs),
    } | ({} if swept is None else {"swept": list(swept)})
    write_json(folder / SWEEP, content)
    rewrite(folder, pairs)
    return folder


def matrix(
    folder: Path, *, seeds: Sequence[int] = (0,), selectivity: Any = None, **common: Any
) -> list[dict[str, Any]]:
    """The 2 × 2 × 2 design; `selectivity(attention, ordering, position, seed)` gives each run's."""
    entries = []
    for seed in seeds:
        for attention in ("mha", "gqa"):
            for ordering in ("shuffled", "topic"):
                for position in ("rope", "drope"):
                    cell = {"attention": attention, "ordering": ordering, "position": position, "seed": seed}
                    values = {} if selectivity is None else {"selectivity": measured(selectivity(**cell), 0.02)}
                    entries.append(run(folder, **cell, values=values, **common))
    return entries
