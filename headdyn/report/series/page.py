"""What a sweep's page shows of its series of checkpoints; templates/series.html sets it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from headdyn.report.seed_protocol import answers, explanation
from headdyn.report.series.charts import series_charts
from headdyn.report.series.maps import series_maps
from headdyn.report.series.other_analyses import other_analyses
from headdyn.report.series.record import Series
from headdyn.report.series.study import beside
from headdyn.report.series.tables import compared, hypothesis_table, identity_rows, verdict_table
from headdyn.report.series.words import headline
from headdyn.sweep.record import SweepRecord


@dataclass(frozen=True, kw_only=True)
class Part:
    """One series on the page. Tables are (column headings, rows)."""

    title: str
    headline: str
    claims: bool  # whether the study's claims are about what this series measured
    verdict: tuple[list[str], list[tuple[str, list[str]]]]
    hypotheses: tuple[list[str], list[dict[str, Any]]]
    charts: Sequence[tuple[str, str, Sequence[Markup]]]
    maps: Sequence[Markup]
    identity: Sequence[Mapping[str, str]]


def series_content(sweep: SweepRecord, series: Sequence[Series]) -> dict[str, Any]:
    """The page's content about series; `parts` is empty where no emergence was judged."""
    return {
        "parts": [
            Part(
                title=each.title,
                headline=headline(each),
                claims=each.of_prompts,
                verdict=verdict_table(each),
                hypotheses=hypothesis_table(each),
                charts=series_charts(each),
                maps=series_maps(each),
                identity=identity_rows(each),
            )
            for each in series
        ],
        "compared": compared(series) if len(series) > 1 else None,
        "beside": beside(series),
        "others": other_analyses(sweep),
        "points": explanation(sweep.jobs),
        "answers": answers(sweep.jobs),
    }
