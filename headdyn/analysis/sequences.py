"""Validation sequences for analyses: some of the corpus's sequences, and batches of them on the model's device."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from headdyn.core.kept_parts import Part, parts
from headdyn.data.corpus import Corpus

log = logging.getLogger(__name__)


@dataclass
class _Batches:
    """The most sequences that a batch may have, and the most in any batch of this attempt."""

    limit: int = sys.maxsize
    largest: int = 0


Result = TypeVar("Result")
OnBatch = Callable[[slice, Int[Tensor, "B T"], Int[Tensor, "B T"] | None], Part]
_batches: ContextVar[_Batches] = ContextVar("_batches")


def within_memory(compute: Callable[[], Result], what: str) -> Result:
    """`compute()`; when memory runs out, again with batches of half as many sequences, down to one.

    `what` names the computation in the log. Smaller batches change results by rounding alone, since sums are kept by
    sequence. Errors other than a lack of memory pass through, as does a lack with single sequences.
    """
    state = _Batches()
    while True:
        token, state.largest = _batches.set(state), 0
        try:
            return compute()
        except (MemoryError, RuntimeError) as error:
            if state.largest <= 1 or not _is_out_of_memory(error):
                raise
        finally:
            _batches.reset(token)
        state.limit = state.largest // 2
        torch.cuda.empty_cache()
        log.warning("%s: out of memory with %d sequences at a time; again with half as many", what, state.largest)


def _is_out_of_memory(error: Exception) -> bool:
    """PyTorch has an error class for GPUs; on the CPU only the message tells."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@dataclass(frozen=True)
class Sequences:
    """Tokens and topics of N sequences, and the numbers of their documents where there are any.

    The numbers are `documents_NT` if attention stays inside documents, `packed_NT` if it crosses them.
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

    def parts(self, size: int, device: torch.device, compute: OnBatch) -> Iterator[tuple[slice, Part]]:
        """Yields (rows, `compute(rows, tokens, documents)`) for `size` sequences at a time, or fewer (`within_memory`).

        Parts that an interrupted run saved are read, not computed (core/kept_parts.py).
        """
        state = _batches.get(_Batches())
        size = max(1, min(size, state.limit))
        state.largest = max(state.largest, min(size, len(self)))

        def batch(rows: slice) -> Part:
            tokens_BT = torch.from_numpy(self.tokens_NT[rows]).to(device)
            documents_BT = None if self.documents_NT is None else torch.from_numpy(self.documents_NT[rows]).to(device)
            return compute(rows, tokens_BT, documents_BT)

        return parts("reading", "sequences", len(self), size, batch, [self.tokens_NT, self.topics_NT])
