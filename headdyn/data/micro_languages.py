"""Micro-languages: sequences whose segments follow one of S Markov chains, with exact labels and exact loss lines.

A synthetic corpus (science.md §1). Letters: N sequences, T tokens, S topics, V vocabulary.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from headdyn.core.json_files import read_json, write_json
from headdyn.core.randomness import generator, stream_key
from headdyn.core.settings import Count, settings
from headdyn.data.bayes import BayesFilter, SegmentLaw
from headdyn.data.corpus import Corpus, NumTopics, Seed, Split
from headdyn.data.lines import line_facts, mean_and_error, mixture, position_only, reference_nats
from headdyn.data.markov import (
    AliasSampler,
    matched_chains,
    original_chains,
    row_entropy_nats,
    sample_tokens,
    stationary_law,
)

_MOST_CELLS = 2**30  # transition probabilities in a table of 4 GB; the build has three tables in memory
_REFERENCE_SEQUENCES = 2000  # held-out sequences for floor and mixture, with a standard error of about 0.002 nats
_COUNT_SEQUENCES = 8192  # counted at once: 34 MB of indices at T 512


def _current_name(name: Any) -> Any:
    return "original" if name == "seed" else name  # "seed" is its former name


@settings
class MicroLanguages(SegmentLaw):
    """A corpus of topic segments, each a stretch of its topic's Markov chain; a conf/data option.

    `generator=matched` draws chains that all have the uniform unigram law, and whose learnable gap, ln V − entropy rate
    given the topic, is `target_gap_nats`. `generator=original` draws the original study's chains, in which each topic's
    own tokens are boosted by `concentration`. Each generator uses only its own setting.
    """

    generator: Annotated[Literal["matched", "original"], BeforeValidator(_current_name)]
    vocab_size: Annotated[int, Field(ge=2, le=65536)]  # stored as uint16
    num_topics: NumTopics
    train_sequences: Count
    val_sequences: Count
    target_gap_nats: Annotated[float, Field(gt=0)] | None = None
    concentration: Annotated[float, Field(gt=0)] | None = None
    seed: Seed

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_topics * self.vocab_size**2 > _MOST_CELLS:
            raise ValueError(
                f"data.num_topics={self.num_topics} chains over data.vocab_size={self.vocab_size} need tables of "
                f"{self.num_topics * self.vocab_size**2 * 4 / 2**30:.0f} GiB each, of which the build holds three; "
                f"set vocab_size to {math.isqrt(_MOST_CELLS // self.num_topics)} or less"
            )
        if self.generator == "matched" and not 0 < (self.target_gap_nats or 0) < math.log(self.vocab_size):
            raise ValueError(
                f"data.target_gap_nats={self.target_gap_nats} must lie between 0 and ln V = "
                f"{math.log(self.vocab_size):.3f} nats for data.vocab_size={self.vocab_size}; half of it is plenty"
            )
        if self.generator == "original" and self.concentration is None:
            raise ValueError(
                "data.concentration=null must be a number above 0 under data.generator=original; the study's are 5 and "
                "100, and 1 boosts nothing"
            )
        if self.generator == "original" and self.vocab_size < self.num_topics:
            raise ValueError(
                f"data.vocab_size={self.vocab_size} leaves no own token to each of data.num_topics={self.num_topics}; "
                f"set vocab_size to {self.num_topics} or more"
            )

    def build(self, folder: Path) -> None:
        """Draw chains and sequences, and compute the reference losses (lines.py).

        Writes {train,val}_tokens.npy (uint16), {train,val}_topics.npy (uint8), transitions.npy (float32 [S, V, V]) and
        facts.json. The files depend on the settings alone, not on the number of cores.
        """
        transitions_SVV = self._chains()
        np.save(folder / "transitions.npy", transitions_SVV)
        sampler = AliasSampler(transitions_SVV)
        for split, count in (("train", self.train_sequences), ("val", self.val_sequences)):
            self._draw(sampler, split, count, folder)
        write_json(folder / "facts.json", self._facts(folder, transitions_SVV))

    def open(self, folder: Path) -> Corpus:
        facts = read_json(folder / "facts.json")
        transitions_SVV = np.load(folder / "transitions.npy", mmap_mode="r")
        return Corpus(
            name="micro_languages",
            train=Split.open(folder, "train"),
            val=Split.open(folder, "val"),
            vocab_size=self.vocab_size,
            topic_names=tuple(f"topic {topic}" for topic in range(self.num_topics)),
            reference_nats=reference_nats(facts),
            facts=facts,
            oracle=BayesFilter(transitions_SVV=transitions_SVV, law=self),
        )

    def _chains(self) -> np.ndarray:
        rng = generator(self.seed, "micro_languages/chains")
        if self.generator == "original":
            assert self.concentration is not None
            return original_chains(self.vocab_size, self.num_topics, self.concentration, rng)
        assert self.target_gap_nats is not None
        return matched_chains(self.vocab_size, self.num_topics, self.target_gap_nats, rng)

    def _draw(self, sampler: AliasSampler, split: str, count: int, folder: Path) -> None:
        rng = generator(self.seed, f"micro_languages/{split} segments")
        lengths_NK = self.draw(count, rng)
        segment_topics_NK = rng.integers(self.num_topics, size=lengths_NK.shape, dtype=np.uint8)
        shape = (count, self.sequence_length)
        topics_NT = np.repeat(segment_topics_NK.ravel(), lengths_NK.ravel()).reshape(shape)
        np.save(folder / f"{split}_topics.npy", topics_NT)
        tokens_NT = np.lib.format.open_memmap(folder / f"{split}_tokens.npy", mode="w+", dtype=np.uint16, shape=shape)
        sample_tokens(sampler, topics_NT, stream_key(self.seed, f"micro_languages/{split} tokens"), tokens_NT)
        tokens_NT.flush()

    def _facts(self, folder: Path, transitions_SVV: np.ndarray) -> dict[str, Any]:
        """The facts for the record, computed from the sequences in `folder`; `transitions_SVV` generated them."""
        train, val = Split.open(folder, "train"), Split.open(folder, "val")
        random_nats = math.log(self.vocab_size)
        gap_S = random_nats - np.array([self._entropy_rate_nats(chain_VV) for chain_VV in transitions_SVV])
        if self.target_gap_nats is not None and self.generator == "matched":
            assert abs(gap_S.mean() / self.target_gap_nats - 1) <= 0.02, (gap_S, self.target_gap_nats)

        # Of each token, how often a token of each topic follows; plus 1, because a pair may be absent.
        successors_VS = self._count(train.tokens_NT[:, :-1], train.topics_NT[:, 1:]) + 1
        topic_given_token_VS = successors_VS / successors_VS.sum(1, keepdims=True)
        held_out = slice(0, _REFERENCE_SEQUENCES)
        tokens_NT, topics_NT = val.tokens_NT[held_out].astype(np.int64), val.topics_NT[held_out]
        floor_NT, posterior_NTS = BayesFilter(transitions_SVV=transitions_SVV, law=self).filter(tokens_NT)
        before_NT, after_NT = tokens_NT[:, :-1], tokens_NT[:, 1:]
        emission_NTS = np.stack([chain_VV[before_NT, after_NT] for chain_VV in transitions_SVV], axis=2).astype(float)
        prior_NTS = topic_given_token_VS[before_NT]
        position_only_NT, position_only_is = position_only(prior_NTS, emission_NTS)
        lines = {"mixture": mixture(prior_NTS, emission_NTS), "position_only": position_only_NT, "floor": floor_NT}
        commonest_topic_V = self._count(train.tokens_NT, train.topics_NT).argmax(1)
        return {
            "generator": self.generator,
            "random_nats": random_nats,
            "known_topic_entropy_nats": random_nats - float(gap_S.mean()),
            "realised_gap_nats": float(gap_S.mean()),
            "realised_gap_nats_by_topic": gap_S.tolist(),
            "position_only_is": position_only_is,
            **line_facts(lines),
            **mean_and_error("bayes_topic_accuracy", posterior_NTS.argmax(2) == topics_NT),
            **mean_and_error("token_identity_accuracy", commonest_topic_V[tokens_NT] == topics_NT),
            "chance_accuracy": 1 / self.num_topics,
            "held_out_sequences": len(tokens_NT),
            "train_tokens": train.tokens_NT.size,
            "val_tokens": val.tokens_NT.size,
        }

    def _entropy_rate_nats(self, chain_VV: np.ndarray) -> float:
        entropy_V = row_entropy_nats(chain_VV)
        return float(entropy_V.mean() if self.generator == "matched" else stationary_law(chain_VV) @ entropy_V)

    def _count(self, tokens_NT: np.ndarray, topics_NT: np.ndarray) -> np.ndarray:
        """How often each token stands at a place of each topic [V, S]."""
        cells = self.vocab_size * self.num_topics
        counts = np.zeros(cells, np.int64)
        for first in range(0, len(tokens_NT), _COUNT_SEQUENCES):
            part = slice(first, first + _COUNT_SEQUENCES)
            pairs_NT = tokens_NT[part].astype(np.int64) * self.num_topics + topics_NT[part]
            counts += np.bincount(pairs_NT.ravel(), minlength=cells)
        return counts.reshape(self.vocab_size, self.num_topics)
