"""H1 to H5 on trajectories worked out by hand: letters are S supported, R rejected, U undecided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headdyn.analysis.series.judgement import Measure, Rules
from headdyn.analysis.series.judgement import judge as judge_measure
from headdyn.studies.even_odd_emergence.hypotheses import STATEMENTS, judge
from tests.analysis.series.test_judgement import ORIGINAL_TIMELINE

TOTAL = 1000


def judged(values: list[float], steps: list[int] | None = None, **fields: Any) -> dict[str, dict[str, Any]]:
    steps = steps or [TOTAL * (k + 1) // len(values) for k in range(len(values))]
    measure = Measure(
        name="strength", steps=tuple(steps), value_K=np.array(values, float), **{"threshold": 0.5, **fields}
    )
    return judge(judge_measure(measure, TOTAL, Rules(), np.random.default_rng(0)), Rules())


@pytest.mark.parametrize(
    ("values", "letters"),
    [
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 1], "RRSRS"),
        ([0, 0, 0, 0, 1, 1, 1, 1, 1, 1], "RSRRS"),
        ([0, 1, 1, 1, 1, 1, 1, 1, 1, 1], "RRRRS"),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], "SRRUU"),
        ([0.1 * k for k in range(10)], "RSRSR"),
        ([0] * 10, "RRRUU"),
        ([0.5] * 10, "RRRUU"),  # at the threshold is not above it
        ([-1] * 10, "RRRUU"),
        ([0, 0, 1], "RUUUU"),  # too coarse to tell mid from late
        ([0, 0.6, 0, 0.6], "RSRRU"),  # in at most 25 % of training: not gradual
    ],
)
def test_by_hand(values: list[float], letters: str) -> None:
    found = judged(values)
    assert list(found) == list(STATEMENTS) == ["H1", "H2", "H3", "H4", "H5"]
    assert "".join(one["verdict"][0].upper() for one in found.values()) == letters
    assert all("probability" not in one for one in found.values()), "no pairs, so nothing is said of sampling"


def test_evidence_and_statements_say_the_numbers() -> None:
    found = judged([0, 0.1, 0.7, 0.4, 1.0], [1, 10, 100, 500, 1000])
    assert found["H1"]["evidence"] == "it emerges after step 10 and by step 100 (1.0% to 10.0%)"
    assert found["H5"]["evidence"] == (
        "it rises from 10 to 90 % within steps 10 to 1000, in 40.0% to 99.0% of training"
    )
    assert found["H1"]["statement"] == "early: it emerges in the first 10% of training"
    assert judged([0, 0])["H4"]["evidence"] == "nothing emerged, so there is no pace"


def test_an_interval_across_the_boundary_of_h1_leaves_it_undecided() -> None:
    assert judged([0, 1], [50, 100])["H1"]["verdict"] == "supported"
    assert judged([0, 1], [50, 150])["H1"]["verdict"] == "undecided"
    assert judged([0, 1], [100, 150])["H1"]["verdict"] == "rejected"


def test_probabilities_are_those_of_the_draws() -> None:
    pairs_KP = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    found = judged([0.0, 1.0], [850, 900], value_KP=pairs_KP)
    assert found["H3"]["probability"] == 1 and found["H1"]["probability"] == 0 and found["H5"]["probability"] == 1


def test_the_studys_conclusions_follow_from_its_table() -> None:
    steps, even, odd = zip(*ORIGINAL_TIMELINE, strict=True)
    measure = Measure(name="strength", steps=steps, value_K=np.subtract(even, odd).astype(float), threshold=0.5)
    found = judge(judge_measure(measure, 143_000, Rules(), np.random.default_rng(0)), Rules())
    verdicts = {name: one["verdict"] for name, one in found.items()}
    assert verdicts.pop("H3") == "supported" and verdicts.pop("H5") == "undecided"  # its last interval is 16 %
    assert set(verdicts.values()) == {"rejected"}
    assert "probability" not in found["H3"], "one prompt has no sampling error that could be told"
