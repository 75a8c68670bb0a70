from __future__ import annotations

import hashlib

import numpy as np
import pytest

from headdyn.core.settings import ConfigError, build
from headdyn.data.ordering import BatchSchedule, Ordering, Shuffled, TopicOrdered, dominant_topics

ORDERINGS = [
    Shuffled(),
    TopicOrdered(),
    TopicOrdered(within_block="fixed"),
    TopicOrdered(blocks=8),
    TopicOrdered(blocks=3, within_block="fixed"),
]


def dominant(count: int = 101, topics: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(topics, size=count)


def schedule(ordering: Ordering, batch_size: int = 8, count: int = 101, seed: int = 0) -> BatchSchedule:
    return BatchSchedule(ordering=ordering, dominant_N=dominant(count), batch_size=batch_size, seed=seed)


@pytest.mark.parametrize("ordering", ORDERINGS, ids=str)
def test_every_epoch_shows_the_same_multiset_of_sequences(ordering: Ordering) -> None:
    tokens_NT = np.random.default_rng(1).integers(4096, size=(101, 16), dtype=np.uint16)
    expected = sorted(hashlib.sha256(row.tobytes()).hexdigest() for row in tokens_NT)
    batches = schedule(ordering)
    stream = np.concatenate([batches.indices(step) for step in range(3 * 101 // 8 + 1)])
    for epoch in range(3):
        shown = tokens_NT[stream[epoch * 101 : (epoch + 1) * 101]]
        assert sorted(hashlib.sha256(row.tobytes()).hexdigest() for row in shown) == expected


@pytest.mark.parametrize("ordering", ORDERINGS, ids=str)
def test_a_batch_is_a_function_of_seed_and_step(ordering: Ordering) -> None:
    steps = list(range(60))
    forward = {step: schedule(ordering).indices(step) for step in steps}
    batches = schedule(ordering)
    for step in np.random.default_rng(2).permutation(steps * 2):
        assert batches.indices(int(step)).dtype == np.int64
        assert np.array_equal(batches.indices(int(step)), forward[int(step)])
    other = schedule(ordering, seed=1)
    drawn = not (isinstance(ordering, TopicOrdered) and ordering.within_block == "fixed")
    assert drawn == any(not np.array_equal(other.indices(step), forward[step]) for step in steps)


def test_batches_straddle_epochs_and_drop_nothing() -> None:
    batches = schedule(Shuffled(), batch_size=64)
    stream = np.concatenate([batches.indices(step) for step in range(5)])  # 320 places: three epochs of 101
    assert all(np.array_equal(np.sort(stream[e * 101 : (e + 1) * 101]), np.arange(101)) for e in range(3))
    assert not np.array_equal(stream[:101], stream[101:202])


def test_topic_order_of_a_hand_worked_corpus() -> None:
    dominant_N = np.array([1, 0, 1, 0, 0, 1, 0, 1, 2])
    generator = np.random.default_rng(0)
    fixed = TopicOrdered(within_block="fixed")
    assert fixed.epoch(dominant_N, generator).tolist() == [1, 3, 4, 6, 0, 2, 5, 7, 8]
    two = TopicOrdered(blocks=2, within_block="fixed")
    assert two.epoch(dominant_N, generator).tolist() == [1, 3, 0, 2, 8, 4, 6, 5, 7]
    from_one = TopicOrdered(within_block="fixed", first_topic=1)
    assert from_one.epoch(dominant_N, generator).tolist() == [0, 2, 5, 7, 8, 1, 3, 4, 6]


@pytest.mark.parametrize("blocks", [1, 2, 8])
def test_blocks_interleave_the_topics(blocks: int) -> None:
    dominant_N = dominant(960)
    order_N = TopicOrdered(blocks=blocks).epoch(dominant_N, np.random.default_rng(0))
    shown = dominant_N[order_N]
    runs = 1 + np.count_nonzero(np.diff(shown))
    assert runs == 3 * blocks
    assert shown[np.flatnonzero(np.diff(shown, prepend=-1))].tolist() == [0, 1, 2] * blocks


def test_fixed_blocks_repeat_and_shuffled_blocks_keep_their_members() -> None:
    dominant_N = dominant(960)
    for within, same in (("fixed", True), ("shuffled", False)):
        ordering = TopicOrdered(blocks=4, within_block=within)
        first, second = (ordering.epoch(dominant_N, np.random.default_rng(seed)) for seed in (0, 1))
        assert np.array_equal(first, second) == same
        ends = np.flatnonzero(np.diff(dominant_N[first])) + 1
        for one, other in zip(np.split(first, ends), np.split(second, ends), strict=True):
            assert np.array_equal(np.sort(one), np.sort(other))


def test_dominant_topic_is_the_most_frequent_label_with_ties_to_the_lower_id() -> None:
    topics_NT = np.array([[0, 1, 1, 2], [2, 2, 1, 1], [2, 2, 2, 0], [0, 2, 0, 2]], np.uint8)
    assert dominant_topics(topics_NT, num_topics=3).tolist() == [1, 1, 2, 0]


def test_passes_and_the_place_where_training_ends() -> None:
    dominant_N = np.repeat([0, 1, 2], [4, 4, 2])
    batches = BatchSchedule(ordering=TopicOrdered(), dominant_N=dominant_N, batch_size=4, seed=0)
    assert batches.passes(5) == 2.0
    assert batches.place_after(1) == (0.4, 0)
    assert batches.place_after(2) == (0.8, 1)
    assert batches.place_after(3) == (0.2, 0)
    assert batches.place_after(5) == (1.0, 2)
    shuffled = BatchSchedule(ordering=Shuffled(), dominant_N=dominant_N, batch_size=4, seed=0)
    assert shuffled.place_after(3) == (0.2, None)


@pytest.mark.parametrize(("share", "first"), [(0.25, 45), (0.0, None), (1.0, 0)])
def test_a_cooldown_takes_the_batches_of_a_shuffled_training(share: float, first: int | None) -> None:
    settings = {"dominant_N": dominant(), "batch_size": 8, "seed": 0, "steps": 60}
    cooled = BatchSchedule(ordering=TopicOrdered(cooldown_share=share), **settings)  # type: ignore[arg-type]
    assert cooled.cooldown_from == first
    for step in range(60):
        late = first is not None and step >= first
        assert np.array_equal(cooled.indices(step), schedule(Shuffled() if late else TopicOrdered()).indices(step))
    assert (cooled.place_after(60)[1] is None) == (first is not None)
    assert (cooled.place_after(40)[1] is None) == (first == 0)


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match=r"batch_size=102 does not fit a corpus of 101 sequences; set it to 1\.\.101"):
        schedule(Shuffled(), batch_size=102)
    for node, message in (
        ({"blocks": 0}, r"data_ordering\.blocks=0 must be at least 1"),
        ({"within_block": "sorted"}, r"data_ordering\.within_block='sorted' must be one of fixed, shuffled"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(TopicOrdered, node, "data_ordering")
        with pytest.raises(ValueError):
            TopicOrdered(**node)  # type: ignore[arg-type]
