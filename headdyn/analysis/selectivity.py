"""Topic selectivity of any map from queries to keys, with the label-swap null (science.md §6).

Letters as in models/decoder.py; N sequences, R swaps.
"""

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from headdyn.analysis.sequences import Sequences
from headdyn.core.records import HeadTable
from headdyn.data.corpus import Corpus


def drawn_sequences(
    corpus: Corpus, count: int, label_swaps: int, generator: np.random.Generator, length: int | None = None
) -> tuple[Sequences, np.ndarray]:
    """`count` validation sequences (or all), cut to `length` tokens, and the indices of R others for each, [N, R]."""
    count = min(count, len(corpus.val))
    chosen = generator.choice(len(corpus.val), count, replace=False)
    return Sequences.of(corpus, chosen, length), balanced_swaps(count, label_swaps, generator)


def balanced_swaps(count: int, swaps: int, generator: np.random.Generator) -> np.ndarray:
    """For each of `count` sequences the indices of R others, [N, R], every sequence serving equally often.

    Then the mean selectivity of any attention by position alone is exactly 0.
    """
    shifts_R = 1 + generator.choice(count - 1, swaps, replace=False)
    return (np.arange(count)[:, None] + shifts_R) % count


def topic_contrast(
    topics_T: Int[Tensor, " T"], swapped_RT: Int[Tensor, "R T"], num_topics: int
) -> Float[Tensor, "Q K"]:
    """[query and key share a topic], less its mean under the labels of R other sequences; 0 on the diagonal."""
    own_TS = F.one_hot(topics_T, num_topics).float()
    other_TX = F.one_hot(swapped_RT, num_topics).float().permute(1, 0, 2).flatten(1)
    return own_TS @ own_TS.mT - other_TX @ other_TX.mT / len(swapped_RT)


def without_topics(table: HeadTable, words: Sequence[str], reason: str) -> HeadTable:
    """The table with every metric whose name holds one of these words absent.

    For a corpus without topics, or one that confines attention to documents: there a mask, not the model, keeps
    attention inside one topic.
    """
    keep = ("metric", "layer", "head", "n", "unit")
    rows = [
        {**{name: row[name] for name in keep}, "reason": reason}
        if any(word in row["metric"] for word in words)
        else row
        for row in table.rows()
    ]
    return HeadTable.from_rows(rows)
