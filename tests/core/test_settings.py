"""What is said of a key that nobody reads; what else settings refuse is tested in tests/test_config.py."""

import pytest

from headdyn.core.settings import unknown_key

KNOWN = ("seed", "train", "train.steps", "train.step", "train.stepss", "model.name")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("nothing", "unknown key nothing; There are seed, train"),
        ("train.###########", "unknown key train.###########; There are train.steps, train.step, train.stepss"),
        ("nowhere.zzz", "unknown key nowhere.zzz; There are seed, train"),
        (
            "train.stepz",
            "unknown key train.stepz; did you mean train.step or train.steps? "
            "There are train.steps, train.step, train.stepss",
        ),
    ],
)
def test_an_unknown_key_is_answered_by_the_two_nearest_and_those_beside_it(key: str, message: str) -> None:
    assert unknown_key(key, KNOWN) == message
