"""A tiny corpus made by hand, and a stand-in for the decoder whose attention is a function of the tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch

from headdyn.data.corpus import Corpus, Oracle, Split
from headdyn.models.decoder import Trace


def topics(rows: int, length: int, count: int, generator: np.random.Generator, least: int = 3) -> np.ndarray:
    """Two to four segments a sequence, each of `least` tokens or more, topics drawn independently."""
    out = np.empty((rows, length), dtype=np.uint8)
    for row in out:
        segments = int(generator.integers(2, 5))
        cuts = np.sort(generator.choice(length - segments * (least - 1) - 1, segments - 1, replace=False)) + 1
        starts = [0, *(cuts + (least - 1) * np.arange(1, segments))]
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            row[start:end] = generator.integers(count)
    return out


def split(rows: int, length: int, count: int, vocab_size: int, generator: np.random.Generator, tell: float) -> Split:
    """Tokens are uniform, except that with probability `tell` a token is one of its topic's own."""
    topics_NT = topics(rows, length, count, generator)
    own = vocab_size // count
    anyone = generator.integers(vocab_size, size=topics_NT.shape)
    of_topic = topics_NT.astype(int) * own + generator.integers(own, size=topics_NT.shape)
    tokens_NT = np.where(generator.random(topics_NT.shape) < tell, of_topic, anyone)
    return Split(tokens_NT=tokens_NT.astype(np.uint16), topics_NT=topics_NT)


def corpus(
    rows: int = 64,
    length: int = 24,
    count: int = 3,
    vocab_size: int = 29,
    seed: int = 0,
    tell: float = 0.0,
    oracle: Oracle | None = None,
) -> Corpus:
    generator = np.random.default_rng(seed)
    parts = [split(n, length, count, vocab_size, generator, tell) for n in (8, rows)]
    return Corpus(
        name="tiny",
        train=parts[0],
        val=parts[1],
        vocab_size=vocab_size,
        topic_names=tuple(f"topic {i}" for i in range(count)),
        reference_nats={},
        facts={},
        oracle=oracle,
    )


@dataclass
class PatternModel:
    """Answers `trace` with patterns computed from the tokens: what an attention statistic can see of a decoder."""

    pattern: Callable[[torch.Tensor, int], torch.Tensor]  # (tokens_BT, layer) -> pattern_BHQK
    num_layers: int
    num_heads: int

    @property
    def config(self) -> SimpleNamespace:
        return SimpleNamespace(num_layers=self.num_layers, num_heads=self.num_heads)

    @property
    def embed(self) -> SimpleNamespace:
        return SimpleNamespace(weight=torch.zeros(1))

    def embeddings(self, tokens_BT: torch.Tensor, offset: int) -> torch.Tensor:
        return torch.zeros(*tokens_BT.shape, 1)

    def trace(self, tokens_BT: torch.Tensor, *, start, layers, sites, logits, documents_BT) -> Trace:
        (layer,) = layers
        return Trace(None, {("pattern", layer): self.pattern(tokens_BT, layer), ("resid_post", layer): start[1]})


def causal_softmax(scores_BHQK: torch.Tensor) -> torch.Tensor:
    allowed_QK = torch.ones(scores_BHQK.shape[-2:], dtype=torch.bool).tril()
    return scores_BHQK.masked_fill(~allowed_QK, -torch.inf).softmax(-1)
