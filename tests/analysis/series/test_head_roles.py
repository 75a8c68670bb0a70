"""Which heads take which role: heads and steps set by hand, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from headdyn.analysis.series.head_roles import ROLES, HeadRoles
from headdyn.analysis.series.head_roles_measure import became
from headdyn.analysis.series.points import SeriesPoint
from headdyn.core.records import HeadTable
from tests.figure_checks import rows

LEAST = {"previous_token": 0.2, "induction": 0.2}
# Three checkpoints of one layer with three heads. Head 0 looks at the previous token, head 1 does so first and then
# becomes an induction head, head 2 attends by induction, but not beyond chance.
PREVIOUS = np.array([[0.1, 0.6, 0.0], [0.9, 0.1, 0.0], [0.8, 0.1, 0.0]])
INDUCTION = np.array([[0.0, 0.1, 0.2], [0.0, 0.7, 0.6], [0.0, 0.9, 0.6]])
NULL = np.array([[0.05, 0.15, 0.05]])
Q = np.array([[1.0, 1.0, 1.0], [1.0, 0.01, 0.2], [1.0, 0.01, 0.2]])
# Two heads at three checkpoints: head 0 was previous-token and sink head at the second, head 1 sink head alone.
HELD = {
    "previous_token": [[0, 1], [1, 0], [0, 0]],
    "induction": [[0, 0], [0, 0], [1, 1]],
    "sink_rate": [[0, 0], [1, 1], [0, 0]],
}


def points(steps: tuple[int, ...] = (0, 10, 100)) -> list[SeriesPoint]:
    common = {"null": NULL, "n": 9, "unit": "sequence"}
    return [
        SeriesPoint(
            revision=f"step{step}",
            step=step,
            state_hash=f"{step}",
            table=HeadTable.concat(
                [
                    HeadTable.per_head("previous_token", PREVIOUS[k : k + 1], **common),
                    HeadTable.per_head("induction", INDUCTION[k : k + 1], q=Q[k : k + 1], **common),
                ]
            ),
        )
        for k, step in enumerate(steps)
    ]


def test_roles_their_strongest_heads_and_what_they_were_before() -> None:
    failed = SeriesPoint(revision="step50", step=50, error="no such revision")
    findings = HeadRoles(least=LEAST)([*points(), failed], np.random.default_rng(0))
    summary = findings.table.summary()
    assert summary["selectivity_heads"] == {"reason": "not measured at every checkpoint"}
    assert {name: row["value"] for name, row in summary.items() if "value" in row} == {
        "previous_token_heads": 1,
        "previous_token_strongest_since": 10,  # at step 0 it was head 1
        "induction_heads": 1,  # head 2's q is too large
        "induction_strongest_since": 10,
    }  # with three heads and one layer no p is below 1/6: nothing is predicted from early checkpoints
    assert "at no step do ranks predict" in summary["induction_predicted_from"]["reason"]
    foretold = findings.verdict["predicted"]["previous-token"]
    assert foretold == {"from_step": None, "by": None, "half_have_the_role_by": 10}
    of = {(r["final"], r["early"], r["step"]): r for r in findings.tables["head_prediction"].to_pylist()}
    assert of["induction", "previous_token", 0]["correlation"] == 0.5  # ranks 1 2 0 by hand against 0 2 1
    assert findings.verdict["became"] == {"previous-token": {"none": 1}, "induction": {"previous-token": 1}}
    assert findings.verdict["left_out"] == {"step50": "no such revision"}
    records = [row for row in findings.tables["head_roles"].to_pylist() if row["role"] == "previous-token"]
    assert [(row["null"], row["null_of_last"]) for row in records] == [(0.15, 0.05), (0.05, 0.05), (0.05, 0.05)]
    drawn = [row["y"] for row in rows(findings.figures["strongest"], "y") if row["series"] == "previous-token"]
    assert drawn == pytest.approx([0.05, 0.85, 0.75])  # less head 0's own null, also where head 1 led
    assert [(row["step"], row["head"], row["heads"], row["value_of_last"]) for row in records] == [
        (0, 1, 1, 0.1),
        (10, 0, 1, 0.9),
        (100, 0, 1, 0.8),
    ]
    assert set(findings.figures) == {"strongest", "heads", "prediction"}


def test_a_head_that_prefers_its_own_document_is_no_topic_head() -> None:
    """Head 0 gains 0.3 within its topic, all of it in its own document; head 1 attends to the topic elsewhere."""
    least, common = {"selectivity": 0.02, "selectivity_documents": 0.02}, {"n": 9, "unit": "sequence"}
    selectivity = HeadTable.per_head("selectivity", [[0.3, 0.2]], null=[[0, 0]], q=[[0.001, 0.001]], **common)
    beyond = HeadTable.per_head("selectivity_documents", [[0.0, 0.2]], null=[[0, 0]], q=[[0.9, 0.001]], **common)
    for tables, judged, heads in (
        ([selectivity], "selectivity", 2),
        ([selectivity, beyond], "selectivity_documents", 1),
    ):
        table = HeadTable.concat(tables)
        both = [SeriesPoint(revision=f"step{k}", step=k, state_hash=f"{k}", table=table) for k in (0, 10)]
        findings = HeadRoles(least=least)(both, np.random.default_rng(0))
        summary = findings.table.summary()
        assert summary[f"{judged}_heads"]["value"] == heads
        assert list(findings.verdict["became"]) == [ROLES[judged]]
    assert summary["selectivity_heads"] == {"reason": "topic heads of documents go by selectivity_documents"}
    assert summary["induction_heads"] == {"reason": "not measured at every checkpoint"}


def test_the_strongest_head_is_the_one_furthest_beyond_its_null() -> None:
    """Head 0 attends to the previous token most, but as much by chance; head 1 is a quarter beyond."""
    table = HeadTable.per_head("previous_token", [[0.5, 0.4]], null=[[0.45, 0.15]], n=9, unit="sequence")
    both = [SeriesPoint(revision=f"step{k}", step=k, state_hash=f"{k}", table=table) for k in (0, 10)]
    findings = HeadRoles(least=LEAST)(both, np.random.default_rng(0))
    assert [row["head"] for row in findings.tables["head_roles"].to_pylist()] == [1, 1]


def test_a_head_that_had_two_roles_at_once_is_counted_under_both() -> None:
    holds = {name: np.array(steps, bool).reshape(3, 1, 2) for name, steps in HELD.items()}
    assert became("induction", holds, ROLES) == {"previous-token and sink": 1, "sink": 1}


def test_what_is_no_series_says_so() -> None:
    alone = HeadRoles(least=LEAST)(points()[:1], np.random.default_rng(0))
    assert alone.verdict["reason"] == "1 checkpoints with attention statistics, and they are no series"
    unmeasured = HeadRoles(least={"selectivity": 0.02})(points(), np.random.default_rng(0))
    assert "no role was measured" in unmeasured.verdict["reason"]
    assert all(row["value"] is None and "no role was measured" in row["reason"] for row in unmeasured.table.rows())
    with pytest.raises(ValueError, match="least has entropy; roles are of previous_token, induction"):
        HeadRoles(least={"entropy": 0.2})
