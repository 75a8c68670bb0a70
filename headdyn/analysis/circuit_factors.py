"""QK and OV circuits of heads as thin factors, so that no D×D matrix is formed (science.md §8).

Letters as in models/decoder.py; N heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.models.layers import rotate


@dataclass(frozen=True)
class Factors:
    """One circuit of all heads: circuit n is left_n @ right_nᵀ, a D×D matrix that acts on row vectors; float64."""

    left_NDd: Tensor
    right_NDd: Tensor

    @classmethod
    def stacked(cls, parts: Sequence[Factors]) -> Factors:
        """The circuits of several layers, one after another."""
        return cls(torch.cat([part.left_NDd for part in parts]), torch.cat([part.right_NDd for part in parts]))

    def __getitem__(self, heads: slice) -> Factors:
        return Factors(self.left_NDd[heads], self.right_NDd[heads])

    def to(self, device: torch.device) -> Factors:
        return Factors(self.left_NDd.to(device), self.right_NDd.to(device))


@torch.no_grad()
def folded(decoder: Decoder, layer: int, offset: int = 0) -> dict[str, Factors]:
    """The layer's circuits "qk" and "ov", everything linear folded in, one per query head (also under GQA).

    With an offset, "qk" is for a query and the key `offset` positions before it: RoPE rotates the query's factor.
    """
    w, c = decoder.head_weights(layer), decoder.config
    centred = w.norm_bias_D is not None

    def read(weight_XDd: Tensor, heads: int) -> Tensor:
        wide_XDd = weight_XDd.double()
        if w.norm_gain_D is not None:
            wide_XDd = w.norm_gain_D.double()[:, None] * wide_XDd
        if centred:
            wide_XDd = wide_XDd - wide_XDd.mean(1, keepdim=True)
        return wide_XDd.repeat_interleave(c.num_heads // heads, dim=0)

    q_HDd, k_HDd = read(w.q_HDd, c.num_heads), read(w.k_GDd, c.num_kv_heads)
    if w.q_gain_Hd is not None and w.k_gain_Gd is not None:
        k_gain_Hd = w.k_gain_Gd.repeat_interleave(c.queries_per_group, dim=0)
        q_HDd, k_HDd = q_HDd * w.q_gain_Hd.double()[:, None], k_HDd * k_gain_Hd.double()[:, None]
    rotary = decoder.rotary(1, offset)
    if offset and rotary is not None:
        q_HDd = rotate(q_HDd[:, None], *rotary)[:, 0]
    o_HDd = w.o_HdD.detach().double().mT
    if w.out_gain_D is not None:
        o_HDd = w.out_gain_D.double()[:, None] * o_HDd
    if centred:
        o_HDd = o_HDd - o_HDd.mean(1, keepdim=True)
    return {"qk": Factors(q_HDd, k_HDd), "ov": Factors(read(w.v_GDd, c.num_kv_heads), o_HDd)}


@torch.no_grad()
def unembed_embed(decoder: Decoder) -> Float[Tensor, "D D"]:
    """W_U W_E, [D, V] @ [V, D], with the final norm's gain and LayerNorm's centring folded into W_U."""
    unembed_DV = decoder.norm.weight.double()[:, None] * decoder.unembed.weight.double().mT
    if decoder.norm.bias is not None:
        unembed_DV = unembed_DV - unembed_DV.mean(0)
    return unembed_DV @ decoder.embed.weight.double()


def singular_values(factors: Factors) -> Float[Tensor, "N d"]:
    """Singular values of every circuit, largest first, from the d×d core R_left R_rightᵀ of the factors' QR."""
    left, right = (torch.linalg.qr(factor, mode="r").R for factor in (factors.left_NDd, factors.right_NDd))
    return torch.linalg.svdvals(left @ right.mT)


def effective_rank(values_Nd: Tensor) -> Float[Tensor, " N"]:
    """exp of the entropy of the singular values' shares (Roy & Vetterli 2007): 1 for rank one, d when all are equal."""
    share_Nd = values_Nd / values_Nd.sum(-1, keepdim=True)
    return torch.special.entr(share_Nd).sum(-1).exp()


def copying_scores(ov: Factors, unembed_embed_DD: Tensor) -> Float[Tensor, " N"]:
    """Σλ / Σ|λ| over the eigenvalues of W_E W_OV W_U, −1..1; 1 where every token raises its own logit.

    The measure of Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits". The V×V matrix has the
    nonzero eigenvalues of the d×d matrix right_oᵀ (W_U W_E) left_v: they are those of any cyclic reordering.
    """
    eigenvalues_Nd = torch.linalg.eigvals(ov.right_NDd.mT @ unembed_embed_DD @ ov.left_NDd)
    return eigenvalues_Nd.real.sum(-1) / eigenvalues_Nd.abs().sum(-1)


def cosines(factors: Factors) -> Float[Tensor, "N N"]:
    """Cosines between circuits as D×D matrices, ⟨A_i, A_j⟩ = Σ (left_iᵀ left_j) ⊙ (right_iᵀ right_j).

    Free of gauge: left → left R with right → right R⁻ᵀ leaves every circuit, and so every cosine, as it was.
    """
    count, _, width = factors.left_NDd.shape
    left_DX, right_DX = (f.transpose(0, 1).flatten(1) for f in (factors.left_NDd, factors.right_NDd))
    inner_NN = torch.zeros(count, count, dtype=left_DX.dtype, device=left_DX.device)
    for i in range(count):
        start = i * width
        product = (factors.left_NDd[i].mT @ left_DX[:, start:]) * (factors.right_NDd[i].mT @ right_DX[:, start:])
        inner_NN[i, i:] = product.view(width, count - i, width).sum((0, 2))
    inner_NN = inner_NN + inner_NN.triu(1).mT
    norm_N = inner_NN.diagonal().sqrt()
    return inner_NN / norm_N[:, None] / norm_N


def random_circuits(config: DecoderConfig, generator: np.random.Generator) -> dict[str, Factors]:
    """Gaussian circuits of the model's shape and grouping, one per head.

    Their scale is arbitrary, since no measure of circuits depends on it.
    """
    c = config

    def draw(heads: int) -> Tensor:
        draw_XDd = torch.from_numpy(generator.normal(size=(c.num_layers * heads, c.d_model, c.head_dim)))
        return draw_XDd.repeat_interleave(c.num_heads // heads, dim=0)

    return {
        "qk": Factors(draw(c.num_heads), draw(c.num_kv_heads)),
        "ov": Factors(draw(c.num_kv_heads), draw(c.num_heads)),
    }
