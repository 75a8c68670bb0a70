"""A training's checkpoints together: when each measure emerged, its course, and which checkpoints count."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import ABSENT, count, fixed, number, p_value, units
from headdyn.core.records import Metric
from headdyn.report.blocks import Heading, Section, Table, cell
from headdyn.report.series.curves import other_curves, primary_curve
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import Series, read_series, series_titles, verdicts
from headdyn.sweep.series_words import STAGES, counted, duration, halves, headline, interval, share, stage

_MOST_PAIRS = 8  # of measures that move together
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
    series = read_series(sweep)
    blocks: list[Any] = []
    if len(series) > 1:
        about = "Where each measure emerged, (last step below, first step above], and its class."
        blocks = [Heading("Series side by side"), about, compared(series)]
    for each in series:
        answer = Markup('<p class="headline">{}</p>').format(headline(each))
        table = verdict_table(each)
        blocks += [Heading(each.title), answer, primary_curve(each)]
        blocks += [table, _WORDS] if table.rows else []
    title = "When does it emerge?"
    return Section("verdict", title, blocks, headline(series[0]), folded=False) if series else None


def curves(sweep: SweepRecord) -> Section | None:
    """The other measures of every series over training, the figures of its analysis, and what moves together."""
    blocks: list[Any] = []
    for each in read_series(sweep):
        figures = [*other_curves(each).values(), *filter(lambda path: path.exists(), each.figures.values())]
        blocks += [Heading(each.title), figures] if figures else []
        together = _together(each)
        blocks += [Heading("What moves together"), _TOGETHER, together] if together.rows else []
    return Section("timeline", "Over training", blocks) if blocks else None


def _together(series: Series) -> Table:
    """The pairs of measures whose changes have the strongest rank correlations, the strongest first.

    Older records have p and q too, from a null that one training does not have; they are not shown.
    """
    records = sorted(series.verdict.get("moving_together", []), key=lambda each: -abs(each["correlation"]))
    rows = [
        [
            series.metric(each["one"]).label,
            series.metric(each["other"]).label,
            fixed(each["correlation"], 2, signed=True),
            count(each["changes"], "change"),
        ]
        for each in records[:_MOST_PAIRS]
    ]
    return Table(columns=["measure", "with", "rank correlation of changes", "units"], rows=rows)


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
        rows = [
            [metric, cell(scalar), units(scalar), entry["meanings"].get(metric, "")]
            for metric, scalar in entry["summary"].items()
        ]
        table = Table(columns=["metric", "value", "units", "meaning"], rows=rows, dense=True)
        blocks += [Heading(": ".join(filter(None, (name, titles[entry["series"]])))), " ".join(sentences)]
        blocks += [table if rows else None, [sweep.folder / file for file in entry["figures"].values()]]
        names.append(name)
    return Section("changes", " · ".join(dict.fromkeys(names)), blocks) if blocks else None


def checkpoints(sweep: SweepRecord) -> Section | None:
    """The hash of every checkpoint's weights, and whether the checkpoint counts."""
    series = read_series(sweep)
    blocks: list[Any] = [_HASHED]
    for each in series:
        blocks += [Heading(each.title), _checkpoint_table(each)]
    return Section("checkpoints", "Checkpoints", blocks, counted(series[0])[0]) if series else None


def verdict_table(series: Series) -> Table:
    """The verdict with one column per measure; a row whose cells are all absent is left out."""
    columns = [_judged(series.metric(name), judgement) for name, judgement in series.measures.items()]
    metrics = [series.metric(name) for name in series.measures]
    headings = [f"{metric.label} ({metric.unit})" if metric.unit else metric.label for metric in metrics]
    rows = [[label, *(column[label] for column in columns)] for label in (columns[0] if columns else ())]
    return Table(columns=["", *headings], rows=[row for row in rows if set(row[1:]) != {ABSENT}])


def _judged(metric: Metric, judgement: Mapping[str, Any]) -> dict[str, str]:
    """The judgement on one measure, row by row."""
    j, odds = judgement, judgement.get("probabilities", {})
    sure = f" (probability {share(odds[j['pace']])})" if j["pace"] in odds else ""
    why = f"; {j['pace_reason']}" if "pace_reason" in j else ""
    lost = j.get("disappearances")
    known = {True: "yes", False: "not shown", None: "cannot be told"}
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
        "beyond chance": f"{known[j['beyond_chance']]}: {j['against_chance']}",
        "units": ABSENT if j["n"] is None else count(j["n"], "pair"),
    }


def compared(series: Sequence[Series]) -> Table:
    """Several series side by side: where each measure emerged, and whether the split is beyond chance."""
    labels = {name: each.metric(name).label for each in series for name in each.measures}
    rows = []
    for each in series:
        judged = [each.measures.get(name) for name in labels]
        texts = [ABSENT if j is None else f"{interval(j)}, {j['class']}" for j in judged]
        rows.append([each.title or each.model, *texts, p_value(each.split.get("p"))])
    last = f"p of {'/'.join(halves(series[0]))} over the trajectory"
    return Table(columns=["series", *labels.values(), last], rows=rows)


def _checkpoint_table(series: Series) -> Table:
    rows, numbers = [], []
    for row in series.rows:
        job = series.jobs.get(row["revision"])
        facts = {} if job is None else job.run.manifest.get("checkpoint", {})
        numbers.append("" if job is None else job.number)
        rows.append(
            [
                row["revision"],
                ABSENT if row["step"] is None else number(row["step"]),
                share(row["training_share"]),
                "yes" if row["counts"] else "no",
                (row.get("state_hash") or ABSENT)[:12],
                (facts.get("commit") or ABSENT)[:12],
                facts.get("dtype") or ABSENT,
                row.get("reason") or "",
            ]
        )
    columns = ["revision", "step", "of training", "counts", "weights' hash\nSHA-256, first 12 digits", "commit"]
    return Table(columns=[*columns, "dtype", "why it does not count"], rows=rows, runs=numbers)
