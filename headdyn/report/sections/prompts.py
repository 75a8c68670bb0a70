"""A run on comparison prompts: its answers in words, its splits against the null, and its tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headdyn.analysis.interventions.group_scan import GroupScan
from headdyn.analysis.interventions.permutation import CONTROL
from headdyn.analysis.interventions.splits import read_splits
from headdyn.core.chart_parts import PALETTE, alt
from headdyn.core.figures import Figure
from headdyn.core.numbers import count, fixed, listed, number, p_is, p_value, spelled
from headdyn.report.blocks import Section, Table
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import Statement

EXACT = {"float64": 1e-10, "float32": 1e-4}  # the largest |Δlogit| that reordering heads may cause (science.md §14)
_GROUPS = ("plain_success", "even_success", "odd_success", "all_success")
_SPLITS = (
    "The bars count the splits of the layer's heads into two halves, by Δ with one half patched less Δ with the other. "
    "Each split counts twice, with its halves in either order. Even/odd is special only where it lies outside the bars."
)


def statements(job: Job) -> list[Statement]:
    """The run's answers; none for a run without prompts."""
    answers = {
        "Do even and odd heads do different things?": [*_specialisation(job), *_controls(job)],
        "Which group of heads stands out?": _scan(job),
        "How many heads does it take?": _doses(job),
        "Is reordering heads an identity?": _permutation(job),
    }
    return [Statement(question, sentences) for question, sentences in answers.items() if sentences]


def splits(sweep: SweepRecord) -> Section | None:
    """A histogram of the strengths of all splits, even/odd marked, for each layer whose splits were run."""
    path, figures = sweep.jobs[0].run.folder / "splits.parquet", []
    if not path.exists():
        return None
    rows = pq.read_table(path)
    for layer in sorted(pc.unique(rows["layer"]).to_pylist()):
        halves, delta_SP = read_splits(rows, layer)
        strength_S = halves.strengths(delta_SP)
        figures.append(histogram(strength_S, strength_S[halves.reference].item(), f"Balanced splits of layer {layer}"))
    return Section("splits", "Even/odd among all balanced splits", [_SPLITS, figures])


def histogram(strength_S: np.ndarray, reference: float, title: str) -> Figure:
    """Counts of splits by strength of Δ (`strength_S`, nats), with a line at even/odd (`reference`, nats)."""
    reach = float(np.abs(strength_S).max()) or 1.0
    counts, edges = np.histogram(strength_S, np.linspace(-reach, reach, 42))
    ends = zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist(), strict=True)
    tables = {
        "bars": [{"from": low, "to": high, "splits": n} for low, high, n in ends if n],
        "own": [{"strength": reference, "text": f"even/odd {fixed(reference, 3, signed=True)}"}],
    }
    x = alt.X("from:Q", title="strength of Δ (nats): one half patched less the other")
    bars = alt.Chart(alt.NamedData("bars")).mark_bar(color="#9aa5b1", binSpacing=0.5).encode(
        x.bin("binned"), alt.X2("to:Q"), alt.Y("splits:Q"), tooltip=["from:Q", "to:Q", "splits:Q"]
    )  # fmt: skip
    own = alt.Chart(alt.NamedData("own")).encode(alt.X("strength:Q"))
    left = reference < 0.4 * reach
    text = own.mark_text(color=PALETTE[1], align="left" if left else "right", dx=5 if left else -5, y=8)
    chart = alt.layer(bars, own.mark_rule(color=PALETTE[1], strokeWidth=2), text.encode(alt.Text("text:N")))
    return Figure(chart.properties(width=460, height=190, title=title), "", tables)


def orders(sweep: SweepRecord) -> Section | None:
    """Reordered heads: one row per order and dtype."""
    rows = [
        {
            "dtype": row["dtype"],
            "order": row["order"].replace("_", " ") + (" (control: must differ)" if row["order"] == CONTROL else ""),
            "largest |Δlogit|": number(row["logit_change"]),
            "answers changed": f"{fixed(100 * row['answers_changed'], 1)} %",
            "texts changed": f"{fixed(100 * row['texts_changed'], 1)} %",
            "answers changed from the first dtype": f"{fixed(100 * row['answers_changed_from_first_dtype'], 1)} %",
            "repetition": fixed(row["repetition"], 2),
        }
        for row in _read(sweep.jobs[0], "orders.parquet")
    ]
    about = (
        "Heads of one layer reordered in q, k, v and in the columns of W_O, against heads in place in the same dtype. "
        "Repetition is the share of trigrams of greedy texts that occurred before."
    )
    return _section("orders", "Head permutation", about, rows)


def groups(sweep: SweepRecord) -> Section | None:
    """Silenced groups of heads: one row per group and kind of ablation."""
    rows = [
        {
            "group": row["group"].replace("_", " "),
            "ablation": row["kind"],
            "heads silenced": " ".join(map(str, row["silenced"])),
            "KL (nats)": fixed(row["kl_nats"], 4),
            "random groups, mean [5 %, 95 %]": f"{fixed(row['null_mean'], 4)} [{fixed(row['null_5_percent'], 4)}, "
            f"{fixed(row['null_95_percent'], 4)}]",
            "p": p_value(row["p"]),
            "q": p_value(row["q"]),
        }
        for row in _read(sweep.jobs[0], "groups.parquet")
    ]
    about = "KL of the next token's law when a group of heads is silenced, against random groups of the same size."
    return _section("groups", "Groups of heads silenced", about, rows)


def clusterings(sweep: SweepRecord) -> Section | None:
    """Every clustering of the heads of one layer: the patched layer, else the middle one."""
    job = sweep.jobs[0]
    every = _read(job, "clusterings.parquet")
    layers = {row["layer"] for row in job.heads.where(metric="strength_rank").rows() if row["layer"] is not None}
    layer = min(layers) if layers else max((row["layer"] for row in every), default=0) // 2
    rows = [
        {
            "heads by": {"qk": "QK circuits", "ov": "OV circuits"}.get(row["kind"], row["kind"]),
            "method": f"{row['method']} {row['parameter']:g}",
            "sizes": ", ".join(map(str, row["sizes"])) or "none",
            "outliers": number(row["outliers"]),
            "silhouette": fixed(row["silhouette"], 3),
            "null": fixed(row["null"], 3),
            "p": p_value(row["p"]),
            "q": p_value(row["q"]),
        }
        for row in every
        if row["layer"] == layer
    ]
    about = (
        f"Heads of layer {layer}. A cluster of one head is an outlier. The null is random heads put through the same "
        "steps; a silhouette near the null shows no clusters."
    )
    return _section("clusterings", "Clusterings", about, rows)


def _section(anchor: str, title: str, about: str, rows: Sequence[Mapping[str, Any]]) -> Section | None:
    return Section(anchor, title, [about, Table.of(rows)]) if rows else None


def _specialisation(job: Job) -> list[str]:
    if job.scalar("strength_nats").get("value") is None:
        return []
    parts = [
        f"{job.metric(name).label} {spelled(job.scalar(name), scale=100)} %"
        for name in _GROUPS
        if job.scalar(name).get("value") is not None
    ]
    strength, nats, rank = (job.scalar(name) for name in ("strength", "strength_nats", "strength_rank"))
    p = nats.get("p")
    verdict = ""
    if p is not None:
        word = "stands out among" if p <= 0.05 else "does not stand out among"
        verdict = f". Even/odd {word} the {number(rank['n'])} balanced splits of its layer: two-sided {p_is(p)}"
        if rank.get("value") is not None:
            verdict += f", rank {number(rank['value'])}"
    size = abs(strength["value"])
    bounds = {"strong": 0.5, "moderate": 0.3, "weak": 0.1}
    degree = next((word for word, bound in bounds.items() if size > bound), "none")
    sentences = [
        f"Strength {spelled(strength, signed=True)} ({degree}), of Δ {spelled(nats, signed=True)} nats{verdict}.",
        f"Right answers of {count(strength['n'], 'bug pair')}: {', '.join(parts)}.",
    ]
    best = job.scalar("best_split_nats").get("value")
    if best is not None:
        sentences.append(f"The strongest split has {fixed(best, 3)} nats; one of the splits is always the strongest.")
    return sentences


def _controls(job: Job) -> list[str]:
    control = job.scalar("control_strength_nats")
    if control.get("value") is None:
        return []
    pairs = f"On {count(control['n'], 'control pair')}, which the bug does not touch"
    sentences = [f"{pairs}, strength of Δ is {spelled(control, signed=True)} nats."]
    both = job.scalar("balanced_strength_nats")
    if both.get("p") is not None:
        sentences.append(
            f"On bug and control pairs with equal weight it is {spelled(both, signed=True)} nats, {p_is(both['p'])} "
            "among the splits: a mere preference for one form of answer gives 0."
        )
    return sentences


def _scan(job: Job) -> list[str]:
    groups = _read(job, "group_scan.parquet")
    if not groups:
        return []
    best, test = max(groups, key=lambda row: row["standardised"]), job.scalar("scan_maximum")
    setting = job.run.manifest["config"].get("analysis", {}).get("group_scan", {})
    gain, least = job.scalar("best_group_nats"), setting.get("least_nats", GroupScan.least_nats)  # older runs lack it
    word = "more" if test["p"] <= 0.05 else "not reliably more"
    enough = gain.get("value") is not None and gain["ci_low"] > least
    sentences = [
        f"{'A' if enough and test['p'] <= 0.05 else 'No'} group of heads is found that stands out and surely adds "
        f"more than {least:g} nats.",
        f"Of {number(len(groups))} groups of up to {max(row['size'] for row in groups)} heads, that of "
        f"{'head' if best['size'] == 1 else 'heads'} {listed([str(head) for head in best['heads']])} stands out most: "
        f"{word} than chance gives when the same scan is run on relabelled heads ({p_is(test['p'])}).",
    ]
    if gain.get("value") is not None:
        sentences.append(f"Chosen on the other pairs, the best group adds {spelled(gain, signed=True)} nats.")
    return sentences


def _doses(job: Job) -> list[str]:
    if "any_size_threshold" not in job.run.scalars:
        return []
    threshold = job.scalar("any_size_threshold")
    if threshold.get("value") is None:
        return [f"How many heads it takes: absent, {threshold['reason']}."]
    if threshold["value"] == 0:
        return ["Over half the bug pairs are answered rightly with nothing patched: there is little here to repair."]
    return [f"From {number(threshold['value'])} heads on, every group that was drawn repairs over half the pairs."]


def _permutation(job: Job) -> list[str]:
    rows, sentences = _read(job, "orders.parquet"), []
    for dtype, limit in EXACT.items():
        real = [r["logit_change"] for r in rows if r["dtype"] == dtype and r["order"] != CONTROL]
        control = [r["logit_change"] for r in rows if r["dtype"] == dtype and r["order"] == CONTROL]
        if real:
            verdict = "an identity" if max(real) <= limit else "NOT an identity"
            sentences.append(
                f"Reordering heads is {verdict} in {dtype}: the largest change of a logit is {number(max(real))} "
                f"(limit {number(limit)}); with W_O left as it was, the control, it is "
                f"{number(max(control, default=0))}."
            )
    return sentences


def _read(job: Job, name: str) -> list[Mapping[str, Any]]:
    path: Path = job.run.folder / name
    return pq.read_table(path).to_pylist() if path.exists() else []
