"""The order of the training sequences: shuffled, or sorted by topic (science.md §2).

Every ordering shows each sequence exactly once in an epoch. Letters: N sequences, T tokens, B sequences of a batch.
"""

from typing import ClassVar, Literal, Protocol

import numpy as np

from headdyn.core.randomness import generator as named_generator
from headdyn.core.settings import Count, Natural, Share, settings


class Ordering(Protocol):
    """A conf/data_ordering option. `follows_topics` says whether a sequence's place in the epoch depends on its topic.

    With an attribute `cooldown_share`, the last share of a training's updates takes shuffled batches.
    """

    follows_topics: ClassVar[bool]

    def epoch(self, dominant_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The order of an epoch: a permutation [N] of the sequence indices, given each sequence's dominant topic."""


@settings
class Shuffled:
    """A new permutation every epoch."""

    follows_topics: ClassVar[bool] = False

    def epoch(self, dominant_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return generator.permutation(len(dominant_N))


@settings
class TopicOrdered:
    """Sorted by dominant topic, in `blocks` rounds: each round shows one block of every topic, in order of topic id.

    A round begins with `first_topic`; topic 0 follows the last topic, so a round ends on the topic before
    `first_topic`. Block b of a topic with n sequences contains those of rank n·b/blocks to n·(b+1)/blocks in the
    corpus, the same every epoch; `blocks=1` sorts the whole epoch. Inside a block the order is the corpus's own
    (`fixed`, as in the original study) or new each epoch (`shuffled`). The last `cooldown_share` of all updates takes
    the same batches as a shuffled training, so that a lasting effect of order is not mixed with forgetting.
    """

    blocks: Count = 1
    within_block: Literal["fixed", "shuffled"] = "shuffled"
    cooldown_share: Share = 0.0
    first_topic: Natural = 0
    follows_topics: ClassVar[bool] = True

    def epoch(self, dominant_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """The order of an epoch [N]; with `within_block=fixed` nothing is random."""
        count = len(dominant_N)
        by_topic_N = np.argsort(dominant_N, kind="stable")
        sorted_N = dominant_N[by_topic_N]
        _, first, sizes = np.unique(sorted_N, return_index=True, return_counts=True)
        rank_N = np.empty(count, np.int64)
        rank_N[by_topic_N] = np.arange(count) - np.repeat(first, sizes)
        size_N = np.empty(count, np.int64)
        size_N[by_topic_N] = np.repeat(sizes, sizes)
        block_N = rank_N * self.blocks // size_N
        inside_N = rank_N if self.within_block == "fixed" else generator.permutation(count)
        turn_N = (dominant_N - self.first_topic) % (dominant_N.max() + 1)
        return np.lexsort((inside_N, turn_N, block_N))


def dominant_topics(topics_NT: np.ndarray, num_topics: int) -> np.ndarray:
    """The most frequent topic label of every sequence [N], ties to the lower id."""
    counts_SN = np.stack([np.count_nonzero(topics_NT == topic, axis=1) for topic in range(num_topics)])
    return counts_SN.argmax(0)


class BatchSchedule:
    """The sequences of the batch at every step: a pure function of (seed, step).

    The permutations of the epochs form one stream, of which step s takes places s·B to (s+1)·B; a batch may belong to
    two epochs, and no sequence is dropped. `dominant_N` is each sequence's dominant topic. In the ordering's cooldown,
    from step `cooldown_from` of the training's `steps` on, the epochs are shuffled. Raises ValueError if a batch is
    larger than the corpus.
    """

    def __init__(
        self, *, ordering: Ordering, dominant_N: np.ndarray, batch_size: int, seed: int, steps: int | None = None
    ) -> None:
        if not 1 <= batch_size <= len(dominant_N):
            raise ValueError(
                f"train.batch_size={batch_size} does not fit a corpus of {len(dominant_N)} sequences; "
                f"set it to 1..{len(dominant_N)} or raise data.train_sequences"
            )
        self.ordering = ordering
        self.dominant_N = np.asarray(dominant_N)
        self.batch_size = batch_size
        self.seed = seed
        share = getattr(ordering, "cooldown_share", 0.0)
        self.cooldown_from = None if steps is None or share == 0 else steps - round(share * steps)
        self._epochs: dict[tuple[int, bool], np.ndarray] = {}

    def indices(self, step: int) -> np.ndarray:
        """The sequence indices [B] int64 of the batch at `step`, counted from 0."""
        places_B = step * self.batch_size + np.arange(self.batch_size)
        epochs_B, offsets_B = np.divmod(places_B, len(self.dominant_N))
        epochs = range(int(epochs_B[0]), int(epochs_B[-1]) + 1)
        cooling = self._cooling(step)
        return np.concatenate([self._epoch(epoch, cooling)[offsets_B[epochs_B == epoch]] for epoch in epochs])

    def passes(self, steps: int) -> float:
        """How many times a training of `steps` steps passes over the corpus."""
        return steps * self.batch_size / len(self.dominant_N)

    def place_after(self, steps: int) -> tuple[float, int | None]:
        """Where in its last pass over the corpus a training of `steps` steps ends.

        Returns the share of the corpus that this pass has shown, in (0, 1], and the dominant topic of the last
        sequence, or None if the order there does not follow topics.
        """
        assert steps >= 1
        epoch, offset = divmod(steps * self.batch_size - 1, len(self.dominant_N))
        follows = self.ordering.follows_topics and not self._cooling(steps - 1)
        topic = int(self.dominant_N[self._epoch(epoch, cooling=False)[offset]]) if follows else None
        return (offset + 1) / len(self.dominant_N), topic

    def _cooling(self, step: int) -> bool:
        return self.cooldown_from is not None and step >= self.cooldown_from

    def _epoch(self, epoch: int, cooling: bool) -> np.ndarray:
        if (epoch, cooling) not in self._epochs:
            for older in list(self._epochs)[:-1]:  # a batch belongs to two epochs at most
                del self._epochs[older]
            ordering = Shuffled() if cooling else self.ordering
            generator = named_generator(self.seed, f"ordering/epoch {epoch}")
            self._epochs[epoch, cooling] = ordering.epoch(self.dominant_N, generator)
        return self._epochs[epoch, cooling]
