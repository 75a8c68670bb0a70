"""The operator T_ij of a frozen sequence: T itself, its norms, and T_ij x_j.

Letters as in frozen.py; X input vectors pushed through at once.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from headdyn.models.frozen import Frozen

_CHUNK_FLOATS = 2**20  # in the largest array of a frozen pass: 2^23 took 1.8 times as long (CPU, D128 L4 T128)


@torch.no_grad()
def full_tensor(frozen: Frozen, *, max_tensor_bytes: int = 2**30) -> Float[Tensor, "I D J D"]:
    """T of one sequence, from the first block's input to the last block's output: T[i, :, j, :] is T_ij.

    Raises ValueError if its (T·D)² numbers need more than `max_tensor_bytes`.
    """
    x_BTD = _only_sequence(frozen)
    _, length, width = x_BTD.shape
    size = (length * width) ** 2 * x_BTD.element_size()
    if size > max_tensor_bytes:
        raise ValueError(
            f"the full tensor of {length} tokens and d_model={width} has {size} bytes ({size / 2**30:.3g} GiB), above "
            f"max_tensor_bytes={max_tensor_bytes}; raise that, take fewer tokens, or use contributions() for "
            "‖T_ij x_j‖ and pull() for gradients, which grow as T·D"
        )
    tensor_JEID = x_BTD.new_zeros(length, width, length, width)
    for j in range(length):
        tensor_JEID[j, :, j:] = _pushed(frozen, j, torch.eye(width, dtype=x_BTD.dtype, device=x_BTD.device))
    return tensor_JEID.permute(2, 3, 0, 1)


@torch.no_grad()
def tensor_norms(
    frozen: Frozen, *, probes: int | None = None, generator: torch.Generator | None = None
) -> Float[Tensor, "I J"]:
    """‖T_ij‖_F of one sequence, without forming the tensor: D frozen passes for every token.

    With `probes`, an estimate from that many random sign vectors v for every token instead of the D basis vectors:
    E‖T_ij v‖² = ‖T_ij‖²_F, and the relative standard error of the square is at most √(2/probes) (Hutchinson 1990).
    Raises ValueError for probes below 1.
    """
    x_BTD = _only_sequence(frozen)
    _, length, width = x_BTD.shape
    if probes is not None and probes < 1:
        raise ValueError(f"probes={probes} must be at least 1, or None for the exact norm")
    square_JI = x_BTD.new_zeros(length, length)
    for j in range(length):
        if probes is None:
            rows_XD = torch.eye(width, dtype=x_BTD.dtype, device=x_BTD.device)
        else:
            bits_XD = torch.randint(2, (probes, width), generator=generator).to(x_BTD)
            rows_XD = (2 * bits_XD - 1) / probes**0.5
        for part_XD in rows_XD.split(_inputs_at_once(frozen)):
            square_JI[j, j:] += _pushed(frozen, j, part_XD).square().sum((0, 2))
    return square_JI.sqrt().mT


def _pushed(frozen: Frozen, j: int, rows_XD: Float[Tensor, "X D"]) -> Float[Tensor, "X I D"]:
    """T_ij v for every row v of `rows_XD`, for the output tokens i from j on."""
    tail = frozen.tail(j)
    state_NBTD = rows_XD.new_zeros(len(rows_XD), *tail.residual[0].shape)
    state_NBTD[:, 0, 0] = rows_XD
    *_, last_NBTD = tail.states(state_NBTD, biases=False)
    return last_NBTD[:, 0]


@torch.no_grad()
def contributions(
    frozen: Frozen, *, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, list[Float[Tensor, "J I D"]]]]:
    """T_ij x_j of one sequence for all pairs, as (start, states) for consecutive chunks of input tokens J.

    `states` has one array for every layer from `first` to `last` (inclusive; default: the model's last): the part of
    that layer's output at token I that comes from token J of the input of layer `first`. Outputs begin at position
    `start`, the chunk's first token. Summed over J they are the layer's output without the biases' part. Costs half a
    forward pass for each token.
    """
    x_BTD = frozen.residual[first]
    length = _only_sequence(frozen).shape[1]
    last = len(frozen.layers) - 1 if last is None else last
    size = min(length, _inputs_at_once(frozen))
    for start in range(0, length, size):
        count = min(size, length - start)
        number = torch.arange(count, device=x_BTD.device)
        state_NBTD = x_BTD.new_zeros(count, 1, length - start, x_BTD.shape[-1])
        state_NBTD[number, 0, number] = x_BTD[0, start : start + count]
        tail, states = frozen.tail(start), []
        for index in range(first, last + 1):
            state_NBTD, _ = tail.layer(index, state_NBTD, biases=False)
            states.append(state_NBTD[:, 0])
        yield start, states


def _inputs_at_once(frozen: Frozen) -> int:
    c = frozen.decoder.config
    return max(1, _CHUNK_FLOATS // (frozen.residual[0].shape[1] * max(c.d_model, c.d_ff)))


def _only_sequence(frozen: Frozen) -> Tensor:
    """The first block's input, [1, T, D]. Raises ValueError if several sequences were frozen."""
    x_BTD = frozen.residual[0]
    if len(x_BTD) != 1:
        raise ValueError(
            f"this function takes one frozen sequence, but {len(x_BTD)} were frozen; freeze(decoder, tokens[i:i+1])"
        )
    return x_BTD
