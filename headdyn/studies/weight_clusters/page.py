"""The study's silhouettes beside ours, and why its reading and clustering of the weights misleads."""

from collections.abc import Mapping, Sequence
from typing import Any

from headdyn.core.figures import Curve, Figure
from headdyn.core.numbers import fixed, listed, number
from headdyn.report.blocks import Cell, Section, Table
from headdyn.report.sections.series import curve
from headdyn.studies.pages import facts, first_cell, is_of, jobs_by_step, misleading
from headdyn.studies.weight_clusters.clusters import PARTS
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import Series, read_series

OURS = ("qk_silhouette", "ov_silhouette")


def sections(sweep: SweepRecord) -> list[Section]:
    """The study's figures beside ours, and why its procedure misleads."""
    return [section for section in (_beside(read_series(sweep)), _misleads(sweep)) if section is not None]


def silhouette(part: str) -> str:
    """The name of the metric: the silhouette of the pieces that the study called query, key or value heads."""
    return f"original_{part}_silhouette"


def _beside(series: Sequence[Series]) -> Section | None:
    reported = facts("weight_clusters")["silhouettes"]
    same = [each for each in series if any(each.points(name) for name in (*map(silhouette, PARTS), *OURS))]
    blocks: list[Any] = [[figure for each in same if (figure := _curve(each)) is not None]]
    if any(is_of(each.model, reported) for each in same):
        theirs = {row[0]: row[1:] for row in reported["rows"]}
        ours = jobs_by_step([each for each in same if is_of(each.model, reported)])
        rows = []
        for step in sorted(theirs.keys() | ours.keys()):
            cells = [Cell(fixed(value, 3)) for value in theirs.get(step, [None] * len(PARTS))]
            cells += [first_cell(ours.get(step, []), name) for name in (*map(silhouette, PARTS), *OURS)]
            rows.append([Cell(f"step {number(step)}"), *cells])
        headings = [f"{whose}\n{part}" for whose in ("the study", "ours, as the study did it") for part in PARTS]
        headings += [f"ours\n{name}" for name in ("QK circuits", "OV circuits")]
        source = f"Source: {reported['source']}. {reported['note']}."
        blocks += [source, Table(columns=["", *headings], rows=rows)]
    elif same:
        blocks.append(f"The study's figures are of {reported['model']} alone, not of {same[0].model}.")
    return Section("silhouettes", "Silhouettes of two weight clusters", blocks) if same else None


def _curve(series: Series) -> Figure | None:
    """Our silhouettes of the study's pieces over training and, for the study's model, the study's own."""
    reported = facts("weight_clusters")["silhouettes"]
    steps, *columns = zip(*reported["rows"], strict=True)
    theirs = [Curve(label=f"the study's {part}", x=steps, y=y) for part, y in zip(PARTS, columns, strict=True)]
    return curve(series, [silhouette(part) for part in PARTS], more=theirs if is_of(series.model, reported) else ())


def _misleads(sweep: SweepRecord) -> Section | None:
    jobs = [job for job in sweep.complete if silhouette(PARTS[0]) in job.run.scalars]
    if not jobs:
        return None
    title = "What the study did with the weights, and why it misleads"
    return Section("misleads_clusters", title, misleading("weight_clusters", silhouettes(jobs[-1]), ""))


def silhouettes(job: Job) -> str:
    """A run's silhouettes of the misread pieces and of heads, with their nulls."""

    def with_nulls(names: Mapping[str, str], null: str) -> str:
        texts = []
        for name, label in names.items():
            if (scalar := job.scalar(name)).get("value") is not None:
                of_null = f" ({null} {fixed(scalar['null'], 3)})" if scalar.get("null") is not None else ""
                texts.append(f"{label} {fixed(scalar['value'], 3)}{of_null}")
        return listed(texts)

    parts = with_nulls({silhouette(part): part for part in PARTS}, "random pieces")
    heads = with_nulls(dict(zip(OURS, ("QK circuits", "OV circuits"), strict=True)), "null")
    sizes = [v for part in PARTS if (v := job.run.value(f"original_{part}_smallest_cluster")) is not None]
    text = f"{job.label}: silhouettes of the pieces, {parts}"
    text += f"; of heads rightly unpacked, {heads}" if heads else ""
    text += f". The smaller of two clusters holds {listed([fixed(v, 0) for v in sizes])} pieces" if sizes else ""
    return f"{text}."
