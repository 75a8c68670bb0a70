"""What one run on comparison prompts found: in words, its splits against the null, its tables; what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup

from headdyn.core.figures import PALETTE
from headdyn.core.numbers import count, fixed, number, p_value, quantity, spelled
from headdyn.report.charts import nice_scale, svg
from headdyn.sweep.jobs import Job

EXACT = {"float64": 1e-10, "float32": 1e-4}  # the largest |Δlogit| that reordering heads may leave (science.md §14)
ORDERS = ("identity", "swap", "within_parity", "random", "reverse")  # any other row of orders.parquet is the control
_GROUPS = ("plain_success", "even_success", "odd_success", "all_success")


@dataclass(frozen=True)
class Table:
    """A table of the run with what it says: headings, rows of texts."""

    title: str
    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def in_words(job: Job) -> list[str]:
    """The run's answers in sentences; none where it was not on prompts."""
    return [*_specialisation(job), *_controls(job), *_doses(job), *_permutation(job)]


def tables(job: Job) -> list[Table]:
    """Every table that the run left: permutations, groups ablated, clusterings of the analysed layer."""
    found = [_orders(job), _groups(job), _clusterings(job)]
    return [table for table in found if table is not None]


def null_pictures(job: Job) -> list[Markup]:
    """A histogram of the strengths of all splits for each layer that ran them, even/odd marked."""
    path = job.run.folder / "splits.parquet"
    if not path.exists():
        return []
    table = pq.read_table(path, columns=["layer", "split", "even_odd", "delta_nats"])
    layer_X, split_X, delta_X = (table[name].to_numpy() for name in ("layer", "split", "delta_nats"))
    even_X = table["even_odd"].to_numpy(zero_copy_only=False)
    pictures = []
    for layer in sorted(set(layer_X.tolist())):
        here = layer_X == layer
        count_S = np.bincount(split_X[here])
        mean_S = np.bincount(split_X[here], weights=delta_X[here]) / count_S
        strength_S = mean_S - mean_S[::-1]  # lexicographic order reverses under complement
        pictures.append(histogram(strength_S, int(split_X[here & even_X][0]), f"Balanced splits of layer {layer}"))
    return pictures


def histogram(strength_S: np.ndarray, even_odd: int, title: str, *, width: int = 620, height: int = 230) -> Markup:
    """How many splits have which strength of Δ, with a line at even/odd."""
    own = float(strength_S[even_odd])
    reach = float(np.abs(strength_S).max()) or 1.0
    edges = np.linspace(-reach, reach, 42)
    counts, _ = np.histogram(strength_S, edges)
    x = nice_scale((-reach, reach), 46, width - 16)
    top, bottom = 46, height - 42
    tallest = max(int(counts.max()), 1)
    parts = [Markup('<text class="title" x="4" y="15">{}</text>').format(title)]
    bar = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="#9aa5b1"><title>{}</title></rect>')
    for low, high, n in zip(edges[:-1], edges[1:], counts.tolist(), strict=True):
        if n:
            y = bottom - (bottom - top) * n / tallest
            tip = f"{count(n, 'split')} from {fixed(low, 3)} to {fixed(high, 3)} nats"
            parts.append(bar.format(x(low), y, max(x(high) - x(low) - 0.6, 0.6), bottom - y, tip))
    for tick in x.ticks:
        text = Markup('<text class="tick x" x="{:.1f}" y="{}">{}</text>')
        parts.append(text.format(x(tick), bottom + 14, f"{tick:g}".replace("-", "−")))
    parts.append(Markup('<path class="zero" d="M{:.1f},{}H{:.1f}"/>').format(x.start, bottom, x.end))
    parts.append(
        Markup('<path d="M{:.1f},{}V{}" stroke="{}" stroke-width="2" fill="none"/>').format(
            x(own), top - 12, bottom, PALETTE[1]
        )
    )
    side, anchor = (6, "start") if own < 0.4 * reach else (-6, "end")
    label = Markup('<text x="{:.1f}" y="{}" text-anchor="{}" fill="{}">{}</text>')
    parts.append(label.format(x(own) + side, top - 4, anchor, PALETTE[1], f"even/odd {fixed(own, 3, signed=True)}"))
    middle = Markup('<text class="label" x="{:.1f}" y="{}">{}</text>')
    parts.append(
        middle.format((x.start + x.end) / 2, height - 10, "strength of Δ (nats): one half patched − the other")
    )
    edge = Markup('<text class="tick y" x="{}" y="{}">{}</text>')
    parts.append(edge.format(x.start - 4, top + 4, tallest))
    return svg(parts, width, height, title)


def _specialisation(job: Job) -> list[str]:
    if job.scalar("strength_nats").get("value") is None:
        return []
    parts = [
        f"{quantity(name).label} {spelled(job.scalar(name), scale=100)} %"
        for name in _GROUPS
        if job.scalar(name).get("value") is not None
    ]
    strength, nats, rank = (job.scalar(name) for name in ("strength", "strength_nats", "strength_rank"))
    sentences = [f"Right answers of {count(strength['n'], 'bug pair')}: {', '.join(parts)}."]
    p = nats.get("p")
    verdict = ""
    if p is not None:
        word = "stands out among" if p <= 0.05 else "does not stand out among"
        verdict = f". Even/odd {word} the {number(rank['n'])} balanced splits of its layer: two-sided p {_p(p)}"
        if rank.get("value") is not None:
            verdict += f", rank {number(rank['value'])}"
    size = abs(strength["value"])
    degree = next((w for w, least in (("strong", 0.5), ("moderate", 0.3), ("weak", 0.1)) if size > least), "none")
    sentences.append(
        f"Strength {spelled(strength, signed=True)} (in the study's words: {degree}), of Δ "
        f"{spelled(nats, signed=True)} nats{verdict}."
    )
    best = job.scalar("best_split_nats").get("value")
    if best is not None:
        sentences.append(f"The strongest split has {fixed(best, 3)} nats: some split always is.")
    return sentences


def _controls(job: Job) -> list[str]:
    found = job.scalar("control_strength_nats")
    if found.get("value") is None:
        return []
    return [
        f"On {count(found['n'], 'control pair')}, which the bug does not touch, strength of Δ is "
        f"{spelled(found, signed=True)} nats."
    ]


def _doses(job: Job) -> list[str]:
    if "any_size_threshold" not in job.run.scalars:
        return []
    found = job.scalar("any_size_threshold")
    if found.get("value") is None:
        return [f"How many heads it takes: absent, {found['reason']}."]
    if found["value"] == 0:
        return ["Over half the bug pairs are answered rightly with nothing patched: there is little here to repair."]
    return [f"From {number(found['value'])} heads on, every group that was drawn repairs over half the pairs."]


def _permutation(job: Job) -> list[str]:
    rows = _read(job, "orders.parquet")
    if not rows:
        return []
    sentences = []
    for dtype, limit in EXACT.items():
        real = [r["logit_change"] for r in rows if r["dtype"] == dtype and r["order"] in ORDERS]
        control = [r["logit_change"] for r in rows if r["dtype"] == dtype and r["order"] not in ORDERS]
        if real:
            held = "an identity" if max(real) <= limit else "NOT an identity"
            sentences.append(
                f"Reordering heads is {held} in {dtype}: the largest change of a logit is {number(max(real))} (limit "
                f"{number(limit)}); with W_O left as it was, the control, it is {number(max(control, default=0))}."
            )
    return sentences


def _orders(job: Job) -> Table | None:
    rows = _read(job, "orders.parquet")
    if not rows:
        return None
    told = [
        [
            row["dtype"],
            row["order"].replace("_", " ") + ("" if row["order"] in ORDERS else " (control: must differ)"),
            number(row["logit_change"]),
            f"{fixed(100 * row['answers_changed'], 1)} %",
            f"{fixed(100 * row['texts_changed'], 1)} %",
            f"{fixed(100 * row['answers_changed_from_first_dtype'], 1)} %",
            fixed(row["repetition"], 2),
        ]
        for row in rows
    ]
    about = (
        "Heads of one layer reordered in q, k, v and in the columns of W_O, against heads in place in the same dtype. "
        "Repetition is the share of trigrams of greedy texts that occurred before."
    )
    columns = ("dtype", "order", "largest |Δlogit|", "answers changed", "texts changed")
    return Table("Head permutation", about, (*columns, "answers changed from the first dtype", "repetition"), told)


def _groups(job: Job) -> Table | None:
    rows = _read(job, "groups.parquet")
    if not rows:
        return None
    told = [
        [
            row["group"].replace("_", " "),
            row["kind"],
            " ".join(map(str, row["silenced"])),
            fixed(row["kl_nats"], 4),
            f"{fixed(row['null_mean'], 4)} [{fixed(row['null_5_percent'], 4)}, {fixed(row['null_95_percent'], 4)}]",
            p_value(row["p"]),
            p_value(row["q"]),
        ]
        for row in rows
    ]
    about = "KL of the next token's law when a group of heads is silenced, against random groups of the same size."
    columns = ("group", "ablation", "heads silenced", "KL (nats)", "random groups, mean [5 %, 95 %]", "p", "q")
    return Table("Groups of heads silenced", about, columns, told)


def _clusterings(job: Job) -> Table | None:
    rows = _read(job, "clusterings.parquet")
    layers = {row["layer"] for row in job.heads.where(metric="strength_rank").rows() if row["layer"] is not None}
    layer = min(layers) if layers else max((row["layer"] for row in rows), default=0) // 2
    told = [
        [
            {"qk": "QK circuits", "ov": "OV circuits"}.get(row["kind"], row["kind"]),
            f"{row['method']} {row['parameter']:g}",
            ", ".join(map(str, row["sizes"])) or "none",
            number(row["outliers"]),
            fixed(row["silhouette"], 3),
            fixed(row["null"], 3),
            p_value(row["p"]),
            p_value(row["q"]),
        ]
        for row in rows
        if row["layer"] == layer
    ]
    if not told:
        return None
    about = (
        f"Heads of layer {layer}. A cluster of one head is an outlier. The null is random heads put through the same "
        "steps; a silhouette near it is no clustering."
    )
    columns = ("heads by", "method", "sizes", "outliers", "silhouette", "null", "p", "q")
    return Table("Clusterings", about, columns, told)


def _read(job: Job, name: str) -> list[Mapping[str, Any]]:
    path: Path = job.run.folder / name
    return pq.read_table(path).to_pylist() if path.exists() else []


def _p(p: float) -> str:
    text = p_value(p)
    return text if text.startswith("<") else f"= {text}"
