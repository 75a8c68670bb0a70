"""Sums over attention patterns (science.md §6), streamed: no T×T array outlives its batch.

Letters as in models/decoder.py; N evaluation sequences, S topics, R label swaps, C columns of weights over keys.

Every statistic of §6 is a ratio of sums over queries, and a batch leaves only those sums, one number per sequence,
layer, head and statistic. The label-swap null costs no pass over the pattern: a mean over swaps of Σ_k A_qk [y_q = y_k]
is Σ_k A_qk w_qk with w the mean over swaps of [y_q = y_k], which all layers and heads share.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headdyn.analysis.sequences import Sequences
from headdyn.models.decoder import Decoder

_TINY = 1e-30  # added before the logarithm, so that masked keys give 0 ln 0 = 0
_LEAST_MASS = 1e-20  # a row is renormalised over keys that hold at least this: far above _TINY, far below any attention
# Attention weights of a batch at one layer, H × T × T a sequence. A CPU is fastest where they fit into its cache: with
# 4 heads, T256, D256 and one thread, 34 ms a sequence with 2^19 or 2^20, 36 with 2^22, 48 with 2^23. Peak memory is in
# proportion.
_BATCH_WEIGHTS = {"cpu": 2**19, "cuda": 2**26}


@dataclass(frozen=True)
class Reference:
    """Weights over keys that a batch's patterns are summed with, the same for every layer and head; float32."""

    topics_BSK: Tensor  # one-hot
    columns_BCK: Tensor  # the S topics, then the key's position, then [key = 0]
    swapped_BQK: Tensor  # [y_q = y_k] averaged over swaps
    # `swapped` for the queries of each topic; induction keys; induction keys summed over swaps; and where documents are
    # packed, `document_contrast` and [another document].
    weights_BCQK: Tensor

    @classmethod
    def of(
        cls,
        tokens_BT: Tensor,
        topics_BT: Tensor,
        swapped: tuple[Tensor, Tensor],
        num_topics: int,
        packed_BT: Tensor | None = None,
    ) -> Reference:
        """From B sequences; `swapped` holds tokens and topics of R other sequences for each of them, both [R, B, T].

        `packed_BT` numbers the documents where attention crosses them; None where no documents are packed.
        """
        tokens_RBT, topics_RBT = swapped
        swaps, _, length = topics_RBT.shape
        topics_BSK = F.one_hot(topics_BT, num_topics).mT.float()
        position_K = torch.arange(length, dtype=torch.float32, device=tokens_BT.device)
        extra_CK = torch.stack((position_K, (position_K == 0).float())).expand(len(tokens_BT), -1, -1)
        other_BKX = F.one_hot(topics_RBT, num_topics).float().permute(1, 2, 0, 3).flatten(2)
        follows_BQK = torch.zeros(len(tokens_BT), length, length, dtype=torch.int16, device=tokens_BT.device)
        for row_BT in tokens_RBT:
            follows_BQK += row_BT[:, :, None] == row_BT[:, None, :]
        swapped_BQK = other_BKX @ other_BKX.mT / swaps
        by_topic_BSQK = topics_BSK[..., None] * swapped_BQK[:, None]
        induction = (_behind(tokens_BT[:, :, None] == tokens_BT[:, None, :]), _behind(follows_BQK))
        packed = () if packed_BT is None else document_contrast(topics_BT, packed_BT, num_topics)
        weights_BCQK = torch.cat((by_topic_BSQK, torch.stack((*induction, *packed), dim=1)), dim=1)
        return cls(topics_BSK, torch.cat((topics_BSK, extra_CK), dim=1), swapped_BQK, weights_BCQK)


def document_contrast(topics_BT: Tensor, packed_BT: Tensor, num_topics: int) -> tuple[Tensor, Tensor]:
    """[key in another document] × ([query and key share a topic] − its mean over permutations), and the first factor.

    The permutations exchange the topics of a sequence's documents, each of which has one (science.md §6). Both results
    are [B, Q, K].
    """
    elsewhere_BQK = (packed_BT[:, :, None] != packed_BT[:, None, :]).float()
    same_BQK = (topics_BT[:, :, None] == topics_BT[:, None, :]).float()
    chance = []
    for topics_T, packed_T in zip(topics_BT, packed_BT, strict=True):
        documents, place_T = packed_T.unique(return_inverse=True)
        topic_of = torch.zeros_like(documents).scatter_(0, place_T, topics_T)
        of_topic_S, count = topic_of.bincount(minlength=num_topics).float(), len(documents)
        chance.append((of_topic_S * (of_topic_S - 1)).sum() / max(1, count * (count - 1)))
    return elsewhere_BQK * (same_BQK - torch.stack(chance)[:, None, None]), elsewhere_BQK


def _behind(match_BQK: Tensor) -> Tensor:
    """Weights on key j + 1 from matches of the query's token with key j; the query's own position gets none."""
    return F.pad(match_BQK[..., :-1].float(), (1, 0)).tril(-1)


def head_sums(pattern_BHQK: Float[Tensor, "B H Q K"], reference: Reference) -> dict[str, Tensor]:
    """Sums over queries of every statistic of §6, each [B, H]; the pattern is lower triangular, its rows sum to 1.

    `topics` and `topics_swapped` are [B, H, S]: the same-topic mass of the queries of each topic, and the same under
    swapped labels. `documents` and `elsewhere` are present only where documents are packed.
    """
    batch, heads, length, _ = pattern_BHQK.shape
    topics_BSK, num_topics = reference.topics_BSK, reference.topics_BSK.shape[1]
    rows_BKX = pattern_BHQK.reshape(batch, heads * length, length).mT
    # Weights on the left: [C, K] @ [K, HQ] ran in a fifth of the time of [HQ, K] @ [K, C] (C 5, T 256, MKL).
    mass_BCHQ = (reference.columns_BCK @ rows_BKX).view(batch, -1, heads, length)
    log = (pattern_BHQK + _TINY).log_().mul_(pattern_BHQK)
    surprise_BSHQ = -(topics_BSK @ log.view(batch, heads * length, length).mT).view(batch, -1, heads, length)
    weighed_BHC = pattern_BHQK.reshape(batch, heads, -1) @ reference.weights_BCQK.flatten(2).mT

    own_BSHQ = topics_BSK[:, :, None]
    topic_mass_BSHQ = mass_BCHQ[:, :num_topics]
    within_BSHQ = topic_mass_BSHQ * own_BSHQ
    within_BHQ = within_BSHQ.sum(1)
    cross_BHQ = (topic_mass_BSHQ - within_BSHQ).sum(1)
    entropy_BHQ = surprise_BSHQ.sum(1)
    entropy_within_BHQ, has_within = _renormalised((surprise_BSHQ * own_BSHQ).sum(1), within_BHQ)
    entropy_cross_BHQ, has_cross = _renormalised((surprise_BSHQ * (1 - own_BSHQ)).sum(1), cross_BHQ)
    position_Q = torch.arange(length, dtype=torch.float32, device=pattern_BHQK.device)
    further = ("induction", "induction_swapped", "documents", "elsewhere")  # the last two where documents are packed
    return {
        **dict(zip(further, weighed_BHC[..., num_topics:].unbind(-1), strict=False)),
        "entropy": entropy_BHQ.sum(-1),
        "entropy_normalised": (entropy_BHQ[..., 1:] / position_Q[1:].log1p()).sum(-1),
        "entropy_within": entropy_within_BHQ.sum(-1),
        "entropy_within_queries": has_within.sum(-1),
        "entropy_cross": entropy_cross_BHQ.sum(-1),
        "entropy_cross_queries": has_cross.sum(-1),
        "within": within_BHQ.sum(-1),
        "cross": cross_BHQ.sum(-1),
        "swapped": weighed_BHC[..., :num_topics].sum(-1),
        "topics_swapped": weighed_BHC[..., :num_topics],
        "self": pattern_BHQK.diagonal(dim1=-2, dim2=-1).sum(-1),
        "topics": within_BSHQ.sum(-1).mT,
        "sink": mass_BCHQ[:, -1, :, 1:].sum(-1),
        "previous": pattern_BHQK.diagonal(offset=-1, dim1=-2, dim2=-1).sum(-1),
        "distance": (position_Q - mass_BCHQ[:, num_topics]).sum(-1),
    }


def _renormalised(surprise_BHQ: Tensor, mass_BHQ: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of rows renormalised over a set of keys of mass m, −Σ (A/m) ln (A/m), and whether there is any mass."""
    has_mass = mass_BHQ > _LEAST_MASS
    mass_BHQ = mass_BHQ.where(has_mass, 1)
    return (surprise_BHQ / mass_BHQ + mass_BHQ.log()).where(has_mass, 0), has_mass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many queries every sum runs over: by sequence, shaped [N, 1, 1] to divide [N, L, H]."""

    length: int
    cross: np.ndarray  # queries with other-topic keys: those from the second topic's first token on
    cross_swapped: np.ndarray  # the same under swapped labels, averaged over swaps
    induction: np.ndarray  # queries whose token was followed by something before
    induction_swapped: np.ndarray  # summed over swaps, as `Reference` sums their weights
    topics_NS: np.ndarray

    @classmethod
    def of(cls, tokens_NT: np.ndarray, topics_NT: np.ndarray, swaps_NR: np.ndarray, num_topics: int) -> Counts:
        """Counts of these sequences, and of the sequences at `swaps_NR`, which are their null."""
        length = tokens_NT.shape[1]
        other_NT = topics_NT != topics_NT[:, :1]
        cross_N = (np.maximum.accumulate(other_NT, axis=1)).sum(1)
        induction_N = np.array([_followed(row) for row in tokens_NT])
        return cls(
            length=length,
            cross=cross_N[:, None, None],
            cross_swapped=cross_N[swaps_NR].mean(1)[:, None, None],
            induction=induction_N[:, None, None],
            induction_swapped=induction_N[swaps_NR].sum(1)[:, None, None],
            topics_NS=np.stack([(topics_NT == topic).sum(1) for topic in range(num_topics)], axis=1),
        )


def _followed(tokens_T: np.ndarray) -> int:
    """How many positions t hold a token that also stands at some j < t − 1, so that key j + 1 lies before t."""
    _, first, back = np.unique(tokens_T, return_index=True, return_inverse=True)
    return int((first[back] < np.arange(len(tokens_T)) - 1).sum())


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Sums over the patterns of all sequences, by the names of `head_sums`: [N, L, H], or [N, L, H, S] by topic.

    `uniform` holds the same sums of causal-uniform attention on the same sequences, [N, 1, 1]. `labels_NJ` is `within`
    less `swapped`, per query, of J attentions by position alone: the selectivity that labels give by themselves.
    """

    heads: dict[str, np.ndarray]
    uniform: dict[str, np.ndarray]
    labels_NJ: np.ndarray
    counts: Counts


@torch.no_grad()
def collect(decoder: Decoder, sequences: Sequences, swaps_NR: np.ndarray, num_topics: int) -> Sums:
    """Run the decoder over the sequences batch by batch, layer by layer, keeping sums only.

    `swaps_NR` gives for each sequence the indices of the sequences whose labels and tokens serve as its null. Where the
    sequences have documents, attention, and uniform attention with it, stays inside them.
    """
    c, device = decoder.config, decoder.embed.weight.device
    tokens_NT, topics_NT = sequences.tokens_NT, sequences.topics_NT
    length = tokens_NT.shape[1]
    profiles_JQK = position_profiles(length).to(device)

    def batch(rows: slice, tokens_BT: Tensor, documents_BT: Tensor | None) -> dict[str, np.ndarray]:
        swaps_RB = swaps_NR[rows].T
        topics_BT, topics_RBT, tokens_RBT = (
            torch.from_numpy(array).to(device) for array in (topics_NT[rows], topics_NT[swaps_RB], tokens_NT[swaps_RB])
        )
        packed_BT = None if sequences.packed_NT is None else torch.from_numpy(sequences.packed_NT[rows]).to(device)
        reference = Reference.of(tokens_BT, topics_BT, (tokens_RBT, topics_RBT), num_topics, packed_BT)
        uniform_BHQK = profiles_JQK[:1].expand(len(tokens_BT), -1, -1, -1)
        if documents_BT is not None:
            uniform_BHQK = uniform_BHQK * (documents_BT[:, None, :, None] == documents_BT[:, None, None])
            uniform_BHQK = uniform_BHQK / uniform_BHQK.sum(-1, keepdim=True)
        sums = {f"uniform {name}": sum_BHX[:, None] for name, sum_BHX in head_sums(uniform_BHQK, reference).items()}
        same_BQK = reference.topics_BSK.mT @ reference.topics_BSK - reference.swapped_BQK
        sums["labels"] = same_BQK.flatten(1) @ profiles_JQK.flatten(1).mT / length
        residual_BTD, by_layer = decoder.embeddings(tokens_BT, 0), []
        for layer in range(c.num_layers):
            trace = decoder.trace(
                tokens_BT,
                start=(layer, residual_BTD),
                layers=(layer,),
                sites=("pattern", "resid_post"),
                logits=None,
                documents_BT=documents_BT,
            )
            residual_BTD = trace["resid_post", layer]
            by_layer.append(head_sums(trace["pattern", layer].float(), reference))
        sums |= {name: torch.stack([layer_sums[name] for layer_sums in by_layer], dim=1) for name in by_layer[0]}
        return {name: sum_BX.double().cpu().numpy() for name, sum_BX in sums.items()}

    at_once = _BATCH_WEIGHTS[device.type] // (c.num_heads * length**2)
    done = [part for _, part in sequences.parts(at_once, device, batch)]
    sums = {name: np.concatenate([part[name] for part in done]) for name in done[0]}
    return Sums(
        labels_NJ=sums.pop("labels"),
        uniform={name.removeprefix("uniform "): sums.pop(name) for name in [*sums] if name.startswith("uniform ")},
        heads=sums,
        counts=Counts.of(tokens_NT, topics_NT, swaps_NR, num_topics),
    )


def position_profiles(length: int) -> Float[Tensor, "J Q K"]:
    """Attention by position alone: causal-uniform first, then fading over 2, 8, 32 … tokens, then on position 0."""
    distance_QK = torch.arange(length)[:, None] - torch.arange(length)
    scores = [torch.zeros(length, length)]
    scores += [-distance_QK / scale for scale in (2 * 4**i for i in range(8)) if scale < length]
    scores += [1e4 * (torch.arange(length) == 0).float().expand(length, -1)]
    return torch.stack(scores).masked_fill(distance_QK < 0, -torch.inf).softmax(-1)
