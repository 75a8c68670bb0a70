"""The verdicts on made-up trainings whose answer is plain."""

from __future__ import annotations

from headdyn.studies.landmarks import verdict
from headdyn.studies.landmarks.courses import Course
from headdyn.studies.landmarks.markov_phases.corpus import PREDICTORS
from headdyn.studies.landmarks.markov_phases.predictions import LANDMARK, nearest
from tests.studies.landmarks.made_courses import course


def made(chains: int, *path: str) -> Course:
    """A training that starts far from all predictors and then follows these in turn, on its own chains and on fresh."""
    columns = {
        f"kl_{name}{where}_nats": [0.5, *(0.0 if name == here else 1.0 for here in path)]
        for name in PREDICTORS
        for where in ("", "_fresh")
    }
    return course(range(1 + len(path)), columns, **{"data.num_chains": chains})


FEW = made(4, "unigram_inference", "unigram_retrieval", "bigram_retrieval")
MANY = made(1024, "unigram_inference", "bigram_inference", "bigram_inference")


def judged(number: int, *courses: Course) -> str:
    return verdict(LANDMARK.predictions[number].judge(courses))


def test_the_known_result_supports_every_prediction() -> None:
    assert nearest(FEW) == [None, "unigram_inference", "unigram_retrieval", "bigram_retrieval"]
    assert [judged(number, FEW, MANY) for number in range(3)] == ["supported"] * 3


def test_other_ends_are_seen() -> None:
    assert judged(0, made(4, "unigram_inference", "bigram_inference"), MANY) == "not supported"
    assert judged(1, FEW, made(1024, "unigram_inference", "bigram_retrieval")) == "not supported"
    assert not LANDMARK.predictions[1].judge([FEW])  # many chains are judged beside few alone


def test_few_chains_are_judged_on_sequences_of_these_chains_and_only_where_the_model_follows_a_predictor() -> None:
    def ends(where: str, distance: float) -> Course:
        """Nearest to bigram retrieval at the end on one kind of chains, and far from all on the other."""
        columns = {f"kl_{name}{kind}_nats": [1.0, 1.0] for name in PREDICTORS for kind in ("", "_fresh")}
        return course(
            range(2), columns | {f"kl_bigram_retrieval{where}_nats": [1.0, distance]}, **{"data.num_chains": 4}
        )

    assert judged(0, ends("", 0.1), MANY) == "supported"
    assert judged(0, ends("", 0.6), MANY) == "not supported"  # nearest, and more than half as far as untrained
    assert judged(0, ends("_fresh", 0.1), MANY) == "not supported"


def test_a_return_to_unigrams_or_none_at_all_is_seen() -> None:
    assert judged(2, made(4, "unigram_retrieval", "bigram_retrieval", "unigram_retrieval")) == "not supported"
    assert judged(2, made(4, "bigram_retrieval")) == "not supported"
    assert judged(2, FEW, made(4, "bigram_retrieval")) == "undecided"


def test_what_an_untrained_model_is_nearest_to_is_no_stage() -> None:
    far = {f"kl_{name}_fresh_nats": [1.0] * 4 for name in PREDICTORS}

    def following(unigrams: list[float]) -> Course:
        columns = {"kl_unigram_retrieval_fresh_nats": unigrams, "kl_bigram_retrieval_fresh_nats": [0.4, 0.3, 0.2, 0.01]}
        return course(range(4), far | columns, **{"data.num_chains": 4})

    assert nearest(following([0.1, 0.08, 0.3, 0.3])) == [None, None, None, "bigram_retrieval"]
    assert judged(2, following([0.1, 0.08, 0.3, 0.3])) == "not supported"
    assert nearest(following([0.1, 0.04, 0.3, 0.3])) == [None, "unigram_retrieval", None, "bigram_retrieval"]
    assert judged(2, following([0.1, 0.04, 0.3, 0.3])) == "supported"
