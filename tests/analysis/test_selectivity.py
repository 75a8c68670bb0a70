import numpy as np
import pytest
import torch

from headdyn.analysis.pattern_sums import position_profiles
from headdyn.analysis.selectivity import balanced_swaps, drawn_sequences, topic_contrast, without_topics
from headdyn.core.records import HeadTable
from tests.analysis import tiny
from tests.experiments.matrix_references import even_attention, selectivity

LENGTH = 24


@pytest.mark.parametrize(("count", "swaps"), [(21, 20), (40, 20), (2, 1), (64, 5)])
def test_a_sequence_is_never_its_own_null_and_all_serve_equally_often(count, swaps):
    for seed in range(50):
        found = balanced_swaps(count, swaps, np.random.default_rng(seed))
        assert found.shape == (count, swaps)
        assert (found != np.arange(count)[:, None]).all()  # mutant: shifts from 0 on
        assert all(len(set(row)) == swaps for row in found.tolist())
        assert (np.bincount(found.ravel(), minlength=count) == swaps).all()


def test_sequences_are_drawn_without_repeats_and_cut():
    corpus = tiny.corpus(rows=30, length=LENGTH)
    drawn, swaps = drawn_sequences(corpus, 25, 20, np.random.default_rng(0), length=10)
    assert drawn.tokens_NT.shape == drawn.topics_NT.shape == (25, 10) and swaps.shape == (25, 20)
    rows = {row.tobytes() for row in corpus.val.tokens_NT[:, :10].astype(np.int64)}
    chosen = {row.tobytes() for row in drawn.tokens_NT}
    assert chosen <= rows and len(chosen) == 25
    assert len(drawn_sequences(corpus, 500, 20, np.random.default_rng(0))[0]) == 30


def test_metrics_that_read_topics_are_absent_and_the_others_stay():
    rows = [{"metric": name, "value": 0.5, "n": 3, "unit": "sequence"} for name in ("selectivity", "sink_rate")]
    selectivity, sink = without_topics(HeadTable.from_rows(rows), ("selectivity",), "one topic").rows()
    assert selectivity["value"] is None and selectivity["reason"] == "one topic" and selectivity["n"] == 3
    assert sink["value"] == 0.5


def test_the_contrast_by_hand():
    topics, others = torch.tensor([0, 0, 1]), torch.tensor([[0, 1, 1], [0, 0, 0]])
    same = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    mean = torch.tensor([[1.0, 0.5, 0.5], [0.5, 1, 1], [0.5, 1, 1]])
    torch.testing.assert_close(topic_contrast(topics, others, 2), same - mean)


def test_attention_by_position_alone_has_no_selectivity_under_balanced_swaps():
    generator = np.random.default_rng(0)
    topics_NT = torch.from_numpy(tiny.topics(40, LENGTH, 3, generator).astype(np.int64))
    profile_QK = position_profiles(LENGTH)[2]

    def mean(swaps_NR: np.ndarray) -> float:
        parts = [topic_contrast(topics_NT[n], topics_NT[swaps_NR[n]], 3) for n in range(40)]
        return float((torch.stack(parts) * profile_QK).sum((1, 2)).mean() / LENGTH)

    assert abs(mean(balanced_swaps(40, 20, generator))) < 1e-6
    unbalanced_NR = np.tile(np.arange(20), (40, 1))  # mutant: the same twenty labels for all
    assert abs(mean(unbalanced_NR)) > 1e-3


def test_attention_that_reads_tags_alone_scores_as_worked_out_by_hand() -> None:
    """Speakers 0 1 0 (languages 0 1 0) and 0 0 1 (languages 2 2 3); each sequence is the other's null."""
    speaker_NT, next_NT = np.array([[0, 1, 0], [0, 0, 1]]), np.array([[1, 0, 0], [0, 1, 0]])
    topics_NT, swaps_NR = np.array([[0, 1, 0], [2, 2, 3]]), np.array([[1], [0]])
    own, announced = (even_attention(who_NT[:, :, None] == speaker_NT[:, None, :]) for who_NT in (speaker_NT, next_NT))
    assert own[0].tolist() == [[1, 0, 0], [0, 1, 0], [0.5, 0, 0.5]]
    assert announced[1].tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]]  # its second query: none of speaker 1 yet
    # By its tag a query stays within its topic; of one query in either sequence the other's labels do so by half.
    assert selectivity(own, topics_NT, swaps_NR, 4) == pytest.approx(1 / 6)
    # By the announced tag: 0 − 0, 0 − 1, 1 − 1/2 in the first sequence; 0, 1 − 1/2, 0 − 1/2 in the second.
    assert selectivity(announced, topics_NT, swaps_NR, 4) == pytest.approx(-1 / 12)
