"""What a factor asks of its levels."""

import numpy as np
import pytest

from headdyn.sweep.factors import Factor


@pytest.mark.parametrize(
    ("levels", "against"),
    [((4, 6, 9), "level"), ((0.01, 0.05, 0.5), "log2(level)"), ((-1, 5, 60), "level"), ((0, 5, 60), "level")],
)
def test_a_slope_is_of_doublings_where_the_levels_span_much(levels: tuple[float, ...], against: str) -> None:
    (slope,) = Factor("train.steps", levels, levels).slope()
    assert slope.against == against
    value = np.random.default_rng(0).normal(size=3)
    x = np.log2(levels) if against == "log2(level)" else levels
    found = sum(slope.weights[level] * one for level, one in zip(levels, value, strict=True))
    assert found == pytest.approx(np.polyfit(x, value, 1)[0])
