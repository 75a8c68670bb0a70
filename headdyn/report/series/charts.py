"""The charts of a series of checkpoints over log steps: strength with its null, right answers, Δ, around emergence.

A shaded span marks where the measure of the chart emerged; grey is what chance gives.
"""

from __future__ import annotations

import math

import pyarrow.parquet as pq
from markupsafe import Markup

from headdyn.core.figures import PALETTE
from headdyn.core.numbers import quantity
from headdyn.report.charts import Band
from headdyn.report.series.drawing import GREY, LOOKS, chart_over_steps, measured_line, plain_line
from headdyn.report.series.further_charts import (
    cosines_chart,
    divergence_chart,
    kept_chart,
    loss_chart,
    seed_silhouettes_chart,
    silhouettes_chart,
    topic_chart,
)
from headdyn.report.series.record import Points, Series
from headdyn.report.series.study import seed_strengths
from headdyn.report.series.words import measure_name
from headdyn.sweep.jobs import Job

_SUCCESSES = ("plain_success", "even_success", "odd_success", "all_success", "source_success")
_TOPICS = ("selectivity", "within_ratio", "probe_accuracy_middle", "specialisation", "entropy_nats")


def series_charts(series: Series) -> list[tuple[str, str, list[Markup]]]:
    """(heading, what it shows, charts) for every subject that the checkpoints measured; others are left out."""
    parts = [
        (
            "Strength over training",
            "Even heads patched less odd heads patched; whiskers are 95 % over pairs. Of all balanced splits 95 % stay "
            "within the grey band at every checkpoint, so that one which leaves it is significant over the trajectory"
            f"{_band_note(series)}.",
            [_strength(series, "strength"), _strength(series, "strength_nats")],
        ),
        (
            "Right answers and log-odds",
            "Bug pairs, each answered by what the model finds likelier. Δ is the log-odds of the right answer against "
            "the wrong one, in nats.",
            [_successes(series), _log_odds(series)],
        ),
        ("Around emergence", "Every measure as a share of its highest |value|, steps linear.", [_detail(series)]),
        (
            "Topics over training",
            "Whiskers are 95 % over sequences; dashed lines are what chance, baselines or exact inference give.",
            [loss_chart(series), *(topic_chart(series, name) for name in _TOPICS)],
        ),
        (
            "Clusters of heads",
            "Best silhouette of all clusterings of a layer's heads, against the mean of random heads put through the "
            "same steps (dashed). A silhouette near its null is no clustering.",
            [silhouettes_chart(series), seed_silhouettes_chart(series), divergence_chart(series)],
        ),
        (
            "Heads from checkpoint to checkpoint",
            "Head h at one step and head h at another are one index, not one function: how many heads are most like "
            "the head of their own index, and how alike their circuits are.",
            [kept_chart(series), cosines_chart(series)],
        ),
    ]
    found = [(title, text, [chart for chart in charts if chart is not None]) for title, text, charts in parts]
    return [(title, text, charts) for title, text, charts in found if charts]


def _strength(series: Series, name: str) -> Markup | None:
    points, said = series.points(name), series.measures.get(name, {})
    if points is None:
        return None
    q = quantity(name)
    lines = [measured_line("even − odd", points, 0)]
    bands = []
    band = series.points(f"{name}_band")
    if band is not None and not _fills(name, band):
        bands = [Band(label="95 % null band", x=band.steps, low=[-v for v in band.value], high=band.value)]
    if name == "strength":
        seed = series.points("seed_strength")
        if seed is not None:
            lines.append(measured_line("as the study judged it (one prompt)", seed, 1, "2 3", "square"))
        theirs = [(s, v) for s, v in seed_strengths(series.model) if s in {row["step"] for row in series.counted}]
        if theirs:
            lines.append(plain_line("the study's figure", theirs, GREY, "7 3", "up"))
    references = {"0": 0.0}
    if name == "strength":
        references[f"threshold {said.get('threshold', 0.5):g}"] = said.get("threshold", 0.5)
    elif said.get("emerges_at_step") is not None:
        references["half of highest"] = said["threshold"]
    return chart_over_steps(lines, q.label[0].upper() + q.label[1:], q.unit, references, bands, said)


def _fills(name: str, band: Points) -> bool:
    """Whether a band of the thresholded strength is all that there is: counts of right answers tie among splits."""
    return name == "strength" and max(band.value) >= 1


def _band_note(series: Series) -> str:
    band = series.points("strength_band")
    if band is None or not _fills("strength", band):
        return ""
    return "; more than one split in twenty gets every pair right and its other half none, so strength has no such band"


def _successes(series: Series) -> Markup | None:
    there = [(name, points) for name in _SUCCESSES if (points := series.points(name)) is not None]
    lines = [
        measured_line(quantity(name).label, points, i, *LOOKS[i % len(LOOKS)]) for i, (name, points) in enumerate(there)
    ]
    return chart_over_steps(lines, "Right answers", "share of bug pairs", {"half": 0.5}, y_values=(0.0, 1.0))


def _log_odds(series: Series) -> Markup | None:
    lines = []
    for i, (name, label) in enumerate((("plain_nats", "nothing patched"), ("source_nats", "the source prompts"))):
        points = series.points(name)
        if points is not None:
            lines.append(measured_line(label, points, (0, 4)[i], *LOOKS[(0, 4)[i]]))
    halves = [half_means(job) for job in series.complete]
    steps = [row["step"] for row in series.counted]
    for place, label in ((0, "even heads patched"), (1, "odd heads patched")):
        told = [(s, half[place]) for s, half in zip(steps, halves, strict=True) if half is not None]
        if told:
            lines.append(plain_line(label, told, PALETTE[1 + place], *LOOKS[1 + place]))
    return chart_over_steps(lines, "Log-odds of right against wrong", "mean Δ (nats)", {"right and wrong alike": 0.0})


def half_means(job: Job) -> tuple[float, float] | None:
    """Mean Δ with the even and with the odd heads patched, from the run's splits; None where it kept none."""
    path = job.run.folder / "splits.parquet"
    if not path.exists():
        return None
    table = pq.read_table(path, columns=["layer", "split", "even_odd", "delta_nats"])
    layers = table["layer"].to_numpy()
    if len(set(layers.tolist())) > 1:
        return None  # which of several layers the series is about, the run does not say
    split, delta = table["split"].to_numpy(), table["delta_nats"].to_numpy()
    even = int(split[table["even_odd"].to_numpy(zero_copy_only=False)][0])
    odd = int(split.max()) - even  # lexicographic order reverses under complement
    return float(delta[split == even].mean()), float(delta[split == odd].mean())


def _detail(series: Series) -> Markup | None:
    steps = [row["step"] for row in series.counted]
    emerging = {n: m for n, m in series.measures.items() if m["emerges_at_step"] in steps and n != "seed_strength"}
    if not emerging:
        return None
    places = [steps.index(said["emerges_at_step"]) for said in emerging.values()]
    window = steps[max(min(places) - 3, 0) : max(places) + 3]
    lines = []
    for i, name in enumerate(series.measures):
        points = series.points(name)
        if points is None:
            continue
        base = {s: _base(name, points, k) for k, s in enumerate(points.steps)}
        told = [(s, v - base[s]) for s, v in zip(points.steps, points.value, strict=True)]
        size = max(abs(v) for _, v in told)
        if size > 0:
            inside = [(s, v / size) for s, v in told if s in window]
            lines.append(plain_line(measure_name(name), inside, PALETTE[i % len(PALETTE)], *LOOKS[i % len(LOOKS)]))
    first = next(iter(emerging.values()))
    references = {"highest": 1.0, "half": 0.5, "0": 0.0}
    return chart_over_steps(
        lines, "Around emergence", "share of highest", references, said=first, log_x=False, width=860
    )


def _base(name: str, points: Points, place: int) -> float:
    """What a continuous measure is an excess over: its null, or its first checkpoint where rows have no null."""
    if name in ("strength", "strength_nats", "seed_strength"):
        return 0.0
    return points.null[place] if math.isfinite(points.null[place]) else points.value[0]
