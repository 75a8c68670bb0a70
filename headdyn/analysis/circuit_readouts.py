"""Which tokens a head's circuits are about: the top singular directions of QK and OV read in the vocabulary.

Letters as in circuits.py; X directions of a head, largest singular value first.

The SVD of a circuit, left rightᵀ = Σ σ u vᵀ, pairs directions u and v: QK scores a query along u against a key along
v, OV reads along u and writes along v. A token's place along a direction is the projection of its embedding, scaled to
rms 1 as the head's norm would scale it alone; along the v of OV it is the token's logit. Places are in standard
deviations over the vocabulary, so that heads and models can be compared. Only layer 0 reads embeddings alone. Deeper
layers also read what earlier layers wrote: their readouts show what the weights prefer, not what the heads see.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from headdyn.analysis.circuit_factors import Factors
from headdyn.data.text.tokenizer import load_tokenizer
from headdyn.models.decoder import Decoder

_HEADS_AT_ONCE = 32  # heads whose places of all tokens are in memory at once
SIDES = {"qk": ("query", "key"), "ov": ("reads", "writes")}


def singular_directions(
    factors: Factors, count: int
) -> tuple[Float[Tensor, "N X"], Float[Tensor, "N D X"], Float[Tensor, "N D X"]]:
    """The top directions of every circuit: their σ² over the sum of all σ², the left ones u, the right ones v.

    From QR of both factors and the SVD of the d×d core: no D×D product is formed.
    """
    left_q, left_r = torch.linalg.qr(factors.left_NDd)
    right_q, right_r = torch.linalg.qr(factors.right_NDd)
    u_Ndd, values_Nd, vt_Ndd = torch.linalg.svd(left_r @ right_r.mT)
    square_Nd = values_Nd.square()
    total_N1 = square_Nd.sum(-1, keepdim=True)
    share_Nd = square_Nd / total_N1.where(total_N1 > 0, 1)
    return share_Nd[:, :count], left_q @ u_Ndd[..., :count], right_q @ vt_Ndd.mT[..., :count]


@torch.no_grad()
def vocabulary(decoder: Decoder) -> tuple[Float[Tensor, "V D"], Float[Tensor, "V D"]]:
    """Embeddings at rms 1, and the unembedding with the final norm's gain; both are centred under LayerNorm."""
    embed_VD, unembed_VD = decoder.embed.weight.float(), decoder.unembed.weight.float() * decoder.norm.weight.float()
    if decoder.norm.bias is not None:
        embed_VD, unembed_VD = (x - x.mean(-1, keepdim=True) for x in (embed_VD, unembed_VD))
    rms_V1 = embed_VD.square().mean(-1, keepdim=True).sqrt()
    return embed_VD / rms_V1.where(rms_V1 > 0, 1), unembed_VD


@torch.no_grad()
def token_readouts(
    circuit: str, factors: Factors, decoder: Decoder, *, directions: int, tokens: int, text: Callable[[int], str]
) -> pa.Table:
    """The tokens furthest along each direction: one row per head, direction, side and rank.

    `circuit` is "qk" or "ov"; `factors` hold the heads layer by layer. Both vectors of a singular pair may change sign
    together; here the furthest token of the second side (key, writes) is at the positive end.
    """
    all_share_NX, left_NDX, right_NDX = singular_directions(factors, directions)
    embed_VD, unembed_VD = vocabulary(decoder)
    tables = []
    for start in range(0, len(all_share_NX), _HEADS_AT_ONCE):
        chunk = slice(start, start + _HEADS_AT_ONCE)
        share_NX = all_share_NX[chunk].cpu().numpy()
        first_NXV = _placed(left_NDX[chunk], embed_VD)
        second_NXV = _placed(right_NDX[chunk], unembed_VD if circuit == "ov" else embed_VD)
        sign_NX1 = second_NXV.gather(2, second_NXV.abs().argmax(2, keepdim=True)).sign()
        for side, place_NXV in zip(SIDES[circuit], (first_NXV, second_NXV), strict=True):
            top = (place_NXV * sign_NX1).topk(min(tokens, len(embed_VD)), dim=2)
            token_NXR, deviations_NXR = top.indices.cpu().numpy(), top.values.double().cpu().numpy()
            # Leaves out directions of share 0, beyond the circuit's rank.
            n, x, rank = np.nonzero(np.broadcast_to(share_NX[:, :, None] > 0, token_NXR.shape))
            layer, head = np.divmod(start + n, decoder.config.num_heads)
            columns = {
                "circuit": [circuit] * len(n),
                "layer": layer,
                "head": head,
                "direction": x,
                "share": share_NX[n, x],
                "side": [side] * len(n),
                "rank": rank,
                "token": token_NXR[n, x, rank],
                "text": [text(token) for token in token_NXR[n, x, rank].tolist()],
                "deviations": deviations_NXR[n, x, rank],
            }
            tables.append(pa.table(columns))
    return pa.concat_tables(tables, promote_options="default")


def _placed(direction_NDX: Tensor, vectors_VD: Tensor) -> Tensor:
    """Every token's place along every direction, [N, X, V], in standard deviations about the vocabulary's mean."""
    count, width, directions = direction_NDX.shape
    flat_DY = direction_NDX.transpose(0, 1).reshape(width, -1).to(vectors_VD.dtype)
    place_NXV = (vectors_VD @ flat_DY).mT.reshape(count, directions, -1)
    spread_NX1 = place_NXV.std(-1, correction=0, keepdim=True)
    return (place_NXV - place_NXV.mean(-1, keepdim=True)) / spread_NX1.where(spread_NX1 > 0, 1)


def furthest(readouts: pa.Table) -> float:
    """Mean over heads and sides of how far, in sd, the furthest token lies on direction 0."""
    rows = readouts.to_pylist()
    return float(np.mean([row["deviations"] for row in rows if row["direction"] == 0 and row["rank"] == 0]))


def token_names(material: Any) -> Callable[[int], str]:
    """A function from a token's number to its text, or to the number as text if `material` has no tokenizer.

    `material` is a Corpus or Prompts.
    """
    decode = getattr(material, "decode", None)
    if decode is not None:
        return lambda token: decode([token])
    folder: Path | None = getattr(material, "tokenizer", None)
    if folder is None:
        return str
    tokenizer = load_tokenizer(folder)
    return lambda token: tokenizer.decode([token], skip_special_tokens=False)


def by_head(readouts: pa.Table) -> dict[tuple[int, int], dict[str, dict[str, Any]]]:
    """For each head and side, the first direction's share of σ² and its furthest tokens: texts and deviations."""
    heads: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for row in readouts.to_pylist():
        if row["direction"] == 0:
            sides = heads.setdefault((row["layer"], row["head"]), {})
            side = sides.setdefault(row["side"], {"share": row["share"], "texts": [], "deviations": []})
            side["texts"].append(row["text"])
            side["deviations"].append(row["deviations"])
    return heads
