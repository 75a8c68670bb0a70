"""Every head of every run as a map of any metric; a click shows that head's numbers, its course and its patterns."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headdyn.core.chart_parts import GREY, PALETTE, alt
from headdyn.core.figures import Figure
from headdyn.core.numbers import count, p_value
from headdyn.core.records import HeadTable
from headdyn.report.blocks import Section, Table, cell
from headdyn.report.sections.patterns import RunPatterns, head_metrics, heads_of_training, patterns_that_fit
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import read_series

_ABOUT = (
    "Choose a metric above the maps; an asterisk marks q < 0.05. Click a head for all of its numbers, and for its "
    "course where its training was analysed at several steps."
)
_PATTERNS = " The head's attention patterns are below: point at a cell for its two tokens and its weight."
PATTERN_BYTES = 9_000_000  # of all patterns in a page
# The first of these that was measured is shown first.
_FIRST = ("selectivity_documents", "selectivity", "effect_nats", "sufficiency_nats")
_STANDING_OUT = 12  # rows of the table of tests with the smallest q
_COLUMNS = {"value": "value", "ci_low": "low", "ci_high": "high", "null": "null", "p": "p", "q": "q"}
_LATIN = "".join(map(chr, range(256)))


def section(sweep: SweepRecord) -> Section | None:
    """The maps of heads, and the views that a click on a head opens."""
    jobs = [job for job in sweep.complete if head_metrics(job.heads)]
    if not jobs:
        return None
    patterns = patterns_that_fit(jobs, PATTERN_BYTES)
    left_out = dict.fromkeys(part.left_out for part in patterns.values() if part.left_out)
    notes = [f"To keep this page small, only {text}; all are in the runs' patterns.safetensors." for text in left_out]
    blocks = [_ABOUT + (_PATTERNS if patterns else ""), explorer(sweep, jobs, patterns), *notes]
    headline = "maps of every metric, courses over training, attention patterns"
    return Section("heads", "Heads, layer by layer", blocks, headline)


def standing_out(sweep: SweepRecord) -> Section | None:
    """The tests on a run's heads with the smallest q."""
    tested = [row for row in sweep.jobs[0].heads.rows() if row["q"] is not None and row["head"] is not None]
    if not tested:
        return None
    first = sorted(tested, key=lambda row: (row["q"], -abs(row["value"])))[:_STANDING_OUT]
    rows = []
    for row in first:
        metric, head = sweep.metric(row["metric"]), f"{row['layer']}.{row['head']}"
        rows.append([head, metric.label, cell(row, metric), metric.unit, p_value(row["p"]), p_value(row["q"])])
    headline = f"{sum(row['q'] < 0.05 for row in tested)} of {count(len(tested), 'test')} on heads have q < 0.05"
    table = Table(columns=["layer.head", "metric", "value", "unit", "p", "q"], rows=rows, dense=True)
    return Section("standing-out", "Heads that stand out", [table], headline)


def explorer(sweep: SweepRecord, jobs: Sequence[Job], patterns: dict[int, RunPatterns]) -> dict[str, Any]:
    """The Vega-Lite specification of the maps and of the views that a click on a head opens."""
    families = _families(sweep, jobs)
    rows = [row for family in families for row in _family_rows(family)]
    labels = _readable(rows, sweep)
    metrics = list(labels.values())
    layer, head = _first_head(families[0].jobs, rows[0])
    first_job = families[0].jobs[-1 if families[0].steps else 0]
    first_pick = {"family": 0, "arms": families[0].arms(first_job), "layer": layer, "head": head}
    fields = {"type": "point", "fields": list(first_pick), "on": "click", "toggle": False}
    words = [f"{label}: {name}" for name, label in labels.items()]
    menu: dict[str, Any] = {"input": "select", "options": metrics, "name": "metric ", "labels": words}
    first_metric = next((labels[name] for name in _FIRST if name in labels), metrics[0])
    params = [
        {"name": "metric", "value": first_metric, "bind": menu},
        {"name": "ranges", "value": {name: _range(rows, name) for name in metrics}},
        {"name": "shown", "value": "."},
        {"name": "pick", "select": fields, "views": ["maps"], "value": [first_pick]},
    ]
    pick = alt.selection_point(name="pick", empty=False)
    views: list[Any] = [_maps(jobs, pick), _numbers(metrics, jobs, pick)]
    if any(row["course"] for row in rows):
        views[1] = alt.hconcat(_course(rows), views[1], spacing=40)
    datasets: dict[str, Any] = {"heads": rows}
    if patterns:
        sequences, length = (max(part.tokens_NT.shape[axis] for part in patterns.values()) for axis in (0, 1))
        menu = {"input": "select", "options": list(range(1, sequences + 1)), "name": "sequence "}
        params += [{"name": "sequence", "value": 1, "bind": menu}, {"name": "latin", "value": _LATIN}]
        views.append(_patterns(length, pick))
        datasets |= _pattern_tables(families, patterns)
    chart = alt.vconcat(*views, spacing=28).resolve_scale(color="independent", fill="independent")
    # Altair cannot give a selection to a view inside a facet, so the parameters are added to the specification.
    drawn_by = {"usermeta": {"embedOptions": {"renderer": "canvas"}}}  # thousands of cells are too many for SVG
    return Figure(chart).spec() | {"params": params, "datasets": datasets} | drawn_by


def _first_head(jobs: Sequence[Job], row: Mapping[str, Any]) -> tuple[int, int]:
    """The head (layer, head) that is shown before a reader picks one: a head with a role, else the first measured."""
    measured = [i for i, value in enumerate(row["value"]) if value is not None]
    return next(iter(heads_of_training(jobs).values()), (row["layer"][measured[0]], row["head"][measured[0]]))


def _maps(jobs: Sequence[Job], pick: alt.Parameter) -> Any:
    layers, heads = (max(job.heads.matrix(head_metrics(job.heads)[0]).shape[axis] for job in jobs) for axis in (0, 1))
    numbers = heads <= 6
    wide, high = (44, 24) if numbers else (max(11, 170 // heads), 14)
    x = alt.X("head:O", title="head").axis(labelAngle=0, ticks=False, domain=False, labelOverlap="greedy")
    y = alt.Y("layer:O", title="layer").axis(ticks=False, domain=False, labelOverlap=True)
    lowest, highest, scheme = (alt.expr(f"ranges[metric][{place}]") for place in range(3))
    scale = alt.Scale(domainMin=lowest, domainMax=highest, scheme=scheme, nice=False)
    share = "(datum.value - ranges[metric][0]) / (ranges[metric][1] - ranges[metric][0])"
    dark = f"ranges[metric][2] === 'cividis' ? {share} < 0.55 : abs({share} - 0.5) > 0.33"
    star = "(isValid(datum.q) && datum.q < 0.05 ? '*' : '')"
    base = alt.Chart(alt.NamedData("heads")).encode(x, y)
    fill = alt.Fill("value:Q", scale=scale, legend=alt.Legend(title=None))
    cells = base.mark_rect(cursor="pointer", stroke="white").encode(fill, tooltip=_tips())
    chosen = base.mark_rect(fillOpacity=0, stroke="black", strokeWidth=2.5).transform_filter(pick)
    value = f"replace(format(datum.value, ranges[metric][3]), /^−(0\\.?0*)$/, '$1') + {star}" if numbers else star
    texts = base.mark_text(fontSize=10).transform_calculate(text=value)
    ink = alt.ColorValue(**alt.condition(dark, alt.value("white"), alt.value("black")))
    texts = texts.encode(alt.Text("text:N"), ink)
    chart = alt.layer(cells.properties(name="maps"), texts, chosen).properties(width=wide * heads, height=high * layers)
    header = alt.Header(labelFontSize=12, labelAnchor="start", labelFontWeight="normal", labelLimit=wide * heads + 40)
    run = alt.Facet("label:N", title=None, sort=[job.label for job in jobs], header=header)
    return (
        chart.facet(run, columns=max(1, int(1000 / (wide * heads + 70))), spacing=14)
        .transform_filter("isValid(datum.run) && datum.metric === metric && test(regexp(shown), datum.run)")
        .transform_flatten(["layer", "head", *_COLUMNS.values()])
        .transform_filter("isValid(datum.value)")
    )


def _numbers(metrics: Sequence[str], jobs: Sequence[Job], pick: alt.Parameter) -> Any:
    """All metrics of the picked head in every arm of its training."""
    digits = {"low": 3, "high": 3, "q": 2, "p": 2}
    low, high, q, p = (f"format(datum.{name}, '.{count}~g')" for name, count in digits.items())
    interval = f"(isValid(datum.low) && isValid(datum.high) ? ' [' + {low} + ', ' + {high} + ']' : '')"
    test = f"(isValid(datum.q) ? '  q ' + {q} : isValid(datum.p) ? '  p ' + {p} : '')"
    arms = [job.label for job in sorted(jobs, key=lambda job: job.recalibrated)]
    bare: Any = {"domain": False, "ticks": False}
    x = alt.X("label:N", title=None, sort=arms).axis(orient="top", labelAngle=0, labelLimit=230, **bare)
    y = alt.Y("metric:N", title=None, sort=list(metrics)).axis(labelLimit=300, **bare)
    return (
        alt.Chart(alt.NamedData("heads"))
        .mark_text(fontSize=11)
        .transform_filter("isValid(datum.run) && test(regexp(shown), datum.run)")
        .transform_flatten(["layer", "head", *_COLUMNS.values()])
        .transform_filter(pick)
        .transform_filter("isValid(datum.value)")
        .transform_calculate(text=f"format(datum.value, '.4~g') + {interval} + {test}")
        .encode(x, y, alt.Text("text:N"), tooltip=_tips())
        .properties(width=alt.Step(240), height=alt.Step(17), title=_head_title("'All numbers of '"))
    )


def _course(rows: Sequence[dict[str, Any]]) -> Any:
    """The metric over training steps: the picked head with interval and null, the layer's other heads in grey."""
    steps = sorted({row["step"] for row in rows if row["course"]})
    x = alt.X("step:Q", title="training step").scale(type="symlog", nice=False).axis(values=steps, labelOverlap=True)
    picked = "datum.layer === pick.layer[0] && datum.family === pick.family[0] && isValid(datum.value)"
    base = alt.Chart(alt.NamedData("heads")).encode(x).transform_filter("datum.course && datum.metric === metric")
    base = base.transform_flatten(["layer", "head", *_COLUMNS.values()]).transform_filter(picked)
    own = base.transform_filter("datum.head === pick.head[0]")
    y, tips = alt.Y("value:Q", title=None), [alt.Tooltip("step:Q"), *_tips()]
    layers = [
        base.mark_line(color="#c5ccd5", strokeWidth=1.2).encode(y, alt.Detail("head:N")),
        own.mark_area(color=PALETTE[0], opacity=0.2).encode(alt.Y("low:Q", title=None), alt.Y2("high:Q")),
        own.mark_line(color=GREY, strokeDash=[6, 3]).encode(alt.Y("null:Q", title=None)),
        own.mark_line(color=PALETTE[0], strokeWidth=2.2, point=True).encode(y, tooltip=tips),
    ]
    note = "blue: this head with its 95 % interval; dashes: its null; grey: the layer's other heads"
    return alt.layer(*layers).properties(width=430, height=230, title=_head_title("metric + ' of '", subtitle=note))


def _patterns(length: int, pick: alt.Parameter) -> Any:
    """The picked head's patterns on the chosen sequence, in all arms of its training side by side."""
    side = length * max(1, 270 // length)
    query = "floor((sqrt(8 * datum.place - 7) - 1) / 2)"
    scale = alt.Scale(domain=[0, length], nice=False)
    down = alt.Scale(domain=[length, 0], nice=False)
    tokens = [alt.Tooltip(f"{place}{part}:N") for place in ("query", "key") for part in ("", "_token", "_topic")]
    cells = alt.Chart().mark_rect()
    cells = cells.encode(
        alt.X("key:Q", title="key position (tokens)", scale=scale).axis(grid=False),
        alt.X2("key_end:Q"),
        alt.Y("query:Q", title="query position (tokens)", scale=down).axis(grid=False),
        alt.Y2("query_end:Q"),
        alt.Color("weight:Q", title="weight").scale(type="sqrt", domain=[0, 1], scheme="cividis"),
        tooltip=[*tokens, alt.Tooltip("weight:Q", format=".3~g")],
    )
    chosen = "datum.arms === pick.arms[0] && datum.sequence === sequence"
    edges = alt.Chart(alt.NamedData("edges")).transform_filter(chosen).mark_rule(color="#d55e00", strokeWidth=0.8)
    chart = alt.layer(cells, edges.encode(x=alt.X("edge:Q", scale=scale)), edges.encode(y=alt.Y("edge:Q", scale=down)))
    return (
        chart.properties(width=side, height=side)
        .facet(alt.Facet("label:N", title=None), columns=max(1, 1000 // (side + 60)), data=alt.NamedData("patterns"))
        .transform_filter(pick)
        .transform_filter("datum.sequence === sequence && test(regexp(shown), datum.run)")
        .transform_lookup("run_sequence", alt.LookupData(alt.NamedData("tokens"), "run_sequence", ["tokens", "topics"]))
        .transform_calculate(cell="split(atob(datum.codes), '')")
        .transform_flatten(["cell"])
        .transform_window(place="row_number()", groupby=["run"])
        .transform_calculate(
            query=query,
            key="datum.place - 1 - datum.query * (datum.query + 1) / 2",
            weight="pow(indexof(latin, datum.cell) / 255, 2)",
        )
        .transform_filter("datum.weight > 0")
        .transform_calculate(
            key_end="datum.key + 1",
            query_end="datum.query + 1",
            query_token="datum.tokens[datum.query]",
            query_topic="datum.topics[datum.query]",
            key_token="datum.tokens[datum.key]",
            key_topic="datum.topics[datum.key]",
        )
        .properties(title=_head_title("'Attention of '"))
        .resolve_scale(x="shared", y="shared")
    )


def _head_title(before: str, **more: Any) -> Any:
    return alt.TitleParams(text=alt.expr(f"{before} + 'layer ' + pick.layer[0] + ', head ' + pick.head[0]"), **more)


def _tips() -> list[Any]:
    names = (alt.Tooltip(f"{name}:N") for name in ("label", "layer", "head", "metric"))
    return [*names, *(alt.Tooltip(f"{name}:Q", format=".4~g") for name in _COLUMNS.values())]


@dataclass(frozen=True)
class _Family:
    """Runs whose heads correspond: the arms of a training, or the checkpoints of a series."""

    number: int
    jobs: Sequence[Job]
    steps: Mapping[int, int]  # training steps of the checkpoints, by run number; empty for arms

    def arms(self, job: Job) -> str:
        """A name for the runs that are shown together: all arms of a training, but each checkpoint by itself."""
        return f"run {job.number}" if self.steps else f"family {self.number}"

    def about(self, job: Job) -> dict[str, Any]:
        """The columns that are the same in all rows of a run."""
        return {"run": str(job.number), "family": self.number, "arms": self.arms(job), "label": job.label}


def _families(sweep: SweepRecord, jobs: Sequence[Job]) -> list[_Family]:
    numbers = {job.number for job in jobs}
    families: list[_Family] = []
    groups: list[tuple[Sequence[Job], dict[int, int]]] = []
    for series in read_series(sweep):
        rows = [row for row in series.counted if row["revision"] in series.jobs]
        groups.append((series.complete, {series.jobs[row["revision"]].number: row["step"] for row in rows}))
    for members, steps in (*groups, *((siblings, {}) for siblings in sweep.siblings)):
        of_family = [job for job in members if job.number in numbers]
        families += [_Family(len(families), of_family, steps)] if of_family else []
        numbers -= set(steps)
    return families


def _family_rows(family: _Family) -> list[dict[str, Any]]:
    """One row per run and metric; with several training steps, also one per step and metric, for the course."""
    rows = [row for job in family.jobs for row in _rows(job.heads, family.about(job) | {"course": False})]
    tables: dict[int, HeadTable] = {}
    for job in family.jobs:
        paths = job.run.folder.glob("heads_step*.parquet")
        tables |= {int(path.stem.removeprefix("heads_step")): HeadTable.read(path) for path in paths}
    for job in family.jobs:
        if not job.recalibrated:  # the end of the training itself, or a checkpoint
            tables[family.steps.get(job.number, job.heads.table["step"][0].as_py())] = job.heads
    for step, table in sorted(tables.items()) if len(tables) > 1 else ():
        about = {"run": None, "family": family.number, "label": f"step {step}", "course": True, "step": step}
        rows += _rows(table, about)
    return rows


def _rows(heads: HeadTable, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per metric, with the numbers of all heads as lists."""
    rows = []
    for metric in head_metrics(heads):
        matrices = {short: heads.matrix(metric, name) for name, short in _COLUMNS.items()}
        layer_LH, head_LH = np.indices(matrices["value"].shape)
        lists: dict[str, list[Any]] = {"layer": layer_LH.ravel().tolist(), "head": head_LH.ravel().tolist()}
        lists |= {name: list(map(_short, matrix.ravel().tolist())) for name, matrix in matrices.items()}
        rows.append({**about, "metric": metric, **lists})
    return rows


def _pattern_tables(families: Sequence[_Family], stored: Mapping[int, RunPatterns]) -> dict[str, list[dict[str, Any]]]:
    patterns: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    edges: dict[tuple[str, int, int], dict[str, Any]] = {}
    for family, job in ((owner, job) for owner in families for job in owner.jobs if job.number in stored):
        part, arms = stored[job.number], family.arms(job)
        for n, topics_T in enumerate(part.topics_NT):
            key = {"run_sequence": f"{job.number} {n + 1}"}
            topics = [part.topic_names[topic] for topic in topics_T]
            tokens.append(key | {"tokens": part.tokens_NT[n].tolist(), "topics": topics})
            for edge in (np.flatnonzero(np.diff(topics_T)) + 1).tolist():
                edges[arms, n, edge] = {"arms": arms, "sequence": n + 1, "edge": edge}
            about = {**family.about(job), "sequence": n + 1, **key}
            for (layer, head), codes in part.codes.items():
                patterns.append({**about, "layer": layer, "head": head, "codes": base64.b64encode(codes[n]).decode()})
    return {"patterns": patterns, "tokens": tokens, "edges": list(edges.values())}


def _readable(rows: Sequence[dict[str, Any]], sweep: SweepRecord) -> dict[str, str]:
    """Change the rows in place to the metrics' labels and units. Returns the labels by the metrics' names, in order."""
    names = list(dict.fromkeys(row["metric"] for row in sorted(rows, key=lambda row: row["run"] is None)))
    labels = {name: f"{m.label} ({m.unit})" if (m := sweep.metric(name)).unit else m.label for name in names}
    labels = {name: label if list(labels.values()).count(label) == 1 else name for name, label in labels.items()}
    for row in rows:
        scale = sweep.metric(row["metric"]).scale
        row["metric"] = labels[row["metric"]]
        for column in ("value", "low", "high", "null"):
            row[column] = [None if value is None else _short(scale * value) for value in row[column]]
    return labels


def _range(rows: Sequence[Mapping[str, Any]], metric: str) -> tuple[float, float, str, str]:
    """Ends and name of a metric's colour scale, which diverges from 0 if a value is negative; the format of numbers."""
    values = [value for row in rows if row["metric"] == metric for value in row["value"] if value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    reach = max(abs(low), abs(high))
    digits = ".0f" if reach >= 95 else ".1f" if reach >= 9.5 else ".2f" if reach >= 0.095 else ".3f"
    if low < 0:
        reach = max(reach, 1e-9)
        return -reach, reach, "purpleorange", digits
    low = 0.0 if low < high / 2 else low
    return low, high if high > low else low + 1, "cividis", digits


def _short(value: float) -> float | None:
    return None if np.isnan(value) else float(f"{value:.4g}")
