"""Sweeps of checkpoints made by hand, as judge_series leaves them, with numbers that a test can work out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headdyn.core.figures import Curve, curves
from headdyn.core.json_files import write_json
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import HEADS, MANIFEST, SUMMARY
from headdyn.sweep.record import VERDICT
from tests.report.folders import metric, sweep

STEPS = (1_000, 32_000, 64_000, 143_000)
TRAINING = 143_000
PAIRS = ("9.8/9.11", "3.4/3.34")
SPLITS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))  # of four heads; even/odd is number 1


RIGHT = {"scale": 100.0, "digits": 1, "difference_unit": "points", "low": 0.0, "high": 1.0}
GLOSSARY = {
    "specialization": {
        "about": "Patches `groups` of heads.",
        "metrics": {
            "plain_success": metric("nothing patched", "% right", **RIGHT),
            "even_success": metric("even heads patched", "% right", **RIGHT),
            "odd_success": metric("odd heads patched", "% right", **RIGHT),
            "all_success": metric("all heads patched", "% right", **RIGHT),
            "strength": metric(
                "strength", "even − odd, share of pairs", "even_success − odd_success", low=-1.0, high=1.0, digits=2
            ),
            "strength_nats": metric("strength of Δ", "even − odd, nats", "the same of Δ"),
            "control_strength_nats": metric("strength of Δ on controls", "even − odd, nats"),
        },
    },
    "original_patching": {
        "about": "Patches as the study did.",
        "metrics": {
            "original_strength": metric(
                "strength as the study judged it", "one prompt, −1, 0 or 1", digits=0, outcome=False
            )
        },
    },
    "head_clusters": {
        "about": "Clusters heads.",
        "metrics": {
            "qk_best_silhouette": metric("silhouette, QK circuits", "best of all clusterings"),
            "ov_best_silhouette": metric("silhouette, OV circuits", "best of all clusterings"),
        },
    },
}


def scalar(value: float, half: float = 0.125, **more: Any) -> dict[str, Any]:
    """A measured scalar over 32 pairs."""
    return {"value": value, "ci_low": value - half, "ci_high": value + half, "n": 32, "unit": "pair", **more}


def scalars(even: float, odd: float, nats: float, **more: Any) -> dict[str, Any]:
    """What a run on prompts records. A change to None takes one away."""
    plain = {
        "plain_success": scalar(0.25),
        "even_success": scalar(even),
        "odd_success": scalar(odd),
        "all_success": scalar(even),
        "plain_nats": scalar(-1.0),
        "strength": scalar(even - odd, null=0.0),
        "strength_nats": scalar(nats, null=0.0, p=1 / 3),
        "strength_rank": {"value": 1.0, "null": 3.5, "p": 1 / 6, "n": 6, "unit": "split"},
        "control_strength_nats": scalar(0.5, n=16),
        **more,
    }
    return {name: value for name, value in plain.items() if value is not None}


def run(
    root: Path,
    step: int,
    values: Mapping[str, Any] | None,
    *,
    protocol: str = "corrected",
    model: str = "some/suite",
    state: str | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """One checkpoint's folder; its entry for sweep.json. Without values it failed."""
    name = f"{model.rpartition('/')[2]}_step{step}_{protocol}"
    folder = root / name
    folder.mkdir(parents=True)
    factors = {
        "model": "huggingface",
        "data": "comparisons",
        "mode": "laptop",
        "protocol": protocol,
        "experiment": "even_odd_emergence",
        "revision": f"step{step}",
        "seed": 0,
    }
    facts: dict[str, Any] = {
        "status": "complete",
        "name": name,
        "factors": factors,
        "seed": 0,
        "machine": {"device": "cpu", "precision": "bf16", "threads": 1},
        "config": {
            "model": {"kind": "pretrained", "name": model, "revision": f"step{step}"},
            "protocol": {"name": protocol},
            "study": "headdyn.studies.even_odd_emergence",
        },
        "started": "2026-01-01T00:00:00+00:00",
        "versions": {"headdyn": "0.1.0"},
        "python": "3.11.0",
        "git": "0123456789ab",
        "stages": {},
        "seconds": {"total": 2.0},
        "glossary": GLOSSARY,
        "checkpoint": {
            "name": model,
            "revision": f"step{step}",
            "dtype": "float32",
            "state_hash": state or f"{step:064d}",
        },
        **(manifest or {}),
    }
    if values is None:
        write_json(folder / MANIFEST, facts | {"status": "failed", "error": "ValueError: the file is cut off"})
        return {"name": name, "factors": factors}
    write_json(folder / MANIFEST, facts)
    write_json(folder / SUMMARY, values)
    rows = [{"metric": "head_effect_nats", "layer": 1, "head": h, "value": 0.25 * h, "n": 32} for h in range(4)]
    rows += [{"metric": "strength_nats", "layer": layer, "value": float(layer), "n": 32} for layer in range(3)]
    rows += [{"metric": "effect_nats", "layer": i // 4, "head": i % 4, "value": 0.1 * i, "n": 32} for i in range(12)]
    HeadTable.from_rows(rows).write(folder / HEADS)
    splits(folder / "splits.parquet", values["strength_nats"]["value"])
    return {"name": name, "factors": factors}


def splits(path: Path, strength_nats: float) -> None:
    """Δ of six splits and two pairs: even heads give half of `strength_nats`, odd ones minus that, the others ±0.1."""
    delta = {0: 0.1, 1: strength_nats / 2, 2: 0.0, 3: 0.0, 4: -strength_nats / 2, 5: -0.1}
    rows = [
        {
            "layer": 1,
            "split": s,
            "heads": sum(2**h for h in SPLITS[s]),
            "is_reference": s == 1,
            "pair": p,
            "delta_nats": d,
        }
        for s, d in delta.items()
        for p in PAIRS
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def judgement_at(at: int | None, after: int | None, **more: Any) -> dict[str, Any]:
    """A measure's verdict: emerged in (after, at], or not."""
    plain: dict[str, Any] = {
        "rule": "above 0.5",
        "threshold": 0.5,
        "n": 32,
        "p": 0.25,
        "beyond_chance": at is not None,
        "against_chance": "p = 0.25 among 6 splits, maximum over 4 checkpoints",
        "emerges_after_step": after,
        "emerges_at_step": at,
        "emerges_after_share": None if after is None else after / TRAINING,
        "emerges_at_share": None if at is None else at / TRAINING,
        "class": "none" if at is None else "mid",
        "possible_classes": ["none"] if at is None else ["early", "mid"],
        "rise": 1.0,
        "rise_steps": [1_000, 143_000],
        "jump_steps": [32_000, 64_000],
        "jump_share": 0.75,
        "jump_width_share": 32 / 143,
        "pace": None if at is None else "sudden",
        "monotone": True,
        "reversals": 0,
        "highest": 1.0,
        "last": 1.0,
        "hypotheses": {
            f"H{i}": {
                "statement": f"statement {i}",
                "verdict": "supported" if i == 5 and at is not None else "rejected",
                "evidence": f"evidence {i}",
                "probability": 0.875,
            }
            for i in range(1, 6)
        },
        "probabilities": {"none": 0.0, "early": 0.125, "mid": 0.875, "late": 0.0, "sudden": 0.75, "gradual": 0.25},
        "emerges_at_step_95": [32_000, 64_000],
    }
    if at is None:
        plain |= {"none_reason": "it never rises above 0.5: its highest value is 0.25"}
        del plain["emerges_at_step_95"]
    return plain | more


def verdict(
    at: int | None = 64_000, after: int | None = 32_000, *, found: bool | None = None, **more: Any
) -> dict[str, Any]:
    """A series' verdict on both measures of even/odd."""
    found = at is not None if found is None else found
    return {
        "checkpoints": len(STEPS),
        "counted": [f"step{step}" for step in STEPS],
        "excluded": {},
        "duplicates": [],
        "failed": {},
        "unmeasured": [],
        "unhashed": [],
        "total_steps": TRAINING,
        "widest_interval": {"steps": [64_000, 143_000], "training_share": 79 / 143},
        "split": {
            "found": found,
            "p": 1 / 3 if found else 1.0,
            "least_possible_p": 1 / 3,
            "at_step": 143_000,
            "splits": 6,
            "exact": True,
            "layer": 1,
            "pairs": 32,
            "strongest_split": [0, 2] if found else [0, 1],
            "is_strongest": found,
        },
        "measures": {
            "strength": judgement_at(at, after),
            "strength_nats": judgement_at(at, after, rule="above half of its highest value"),
        },
        "agreement": {"class": True, "pace": True, "emerges_at_step": True},
        "capability": {"even_success": {"appearances": 1, "disappearances": 0, "last": 1.0}},
        "heads": {
            "kept_to_next": {"1000-32000": 0.5, "32000-64000": 1.0},
            "kept_to_last": {"1000": 0.25},
            "chance": 0.25,
        },
        **more,
    }


def series(
    root: Path,
    entries: Sequence[Mapping[str, Any]],
    verdict: Mapping[str, Any],
    values: Sequence[Mapping[str, Any] | None],
    **columns: Sequence[Any],
) -> Path:
    """A sweep of one series from its runs: sweep.json, verdict.json and the timeline."""
    first = {name: value for name, value in entries[0]["factors"].items() if name != "revision"}
    rows = []
    for k, (entry, metrics) in enumerate(zip(entries, values, strict=True)):
        revision = entry["factors"]["revision"]
        reason = verdict["excluded"].get(revision) or verdict["failed"].get(revision)
        row: dict[str, Any] = {
            "revision": revision,
            "step": int(revision.removeprefix("step")),
            "training_share": int(revision.removeprefix("step")) / TRAINING,
            "counts": reason is None,
            "reason": reason,
            "state_hash": None if metrics is None else f"{int(revision.removeprefix('step')):064d}",
            "series": 0,
        }
        for name, scalar in (metrics or {}).items():
            row[name] = scalar.get("value")
            row |= {f"{name}_{part}": scalar.get(part) for part in ("ci_low", "ci_high", "null", "p")}
        rows.append(row | {name: column[k] for name, column in columns.items()})
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.table({name: [row.get(name) for row in rows] for name in names})
    pq.write_table(table, root / "timeline.parquet")
    runs = {entry["factors"]["revision"]: entry["name"] for entry in entries}
    record = {"series": 0, "analysis": "emergence", "factors": first, "runs": runs, "verdict": verdict}
    write_json(root / VERDICT, [record | {"summary": {}, "meanings": {}, "figures": {}, "tables": ["timeline"]}])
    return sweep(root, entries)


def emerging(root: Path, own_verdict: Mapping[str, Any] | None = None, **settings: Any) -> Path:
    """Four checkpoints whose even heads repair everything from step 64000 on."""
    root.mkdir(parents=True, exist_ok=True)
    values = [
        scalars(0.25, 0.25, 0.0),
        scalars(0.25, 0.25, 0.0),
        scalars(1.0, 0.25, 4.0),
        scalars(1.0, 0.0, 8.0),
    ]
    extra = settings.pop("more", [{}] * 4)
    values = [value | more for value, more in zip(values, extra, strict=True)]
    entries = [run(root, step, value, **settings) for step, value in zip(STEPS, values, strict=True)]
    return series(
        root, entries, own_verdict or verdict(), values, strength_nats_band=[2.0] * 4, strength_band=[0.5] * 4
    )


def two_protocols(root: Path) -> tuple[Path, Path]:
    """The sweep of `emerging` under each protocol, in folders of their own."""
    for name in "ab":
        (root / name).mkdir()
    return emerging(root / "a"), emerging(root / "b", protocol="original")


def followed(folder: Path, *, series: int = 0) -> None:
    """Add what an analysis of the same series left that judges no emergence: a change, a figure and a table."""
    entries = json.loads((folder / VERDICT).read_text(encoding="utf-8"))
    curves([Curve(label="QK", x=[1, 2], y=[3, 2])], xlabel="step", ylabel="rank").save(folder / "figures/rank.json")
    pq.write_table(pa.table({"step": [1, 2], "mean": [3.0, 2.0], "series": [series] * 2}), folder / "ranks.parquet")
    entry = {
        **{part: entries[0][part] for part in ("factors", "runs")},
        "series": series,
        "analysis": "circuit_course",
        "verdict": {"steps": [1_000, 143_000], "left_out": {"step32000": "it fell over"}},
        "summary": {
            "rank_change": {"value": -1.25, "ci_low": -1.5, "ci_high": -1.0, "null": 0.0, "n": 12, "unit": "head"},
            "copying_change": {"reason": "no head has a value at both ends", "n": 12, "unit": "head"},
        },
        "meanings": {"rank_change": "last checkpoint less first: rank", "copying_change": "the same of copying"},
        "figures": {"rank": "figures/rank.json"},
        "tables": ["ranks"],
    }
    write_json(folder / VERDICT, [*entries, entry])
