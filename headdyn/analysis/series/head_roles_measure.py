"""Which heads have a role at each checkpoint of a series, and whether early ranks predict the last ones.

K checkpoints, L layers, H heads.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headdyn.analysis.contract import SeriesFindings
from headdyn.analysis.series.head_roles import ROLES, HeadRoles
from headdyn.analysis.series.onset import departure
from headdyn.analysis.series.points import SeriesPoint, excluded_from, in_order
from headdyn.analysis.series.prediction import formed_by, predicted_from, predictions
from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.records import HeadTable


def measure(settings: HeadRoles, points: Sequence[SeriesPoint], generator: np.random.Generator) -> SeriesFindings:
    """Everything that `HeadRoles` reports of a series under these settings."""
    points = in_order(points)
    excluded, _ = excluded_from(points, settings.final)
    left_out = {**{p.revision: p.error for p in points if p.error is not None}, **excluded}
    tables = {p.step: p.table for p in points if p.revision not in left_out and p.step is not None}
    roles = {m: ROLES[m] for m in ROLES if m in settings.least and all(_measured(m, t) for t in tables.values())}
    if by_documents := "selectivity_documents" in roles:
        roles.pop("selectivity", None)
    verdict: dict[str, Any] = {"steps": list(tables), "left_out": left_out}
    if len(tables) < 2 or not roles:
        lacking = "no role was measured at every one" if len(tables) > 1 else "they are no series"
        verdict["reason"] = f"{len(tables)} checkpoints with attention statistics, and {lacking}"
        return SeriesFindings(table=HeadTable.concat(_absent(settings.metrics, verdict["reason"])), verdict=verdict)
    steps = list(tables)
    value, null, holds = {}, {}, {}
    for metric in roles:
        value[metric], null_KLH, q_KLH = (
            np.stack([table.matrix(metric, column) for table in tables.values()]) for column in ("value", "null", "q")
        )
        null[metric] = np.nan_to_num(null_KLH)
        untested = np.isnan(q_KLH).all()
        exceeds_KLH = value[metric] - null[metric] >= settings.least[metric]
        holds[metric] = exceeds_KLH & (untested | (q_KLH <= settings.alpha))
    count: dict[str, Any] = {"n": next(iter(holds.values()))[-1].size, "unit": "head"}
    rows: list[HeadTable] = []
    records: list[dict[str, Any]] = []
    for metric in roles:
        course, since = _course(steps, value[metric], null[metric], holds[metric])
        records += [{"role": roles[metric], **record} for record in course]
        rows.append(HeadTable.whole(f"{metric}_heads", holds[metric][-1].sum(), **count))
        rows.append(HeadTable.whole(f"{metric}_strongest_since", since, **count))
    excess = {metric: value[metric] - null[metric] for metric in roles}
    predicted = predictions(steps, excess, settings.relabellings, generator)
    verdict["predicted"] = {}
    for metric in roles:
        step, predictor = predicted_from(predicted, metric, settings.alpha) or (None, None)
        reason = "at no step do ranks predict the last ones beyond chance from then on"
        rows.append(HeadTable.whole(f"{metric}_predicted_from", step, reason=reason, **count))
        verdict["predicted"][roles[metric]] = {
            "from_step": step,
            "by": predictor and roles[predictor],
            "half_have_the_role_by": formed_by(steps, holds[metric]),
        }
    absent = settings.metrics.keys() - HeadTable.concat(rows).summary().keys()
    replaced = {name for name in absent if by_documents and name.startswith("selectivity_")}
    rows += _absent(replaced, "topic heads of documents go by selectivity_documents")
    rows += _absent(absent - replaced, "not measured at every checkpoint")
    verdict["became"] = {roles[metric]: became(metric, holds, roles) for metric in roles}
    return SeriesFindings(
        table=HeadTable.concat(rows),
        tables={"head_roles": pa.Table.from_pylist(records), "head_prediction": pa.Table.from_pylist(predicted)},
        figures=_figures(records, holds, steps, roles) | {"prediction": _prediction_figure(predicted, roles)},
        verdict=verdict,
    )


def _absent(metrics: Iterable[str], reason: str) -> list[HeadTable]:
    return [HeadTable.whole(metric, None, reason=reason) for metric in sorted(metrics)]


def _measured(metric: str, table: HeadTable) -> bool:
    return any(row["head"] is not None and row["value"] is not None for row in table.where(metric=metric).rows())


def _course(
    steps: Sequence[int], value_KLH: np.ndarray, null_KLH: np.ndarray, holds_KLH: np.ndarray
) -> tuple[list[dict[str, Any]], int]:
    """One record per checkpoint for one role, and the step since which the strongest head is that of the end."""
    shape = value_KLH.shape[1:]
    strongest_K = [int(np.nanargmax(excess_LH)) for excess_LH in value_KLH - null_KLH]
    last = np.unravel_index(strongest_K[-1], shape)
    since = steps[int(departure(np.array(strongest_K) == strongest_K[-1]))]
    records = []
    for k, step in enumerate(steps):
        layer, head = np.unravel_index(strongest_K[k], shape)
        records.append(
            {
                "step": step,
                "layer": int(layer),
                "head": int(head),
                "value": float(value_KLH[k, layer, head]),
                "null": float(null_KLH[k, layer, head]),
                "heads": int(holds_KLH[k].sum()),
                "value_of_last": float(np.nan_to_num(value_KLH[k][last])),
                "null_of_last": float(np.nan_to_num(null_KLH[k][last])),
            }
        )
    return records, since


def became(metric: str, holds: Mapping[str, np.ndarray], roles: Mapping[str, str]) -> dict[str, int]:
    """Of the heads with this role at the last checkpoint, how many had which other role last before they first had it.

    `holds` marks by metric the heads with its role, [K, L, H]. Heads without an earlier role are counted under "none",
    heads that last had several at the same checkpoint under all of them, as "induction and sink".
    """
    earlier: Counter[str] = Counter()
    for place in zip(*np.nonzero(holds[metric][-1]), strict=True):
        first = int(np.argmax(holds[metric][:, *place]))
        last = {
            roles[other]: int(np.flatnonzero(held[:first, *place])[-1])
            for other, held in holds.items()
            if other != metric and held[:first, *place].any()
        }
        earlier[" and ".join(role for role, k in last.items() if k == max(last.values())) or "none"] += 1
    return dict(earlier)


def _figures(
    records: Sequence[Mapping[str, Any]],
    holds: Mapping[str, np.ndarray],
    steps: Sequence[int],
    roles: Mapping[str, str],
) -> dict[str, Figure]:
    common: dict[str, Any] = {"xlabel": "training step", "log_x": True}
    lines = []
    for role in roles.values():
        course = [record for record in records if record["role"] == role]
        beyond = [record["value_of_last"] - record["null_of_last"] for record in course]
        lines.append(Curve(label=role, x=steps, y=beyond))
    counts = [Curve(label=role, x=steps, y=holds[metric].sum((1, 2)).astype(float)) for metric, role in roles.items()]
    return {
        "strongest": curves(
            lines,
            ylabel="share of attention beyond the null",
            title="The heads that are strongest at the end",
            caption="For each role the head that has it most at the last checkpoint, followed back to the first: what "
            "its metric exceeds its null by.",
            **common,
        ),
        "heads": curves(
            counts,
            ylabel="heads",
            title="Heads with each role",
            caption="Heads whose metric exceeds its null by what is set, at q ≤ α where it is tested.",
            **common,
        ),
    }


def _prediction_figure(records: Sequence[Mapping[str, Any]], roles: Mapping[str, str]) -> Figure:
    lines = []
    for metric, role in roles.items():
        own = [record for record in records if record["final"] == record["early"] == metric]
        step, value, low, high = (
            [record[key] for record in own] for key in ("step", "correlation", "ci_low", "ci_high")
        )
        lines.append(Curve(label=role, x=step, y=value, low=low, high=high))
    return curves(
        lines,
        xlabel="training step",
        ylabel="rank correlation with the last checkpoint",
        title="How early heads' later roles can be told",
        references={"chance": 0.0},
        log_x=True,
        caption="Heads ranked within their layers by what a role's metric exceeds its null by, at each checkpoint and "
        "at the last one: Spearman's correlation over all layers, with 95 % intervals over heads.",
    )
