"""Which head of one checkpoint is which head of another: the same index is not the same function (science.md §15).

Heads are matched by their weights, the gauge-free cosines of their QK and OV circuits (science.md §8), and by their
behaviour (head_profiles.py), since a head's function may change while its weights hardly do. Letters as in
circuit_factors.py, for the heads of one layer: H of an earlier checkpoint, J of a later one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import scipy  # imports its parts only when they are used: scipy.optimize takes 0.6 s
import torch
from safetensors.torch import load_file, save_file

from headdyn.analysis.circuit_factors import Factors, cosines, folded
from headdyn.analysis.clusters.clusterings import relabellings
from headdyn.core.kept_parts import Part, parts
from headdyn.core.statistics import at_least_as_high
from headdyn.core.whole_files import whole_file
from headdyn.models.decoder import Decoder

Heads = TypeVar("Heads")


def save_circuits(decoder: Decoder, layer: int, path: Path) -> None:
    """Save the circuits of a layer's heads to `path`, so that heads can be compared when the model's weights are gone.

    Each circuit is scaled to norm 1, with factors of equal norms, which changes no cosine. Then float16 is precise
    enough: on Pythia-160m's shape cosines move by 2e-6, and a checkpoint takes 4.7 MB.
    """
    tensors = {}
    for name, factors in folded(decoder, layer).items():
        left_HDd, right_HDd = factors.left_NDd, factors.right_NDd
        norm_H = ((left_HDd.mT @ left_HDd) * (right_HDd.mT @ right_HDd)).sum((1, 2)).sqrt()
        balance_H = (right_HDd.norm(dim=(1, 2)) / left_HDd.norm(dim=(1, 2))).sqrt().where(norm_H > 0, 1)
        scale_H = norm_H.where(norm_H > 0, 1).rsqrt()
        tensors[f"{name}.left"] = (left_HDd * (scale_H * balance_H)[:, None, None]).half().contiguous()
        tensors[f"{name}.right"] = (right_HDd * (scale_H / balance_H)[:, None, None]).half().contiguous()
    with whole_file(path) as file:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, file)


def load_circuits(path: Path) -> dict[str, Factors]:
    """The circuits "qk" and "ov" in float32 from a file of `save_circuits`."""
    stored = {name: tensor.float() for name, tensor in load_file(path).items()}
    return {name: Factors(stored[f"{name}.left"], stored[f"{name}.right"]) for name in ("qk", "ov")}


def head_cosines(earlier: Mapping[str, Factors], later: Mapping[str, Factors]) -> np.ndarray:
    """Mean of the QK and the OV cosine of every earlier head with every later one, [H, J]; 0 for a circuit of zeros."""
    both = [Factors.stacked((earlier[name], later[name])) for name in ("qk", "ov")]
    heads = len(earlier["qk"].left_NDd)
    cosine_2HJ = torch.stack([cosines(factors)[:heads, heads:] for factors in both])
    return cosine_2HJ.nan_to_num(0).mean(0).double().cpu().numpy()


@dataclass(frozen=True, kw_only=True)
class Match:
    """Cosines or correlations of every earlier with every later head, and two matches of each later head.

    `best_J` is the earlier head most like it, `assigned_J` its partner when all heads are paired one to one.
    """

    cosine_HJ: np.ndarray
    best_J: np.ndarray
    assigned_J: np.ndarray

    @property
    def own_index_share(self) -> float:
        """Share of later heads most like the earlier head of their own index; 1/H by chance."""
        return float((self.best_J == np.arange(len(self.best_J))).mean())


Matches = Mapping[tuple[int, int], Match]  # by (earlier step, later step)


def match_heads(cosine_HJ: np.ndarray) -> Match:
    """Match heads; the pairing one to one maximises the sum of cosines (the Hungarian method)."""
    earlier_X, later_X = scipy.optimize.linear_sum_assignment(cosine_HJ, maximize=True)
    return Match(cosine_HJ=cosine_HJ, best_J=cosine_HJ.argmax(0), assigned_J=earlier_X[np.argsort(later_X)])


def match_series(
    heads: Mapping[int, Heads], similarity: Callable[[Heads, Heads], np.ndarray]
) -> dict[tuple[int, int], Match]:
    """Matches of every checkpoint with the next one, and with the last, by (earlier step, later step).

    `heads` holds by step what `similarity` compares, for two steps at a time, into [H, J].
    """
    steps = sorted(heads)
    pairs = list(dict.fromkeys([*pairwise(steps), *((step, steps[-1]) for step in steps[:-1])]))

    def compared(at: slice) -> Part:
        return {"cosine_HJ": similarity(*(heads[step] for step in pairs[at.start]))}

    done = parts("matching heads", "pairs of checkpoints", len(pairs), 1, compared)
    return {pair: match_heads(part["cosine_HJ"]) for pair, (_, part) in zip(pairs, done, strict=True)}


def kept_by_chance(match: Match, draws: int, generator: np.random.Generator) -> float:
    """p of the heads' mean similarity to the earlier head with the same index, against indices dealt out at random."""
    heads_J = np.arange(len(match.best_J))
    order_RJ = relabellings(heads_J, draws, generator)
    return at_least_as_high(match.cosine_HJ[order_RJ, heads_J].mean(1))


def match_table(by: str, matches: Matches) -> pa.Table:
    """One row per matched pair of steps and later head; `by` says what heads were matched by."""
    rows = [
        {
            "by": by,
            "earlier_step": a,
            "later_step": b,
            "head": head,
            "best_match": best,
            "assigned": assigned,
            "cosine_same_index": match.cosine_HJ[head, head].item(),
            "cosine_best_match": match.cosine_HJ[best, head].item(),
            "cosine_assigned": match.cosine_HJ[assigned, head].item(),
        }
        for (a, b), match in matches.items()
        for head, (best, assigned) in enumerate(zip(match.best_J.tolist(), match.assigned_J.tolist(), strict=True))
    ]
    return pa.Table.from_pylist(rows)
