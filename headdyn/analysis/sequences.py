"""Validation sequences as an analysis takes them: some of the corpus's, and batches of them on the model's device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from headdyn.data.corpus import Corpus
from headdyn.data.text.stages import Progress


@dataclass(frozen=True)
class Sequences:
    """Tokens and topics of N sequences, and the numbers of their documents where there are any.

    `documents_NT` where the corpus confines attention to documents; `packed_NT` where attention crosses them.
    """

    tokens_NT: np.ndarray
    topics_NT: np.ndarray
    documents_NT: np.ndarray | None = None
    packed_NT: np.ndarray | None = None

    @classmethod
    def of(cls, corpus: Corpus, at: np.ndarray | slice, length: int | None = None) -> Sequences:
        """The validation sequences at these indices, cut to their first `length` tokens."""
        val = corpus.val

        def cut(array: np.ndarray) -> np.ndarray:
            return np.asarray(array[at])[:, :length].astype(np.int64)

        documents_NT = None if val.documents_NT is None else cut(val.documents_NT)
        masked = corpus.mask_documents
        return cls(
            cut(val.tokens_NT),
            cut(val.topics_NT),
            documents_NT=documents_NT if masked else None,
            packed_NT=None if masked else documents_NT,
        )

    def __len__(self) -> int:
        return len(self.tokens_NT)

    def batches(
        self, size: int, device: torch.device
    ) -> Iterator[tuple[slice, Int[Tensor, "B T"], Int[Tensor, "B T"] | None]]:
        """`size` sequences at a time (at least one): which they are, their tokens, their documents."""
        size, progress = max(1, size), Progress("reading", "sequences", len(self))
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            tokens_BT = torch.from_numpy(self.tokens_NT[rows]).to(device)
            documents_BT = None if self.documents_NT is None else torch.from_numpy(self.documents_NT[rows]).to(device)
            yield rows, tokens_BT, documents_BT
            progress.add(len(tokens_BT))
