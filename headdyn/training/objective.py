"""The loss that a training minimises and is evaluated by: the next-token loss, on batches on the device."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.deterministic
from jaxtyping import Float, Int
from torch import Tensor

from headdyn.data.corpus import Split
from headdyn.models.decoder import Decoder
from headdyn.models.layers import rotary_tables

log = logging.getLogger(__name__)

Precision = Literal["bf16", "fp32"]
LossFunction = Callable[[Decoder, Tensor, Tensor | None], Tensor]

_NOT_SCORED = -100  # cross_entropy's ignore_index


def next_token_loss(
    decoder: Decoder, tokens_BT: Int[Tensor, "B T"], documents_BT: Int[Tensor, "B T"] | None
) -> Float[Tensor, ""]:
    """Mean loss in nats of predicting tokens 1..T-1, in float32. A document's first token is not scored."""
    logits_BTV = decoder(tokens_BT, documents_BT)[:, :-1]
    targets_BT = tokens_BT[:, 1:]
    if documents_BT is not None:
        targets_BT = targets_BT.masked_fill(documents_BT[:, 1:] != documents_BT[:, :-1], _NOT_SCORED)
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=_NOT_SCORED)


def autocast(precision: Precision, device: str) -> AbstractContextManager[None]:
    """With bf16, matrix products are computed in bfloat16; weights stay in float32. With fp32 nothing changes.

    Call a compiled function inside it, but do not compile it into a function: the compiler's cache does not store a
    graph that contains an autocast region, and then a new process compiles the laptop model again in 6 s, not 1 s.
    """
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def reproducible(device: str) -> Iterator[None]:
    """On a CPU, make compiled functions add up the embedding's gradient in a fixed order. Elsewhere nothing changes.

    Otherwise several threads add to the same rows in any order: two equal trainings differ in the last bit after one
    step, and an interrupted training does not continue to the same weights. Both the call of a compiled function and
    its backward pass must be inside: the graph is compiled for this setting, and the backward pass reads it. A step
    becomes 6 % slower (162 instead of 153 ms for the laptop mode's model on two threads).
    """
    if torch.device(device).type != "cpu":
        yield
        return
    settings: Any = torch.utils.deterministic
    earlier_mode, earlier_fill = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    _set_deterministic(_ERROR)
    try:
        yield
    finally:
        _set_deterministic(earlier_mode)
        settings.fill_uninitialized_memory = earlier_fill


_ERROR = 2  # an operation without a deterministic implementation raises an error; with 1 it warns, with 0 it runs


def _set_deterministic(mode: int) -> None:
    """Set PyTorch's deterministic mode, and the compiler's if it is loaded already; loading it takes 1.5 s."""
    torch.set_deterministic_debug_mode(mode)
    if "torch._inductor" in sys.modules:
        torch.use_deterministic_algorithms(mode > 0, warn_only=mode == 1)


class Batches:
    """Token batches of a split on a device. A GPU gets the whole split at once, so that no step waits for a copy.

    With `mask_documents`, batches have document numbers: attention then stays inside documents, and a document's first
    token is not scored. Raises ValueError if the split has none.
    """

    def __init__(self, split: Split, device: str, *, mask_documents: bool) -> None:
        if mask_documents and split.documents_NT is None:
            raise ValueError(
                "mask_documents=true, but the corpus has no document numbers; set data.mask_documents=false"
            )
        self.device = device
        self._arrays = (split.tokens_NT, split.documents_NT if mask_documents else None)
        self._on_cpu = torch.device(device).type == "cpu"
        # As int16, because PyTorch cannot index uint16; `__call__` makes the numbers positive again.
        self._resident = tuple(
            None if self._on_cpu or array_NT is None else torch.from_numpy(np.array(array_NT).view(np.int16)).to(device)
            for array_NT in self._arrays
        )

    @classmethod
    def prefix(cls, split: Split, sequences: int, device: str, *, mask_documents: bool) -> Batches:
        """The batches of the first `sequences` sequences of a split, such as a training's held-out set."""
        split = Split(
            tokens_NT=split.tokens_NT[:sequences],
            topics_NT=split.topics_NT[:sequences],
            documents_NT=None if split.documents_NT is None else split.documents_NT[:sequences],
        )
        return cls(split, device, mask_documents=mask_documents)

    @property
    def shape(self) -> tuple[int, int]:
        """The number of sequences, and of tokens in each."""
        return self._arrays[0].shape

    def __call__(self, indices_B: np.ndarray) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"] | None]:
        """The tokens of these sequences and, with `mask_documents`, their document numbers: int64, on the device."""
        if self._on_cpu:
            tokens_BT, documents_BT = (
                None if array_NT is None else torch.from_numpy(array_NT[indices_B].astype(np.int64))
                for array_NT in self._arrays
            )
        else:
            rows_B = torch.from_numpy(indices_B).pin_memory().to(self.device, non_blocking=True)
            tokens_BT, documents_BT = (
                None if array_NT is None else array_NT[rows_B].long() & 0xFFFF for array_NT in self._resident
            )
        assert tokens_BT is not None
        return tokens_BT, documents_BT

    def num_targets(self, indices_B: np.ndarray) -> int:
        """How many tokens of these sequences `next_token_loss` scores."""
        if self._arrays[1] is None:
            return len(indices_B) * (self.shape[1] - 1)
        documents_BT = self._arrays[1][indices_B]
        return int((documents_BT[:, 1:] == documents_BT[:, :-1]).sum())


def evaluate(
    decoder: Decoder,
    batches: Batches,
    *,
    batch_size: int,
    precision: Precision,
    loss_function: LossFunction = next_token_loss,
) -> float:
    """Mean next-token loss in nats over all scored tokens of `batches`.

    `loss_function` gets full batches only, with gradients enabled, so that a compiled one needs no second graph; a
    smaller last batch goes to `next_token_loss`.
    """
    count = batches.shape[0]
    total, scored = torch.zeros((), dtype=torch.float32, device=batches.device), 0
    for start in range(0, count, batch_size):
        rows_B = np.arange(start, min(start + batch_size, count))
        full = len(rows_B) == batch_size
        with torch.set_grad_enabled(full), autocast(precision, batches.device), reproducible(batches.device):
            loss = (loss_function if full else next_token_loss)(decoder, *batches(rows_B)).detach()
        targets = batches.num_targets(rows_B)
        total += loss * targets
        scored += targets
    return total.item() / scored


@functools.cache
def _compiled() -> LossFunction:
    # Otherwise the graph computes every position's cosine again for every sequence, head, layer and pass, which takes a
    # tenth of a training step on a CPU. Not done where rotary_tables is defined: this line imports the compiler (2 s).
    torch.compiler.assume_constant_result(rotary_tables)
    return torch.compile(next_token_loss, dynamic=False)


_compiled_for: set[object] = set()
_MOST_VARIANTS = 8  # the most graphs that the compiler makes of one function; further variants run uncompiled


def compiled_loss(decoder: Decoder, batches: Batches, indices_B: np.ndarray, precision: Precision) -> LossFunction:
    """Compile `next_token_loss`, forward and backward, for batches shaped like that of the sequences `indices_B`.

    This takes place now, not at the first step; it clears the decoder's gradients. The decoder is an argument of the
    graph, which therefore serves every training with the same shapes in this process. If this machine cannot compile,
    for example without a C++ compiler, a warning is logged and the plain function is returned, which gives the same
    numbers up to rounding at about two thirds of the speed.
    """
    from torch._dynamo.exc import BackendCompilerFailed
    from torch._functorch import config
    from torch._inductor.exc import InductorError

    tokens_BT, documents_BT = batches(indices_B)
    variant = (decoder.config, tokens_BT.shape, documents_BT is None, precision, batches.device)
    if variant not in _compiled_for and len(_compiled_for) == _MOST_VARIANTS:
        torch.compiler.reset()
        _compiled_for.clear()
    _compiled_for.add(variant)
    try:
        # By default the compiler's cache stores no graph with a custom autograd function, such as BlockwiseAttention
        # (layers.py). It may do so here, because the cache's key contains the function's forward and backward graphs.
        with reproducible(batches.device), config.patch(autograd_cache_allow_custom_autograd_functions=True):
            with autocast(precision, batches.device):
                loss = _compiled()(decoder, tokens_BT, documents_BT)
            loss.backward()
    except (BackendCompilerFailed, InductorError) as error:
        reason = str(error).strip().splitlines()[0]
        log.warning("torch.compile does not work here (%s); training goes on without it, slower", reason)
        return next_token_loss
    finally:
        decoder.zero_grad(set_to_none=True)
    return _compiled()
