import pytest

from headdyn.core.numbers import count, decimals, duration, fixed, listed, number, p_is, p_value, spelled


@pytest.mark.parametrize(
    ("half_width", "places"),
    [(0.013, 3), (0.035, 3), (0.036, 2), (0.007, 3), (0.0035, 4), (0.9, 1), (2.0, 1), (5.0, 0), (20.0, 0), (1e-9, 6)],
)
def test_an_interval_says_how_many_decimals_its_value_supports(half_width: float, places: int) -> None:
    assert decimals(1.0, 1 - half_width, 1 + half_width) == places


def test_without_an_interval_there_are_four_significant_digits() -> None:
    assert [decimals(v) for v in (2.561, 59.3, 0.0412, 0.0)] == [3, 2, 5, 3]


def test_fixed_has_a_true_minus_and_no_negative_zero() -> None:
    assert fixed(-1.25, 1) == "−1.2"
    assert fixed(-0.001, 2) == "0.00"
    assert fixed(0.25, 2, signed=True) == "+0.25"
    assert fixed(None, 2) == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (True, "yes"), (120, "120"), (25_600, "25 600"), (0.00052, "5.2e−4"), (2.5610, "2.561"), (0, "0")],
)
def test_number(value: float | None, text: str) -> None:
    assert number(value) == text


def test_value_and_interval_share_their_decimals() -> None:
    assert spelled({"value": 0.41234, "ci_low": 0.4052, "ci_high": 0.4191}) == "0.412 [0.405, 0.419]"
    assert spelled({"value": 0.41234, "ci_low": 0.4052, "ci_high": 0.4191}, scale=100) == "41.2 [40.5, 41.9]"
    assert spelled({"value": None, "reason": "no topics"}) == "–"


def test_small_words() -> None:
    assert (count(1, "seed"), count(3, "seed")) == ("1 seed", "3 seeds")
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert (p_is(0.0004), p_is(0.032, "q")) == ("p < 0.001", "q = 0.032")
    assert (p_value(0.0004), p_value(0.032), p_value(0.3), p_value(None)) == ("< 0.001", "0.032", "0.30", "–")
    assert [duration(s) for s in (None, 0.01, 8.3, 125, 4800)] == ["–", "< 0.1 s", "8.3 s", "2 min 05 s", "1 h 20 min"]


def test_bounds_of_seconds_and_of_powers_of_ten() -> None:
    assert (duration(59.94), duration(59.95)) == ("59.9 s", "1 min 00 s")
    assert (number(0.0015), number(0.00099)) == ("0.001500", "9.9e−4")
