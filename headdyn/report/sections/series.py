"""A training's checkpoints together: when each measure emerged, its curve, and which checkpoints count."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.numbers import ABSENT, capital, count, fixed, number, p_value, units
from headdyn.core.records import Metric
from headdyn.report.blocks import Heading, Section, Table, cell
from headdyn.report.sections.training import LOSS_REFERENCES
from headdyn.sweep.outcomes import outcomes_of
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import Series, read_series, series_titles, verdicts
from headdyn.sweep.series_words import STAGES, counted, duration, halves, headline, interval, share, stage

_MOST_PAIRS = 8  # of measures that move together
_MOST_METRICS = 6  # in one chart: each may bring its null as a second line
# Scalars of the runs that are reference lines of a metric's curve: (nearly) the same at every checkpoint.
_REFERENCES: Mapping[str, Sequence[str]] = {
    "loss_nats": [f"{name}_nats" for name in LOSS_REFERENCES],
    "probe_accuracy_middle": ("probe_majority", "probe_token_identity", "probe_position", "probe_ceiling"),
}
_WORDS = (
    "A score with a fixed threshold can jump while the quantity behind it grows smoothly; the measures without a "
    "threshold, which emerge at half of their highest value, show whether it did. Probabilities are shares of "
    "bootstrap draws of the pairs. Early is up to 25 % of training, late from 75 % on. Sudden: the rise from 10 "
    "to 90 % surely took at most 10 % of training; gradual: surely more than 25 %; undecided: the checkpoints lie too "
    "far apart to tell."
)
_TOGETHER = (
    "The pairs of measures whose changes from checkpoint to checkpoint have the strongest rank correlations, at most "
    f"{_MOST_PAIRS}. This only describes the training. One training has no null: all curves change while the model "
    "learns, so that curves which have nothing to do with each other correlate too. Whether two curves move together "
    "can be tested with several trainings that differ in their random seed."
)
_HASHED = (
    "A revision's name is not trusted: the loaded weights are hashed. Of revisions with equal weights none counts in a "
    "verdict, except the one that is the end of training."
)


def verdict(sweep: SweepRecord) -> Section | None:
    """For every series its answer, the curve of its primary measure, and the verdict on each measure."""
    all_series = read_series(sweep)
    if not all_series:
        return None
    blocks: list[Any] = []
    if len(all_series) > 1:
        about = "Where each measure emerged, (last step below, first step above], and its class."
        blocks = [Heading("Series side by side"), about, compared(all_series)]
    for series in all_series:
        # A single series' answer is the page's first.
        answer = Markup('<p class="headline">{}</p>').format(headline(series)) if len(all_series) > 1 else None
        table = verdict_table(series)
        blocks += [Heading(series.title), answer, curve(series, [series.primary] if series.primary else [])]
        blocks += [table, _WORDS] if table.rows else []
    return Section("verdict", "When does it emerge?", blocks, headline(all_series[0]), folded=False)


def over_training(sweep: SweepRecord) -> Section | None:
    """The other measures of every series over training, the figures of its analysis, and what moves together."""
    blocks: list[Any] = []
    for series in read_series(sweep):
        figures = [*other_curves(series).values(), *(path for path in series.figures.values() if path.exists())]
        blocks += [Heading(series.title), figures] if figures else []
        together = _together(series)
        blocks += [Heading("What moves together"), _TOGETHER, together] if together.rows else []
    return Section("timeline", "Over training", blocks) if blocks else None


def _together(series: Series) -> Table:
    """The pairs of measures that move together most; p and q of older records, from an invalid null, are not shown."""
    records = sorted(series.verdict.get("moving_together", []), key=lambda record: -abs(record["correlation"]))
    rows = [
        {
            "measure": series.metric(record["one"]).label,
            "with": series.metric(record["other"]).label,
            "rank correlation of changes": fixed(record["correlation"], 2, signed=True),
            "units": count(record["changes"], "change"),
        }
        for record in records[:_MOST_PAIRS]
    ]
    return Table.of(rows)


def changes(sweep: SweepRecord) -> Section | None:
    """The results of analyses of a whole series that judge no emergence: their numbers and figures."""
    entries = [entry for entry in verdicts(sweep.folder) if "counted" not in entry["verdict"]]
    titles, names = series_titles(verdicts(sweep.folder)), []
    blocks: list[Any] = []
    for entry in entries:
        verdict, name = entry["verdict"], entry["analysis"].replace("_", " ").capitalize()
        steps, missing = verdict.get("steps", []), verdict.get("left_out", {})
        sentences = [f"{count(len(steps), 'checkpoint')}, step {steps[0]} to {steps[-1]}."] if len(steps) > 1 else []
        sentences += [f"{revision} is left out: {why}." for revision, why in missing.items()]
        sentences += [f"Absent: {verdict['reason']}."] if verdict.get("reason") else []
        summary, meanings = entry["summary"], entry["meanings"]
        rows = [[metric, cell(scalar), units(scalar), meanings.get(metric, "")] for metric, scalar in summary.items()]
        table = Table(columns=["metric", "value", "units", "meaning"], rows=rows, dense=True)
        blocks += [Heading(": ".join(filter(None, (name, titles[entry["series"]])))), " ".join(sentences)]
        blocks += [table if rows else None, [sweep.folder / file for file in entry["figures"].values()]]
        names.append(name)
    return Section("changes", " · ".join(dict.fromkeys(names)), blocks) if blocks else None


def checkpoints(sweep: SweepRecord) -> Section | None:
    """The hash of every checkpoint's weights, and whether the checkpoint counts."""
    all_series = read_series(sweep)
    blocks: list[Any] = [_HASHED]
    for series in all_series:
        blocks += [Heading(series.title), _checkpoint_table(series)]
    return Section("checkpoints", "Checkpoints", blocks, counted(all_series[0])[0]) if all_series else None


def verdict_table(series: Series) -> Table:
    """The verdict with one column per measure; a row whose cells are all absent is left out."""
    columns = [_judged(series.metric(name), judgement) for name, judgement in series.measures.items()]
    metrics = [series.metric(name) for name in series.measures]
    headings = [f"{metric.label} ({metric.unit})" if metric.unit else metric.label for metric in metrics]
    rows = [[label, *(column[label] for column in columns)] for label in (columns[0] if columns else ())]
    return Table(columns=["", *headings], rows=[row for row in rows if set(row[1:]) != {ABSENT}])


def _judged(metric: Metric, judgement: Mapping[str, Any]) -> dict[str, str]:
    j, odds = judgement, judgement.get("probabilities", {})
    sure = f" (probability {share(odds[j['pace']])})" if j["pace"] in odds else ""
    why = f"; {j['pace_reason']}" if "pace_reason" in j else ""
    lost = j.get("disappearances")
    beyond_chance = {True: "yes", False: "not shown", None: "cannot be told"}[j["beyond_chance"]]
    return {
        "counts as emerged when": j["rule"],
        "emergence: (last step below, first step above]": interval(j),
        "as shares of training": ABSENT
        if j["emerges_at_share"] is None
        else f"{share(j['emerges_after_share'] or 0)} to {share(j['emerges_at_share'])}",
        "first step above, 95 % of bootstrap draws": " to ".join(map(number, j["emerges_at_step_95"]))
        if "emerges_at_step_95" in j
        else str(j.get("emerges_at_step_95_reason") or j.get("probabilities_reason") or ABSENT),
        "class": stage(j),
        "class over bootstrap draws": ", ".join(f"{word} {share(odds[word])}" for word in STAGES) if odds else ABSENT,
        "pace": "none: nothing emerged" if j["pace"] is None else f"{j['pace']}{sure}{why}",
        "rise": duration(j) if "jump_share" in j else "no rise",
        "monotone": ("yes" if j["monotone"] else f"no, {count(j['reversals'], 'reversal')} beyond noise")
        + (f"; falls below again {count(lost, 'time')}" if lost else ""),
        "highest; at the last checkpoint": "; ".join(
            fixed(metric.scale * j[end], metric.digits, signed=True) for end in ("highest", "last")
        ),
        "beyond chance": f"{beyond_chance}: {j['against_chance']}",
        "units": ABSENT if j["n"] is None else count(j["n"], "pair"),
    }


def compared(all_series: Sequence[Series]) -> Table:
    """Several series side by side: where each measure emerged, and p of the split into halves over the trajectory."""
    labels = {name: series.metric(name).label for series in all_series for name in series.measures}
    rows = []
    for series in all_series:
        judgements = [series.measures.get(name) for name in labels]
        texts = [ABSENT if j is None else f"{interval(j)}, {j['class']}" for j in judgements]
        rows.append([series.title or series.model, *texts, p_value(series.split.get("p"))])
    p_heading = f"p of {'/'.join(halves(all_series[0]))} over the trajectory"
    return Table(columns=["series", *labels.values(), p_heading], rows=rows)


def _checkpoint_table(series: Series) -> Table:
    rows, numbers = [], []
    for row in series.rows:
        job = series.jobs.get(row["revision"])
        facts = {} if job is None else job.run.manifest.get("checkpoint", {})
        numbers.append("" if job is None else job.number)
        rows.append(
            {
                "revision": row["revision"],
                "step": number(row["step"]),
                "of training": share(row["training_share"]),
                "counts": "yes" if row["counts"] else "no",
                "weights' hash\nSHA-256, first 12 digits": (row.get("state_hash") or ABSENT)[:12],
                "commit": (facts.get("commit") or ABSENT)[:12],
                "dtype": facts.get("dtype") or ABSENT,
                "why it does not count": row.get("reason") or "",
            }
        )
    return Table.of(rows, runs=numbers)


def other_curves(series: Series) -> dict[str, Figure]:
    """Charts, by title, of the other measures and of every outcome that at least two checkpoints measured.

    Each measure has its own chart; outcomes with the same analysis and unit share one.
    """
    names = dict.fromkeys((*series.measures, *outcomes_of(job.run for job in series.complete)))
    groups: dict[object, list[str]] = {}
    for name in names:
        points = series.points(name)
        if name != series.primary and points is not None and len(points.steps) > 1:
            alone = name in series.measures or name in _REFERENCES
            metric = series.metric(name)
            groups.setdefault(name if alone else (_analysis(series, name), metric.unit, metric.scale), []).append(name)
    parts = [group[i : i + _MOST_METRICS] for group in groups.values() for i in range(0, len(group), _MOST_METRICS)]
    return {_title(series, part): figure for part in parts if (figure := curve(series, part)) is not None}


def curve(series: Series, names: Sequence[str], *, more: Sequence[Curve] = ()) -> Figure | None:
    """Metrics of one unit over the steps, with intervals; None where no checkpoint has them.

    One metric alone is drawn with the band within which 95 % of all splits stay, its reference lines, its threshold and
    the span in which it emerged. `more` are further curves, in the reader's unit of the metric.
    """
    measured = {name: points for name in names if (points := series.points(name)) is not None}
    if not measured:
        return None
    first, alone = next(iter(measured)), len(measured) == 1
    metric = series.metric(first)
    lines, captions = [], []
    levels: dict[str, float] = {}
    for name, points in measured.items():
        label, meaning = series.metric(name).label, series.metric(name).meaning
        ends = (points.value, points.low, points.high, points.null)
        value, low, high, null = (metric.scale * np.array(values) for values in ends)
        band = (low, high) if points.has_interval else (None, None)
        lines.append(Curve(label=label, x=points.steps, y=value, low=band[0], high=band[1]))
        has_null = np.isfinite(null)
        if null[has_null].any():
            name_of_null = "chance" if alone else f"chance, {label}"
            lines.append(Curve(label=name_of_null, x=np.array(points.steps)[has_null], y=null[has_null]))
        elif has_null.any():
            levels["chance"] = 0.0
        captions.append(f"{label}: {meaning}" if meaning else label)
    if any(points.has_interval for points in measured.values()):
        captions.append("Shaded around a line: its 95 % interval")
    span = None
    if alone:
        judgement = series.measures.get(first, {})
        chance, about = _chance_band(series, first, metric)
        lines, captions, levels = [*lines, *chance], [*captions, *about], levels | _references(series, first, metric)
        if judgement.get("threshold") is not None and not judgement["rule"].startswith("above half"):
            levels["threshold"] = metric.scale * judgement["threshold"]
        if judgement.get("emerges_at_step") is not None:
            span = (judgement["emerges_after_step"] or measured[first].steps[0], judgement["emerges_at_step"])
            captions.append("Shaded from top to bottom: the steps between which it emerges")
    return curves(
        [*lines, *more],
        xlabel="training step",
        ylabel=(f"{metric.label} ({metric.unit})" if alone and metric.unit else metric.unit) or metric.label,
        title=_title(series, list(measured)),
        references=levels,
        log_x=True,
        span=span,
        caption=". ".join(captions) + ".",
    )


def _title(series: Series, names: Sequence[str]) -> str:
    """The label of a single metric; the analysis and unit of several."""
    text = series.metric(names[0]).label
    if len(names) > 1:
        text = f"{_analysis(series, names[0]).replace('_', ' ')}: {series.metric(names[0]).unit or text}"
    return capital(text)


def _chance_band(series: Series, name: str, metric: Metric) -> tuple[list[Curve], list[str]]:
    """The band in which 95 % of all splits stay at every checkpoint, unless it reaches the bound; and its caption."""
    band = series.points(f"{name}_band")
    if band is None:
        return [], []
    if max(band.value) >= metric.high:
        bound = number(metric.high)
        return [], [f"More than one split in twenty reaches the bound {bound}, so chance has no band here"]
    half = metric.scale * np.array(band.value)
    about = (
        "Of all splits 95 % stay within the band at every checkpoint: a split that leaves it is significant over the "
        "whole trajectory"
    )
    return [Curve(label="95 % of all splits (chance)", x=band.steps, y=0 * half, low=-half, high=half)], [about]


def _references(series: Series, name: str, metric: Metric) -> dict[str, float]:
    last = {other: job.run.value(other) for job in series.complete[-1:] for other in _REFERENCES.get(name, ())}
    return {
        other.removesuffix("_nats").removeprefix("probe_").replace("_", " "): metric.scale * value
        for other, value in last.items()
        if value is not None
    }


def _analysis(series: Series, name: str) -> str:
    glossaries = (job.run.manifest.get("glossary", {}) for job in series.complete)
    return next((title for each in glossaries for title, part in each.items() if name in part["metrics"]), "")
