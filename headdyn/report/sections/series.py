"""What the checkpoints of a training say together: when something emerged, its course, which checkpoints count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import ABSENT, count, fixed, number, p_value, units
from headdyn.core.records import Metric
from headdyn.report.blocks import Heading, Section, Table, cell
from headdyn.report.series.curves import other_curves, primary_curve
from headdyn.report.series.words import STAGES, counted, halves, headline, interval, share, stage
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import Series, read_series, series_titles, verdicts

_WORDS = (
    "A measure with a threshold counts; one without does not jump because a score does. Probabilities are shares of "
    "bootstrap draws of the pairs. Early is up to 25 % of training, late from 75 % on; sudden is where one interval "
    "between checkpoints holds half of the rise or more."
)
_HASHED = (
    "A revision's name is not trusted: the loaded weights are hashed. Revisions with equal weights are kept out of "
    "every verdict, but for the end of training."
)
Judgement = Mapping[str, Any]


def verdict(sweep: SweepRecord) -> Section | None:
    """For every series the answer, its primary measure over training, and the verdict on each measure."""
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
    """What else a series measured, over training, and the figures that its analysis drew."""
    blocks: list[Any] = []
    for each in read_series(sweep):
        figures = [*other_curves(each).values(), *filter(lambda path: path.exists(), each.figures.values())]
        blocks += [Heading(each.title), figures] if figures else []
    return Section("timeline", "Over training", blocks) if blocks else None


def changes(sweep: SweepRecord) -> Section | None:
    """What analyses of a whole series found that judge no emergence: changes from first to last, and their figures."""
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
    """Which weights every checkpoint of a series has, and whether it counts."""
    series = read_series(sweep)
    blocks: list[Any] = [_HASHED]
    for each in series:
        blocks += [Heading(each.title), _checkpoint_table(each)]
    return Section("checkpoints", "Checkpoints", blocks, counted(series[0])[0]) if series else None


def verdict_table(series: Series) -> Table:
    """What is said of each measure, a column each; a row whose cells are all absent is left out."""
    columns = [(series.metric(name), judgement) for name, judgement in series.measures.items()]
    rows = {
        "counts as emerged when": [j["rule"] for _, j in columns],
        "emergence: (last step below, first step above]": [interval(j) for _, j in columns],
        "as shares of training": [_shares(j) for _, j in columns],
        "first step above, 95 % of bootstrap draws": [_ends(j) for _, j in columns],
        "class": [stage(j) for _, j in columns],
        "class over bootstrap draws": [_probabilities(j) for _, j in columns],
        "pace": [_pace(j) for _, j in columns],
        "largest interval: share of the rise": [_jump(j) for _, j in columns],
        "monotone": [_monotone(j) for _, j in columns],
        "highest; at the last checkpoint": [_highest(metric, j) for metric, j in columns],
        "beyond chance": [_beyond(j) for _, j in columns],
        "units": [ABSENT if j["n"] is None else count(j["n"], "pair") for _, j in columns],
    }
    headings = [f"{metric.label} ({metric.unit})" if metric.unit else metric.label for metric, _ in columns]
    lines = [[label, *cells] for label, cells in rows.items() if set(cells) != {ABSENT}]
    return Table(columns=["", *headings], rows=lines if columns else [])


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


def _shares(judgement: Judgement) -> str:
    if judgement["emerges_at_share"] is None:
        return ABSENT
    low = judgement["emerges_after_share"]
    return f"{'0 %' if low is None else share(low)} to {share(judgement['emerges_at_share'])}"


def _ends(judgement: Judgement) -> str:
    if "emerges_at_step_95" in judgement:
        return " to ".join(number(step) for step in judgement["emerges_at_step_95"])
    return str(judgement.get("emerges_at_step_95_reason") or judgement.get("probabilities_reason") or ABSENT)


def _probabilities(judgement: Judgement) -> str:
    odds = judgement.get("probabilities")
    return ABSENT if odds is None else ", ".join(f"{word} {share(odds[word])}" for word in STAGES)


def _pace(judgement: Judgement) -> str:
    if judgement["pace"] is None:
        return "none: nothing emerged"
    odds = judgement.get("probabilities", {}).get(judgement["pace"])
    return judgement["pace"] + ("" if odds is None else f" (probability {share(odds)})")


def _jump(judgement: Judgement) -> str:
    if "jump_share" not in judgement:
        return "no rise"
    first, last = judgement["jump_steps"]
    width = share(judgement["jump_width_share"])
    return f"{share(judgement['jump_share'])}, steps {number(first)} to {number(last)} ({width} of training)"


def _monotone(judgement: Judgement) -> str:
    text = "yes" if judgement["monotone"] else f"no, {count(judgement['reversals'], 'reversal')} beyond noise"
    lost = judgement.get("disappearances")
    return f"{text}; falls below again {count(lost, 'time')}" if lost else text


def _highest(metric: Metric, judgement: Judgement) -> str:
    ends = (fixed(metric.scale * judgement[key], metric.digits, signed=True) for key in ("highest", "last"))
    return "; ".join(ends)


def _beyond(judgement: Judgement) -> str:
    word = {True: "yes", False: "not shown", None: "cannot be told"}[judgement["beyond_chance"]]
    return f"{word}: {judgement['against_chance']}"
