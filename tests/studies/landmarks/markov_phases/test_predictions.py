"""The verdicts on made-up trainings whose answer is plain."""

from __future__ import annotations

from headdyn.studies.landmarks import verdict
from headdyn.studies.landmarks.courses import Course
from headdyn.studies.landmarks.markov_phases.corpus import PREDICTORS
from headdyn.studies.landmarks.markov_phases.predictions import LANDMARK, nearest
from tests.studies.landmarks.made_courses import course


def made(chains: int, *path: str) -> Course:
    """A training whose snapshots are nearest to these predictors in turn."""
    columns = {f"kl_{name}_fresh_nats": [0.0 if name == here else 1.0 for here in path] for name in PREDICTORS}
    return course(range(len(path)), columns, **{"data.num_chains": chains})


FEW = made(4, "unigram_inference", "unigram_retrieval", "bigram_retrieval")
MANY = made(1024, "unigram_inference", "bigram_inference", "bigram_inference")


def judged(number: int, *courses: Course) -> str:
    return verdict(LANDMARK.predictions[number].judge(courses))


def test_the_known_result_supports_every_prediction() -> None:
    assert nearest(FEW) == ["unigram_inference", "unigram_retrieval", "bigram_retrieval"]
    assert [judged(number, FEW, MANY) for number in range(3)] == ["supported"] * 3


def test_other_ends_are_seen() -> None:
    assert judged(0, made(4, "unigram_inference", "bigram_inference"), MANY) == "not supported"
    assert judged(1, FEW, made(1024, "unigram_inference", "bigram_retrieval")) == "not supported"
    assert not LANDMARK.predictions[1].judge([FEW])  # many chains are judged beside few alone


def test_a_return_to_unigrams_or_none_at_all_is_seen() -> None:
    assert judged(2, made(4, "unigram_retrieval", "bigram_retrieval", "unigram_retrieval")) == "not supported"
    assert judged(2, made(4, "bigram_retrieval")) == "not supported"
    assert judged(2, FEW, made(4, "bigram_retrieval")) == "undecided"


def test_what_an_untrained_model_is_nearest_to_is_no_stage() -> None:
    far = {f"kl_{name}_fresh_nats": [1.0] * 4 for name in PREDICTORS}

    def following(unigrams: list[float]) -> Course:
        columns = {"kl_unigram_retrieval_fresh_nats": unigrams, "kl_bigram_retrieval_fresh_nats": [0.4, 0.3, 0.2, 0.01]}
        return course(range(4), far | columns, **{"data.num_chains": 4})

    assert nearest(following([0.1, 0.08, 0.3, 0.3])) == ["bigram_retrieval"]
    assert judged(2, following([0.1, 0.08, 0.3, 0.3])) == "not supported"
    assert nearest(following([0.1, 0.04, 0.3, 0.3])) == ["unigram_retrieval", "bigram_retrieval"]
    assert judged(2, following([0.1, 0.04, 0.3, 0.3])) == "supported"
