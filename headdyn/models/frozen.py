"""TensorLens: a decoder frozen at an input is linear in what its first block reads (science.md §9).

Letters as in models/decoder.py, and: F hidden units of the MLP, N inputs given to the frozen decoder at once,
K cotangents, I output token and J input token of a pair.

Frozen are the attention patterns, every norm's 1/σ (LayerNorm's centring is linear and stays) and one factor of the
MLP's hidden units. Then y_i = Σ_j T_ij x_j + c_i exactly, where c comes from the biases, and T_ij is the operator by
which token j acts on token i along every path through the model. The method is TensorLens (arXiv 2601.17958).

A SwiGLU's hidden unit is the product silu(gate) · up. `branch="up"` freezes silu(gate) and leaves `up` linear;
`branch="gate"` freezes σ(gate) · up and leaves `gate` linear, since silu(g) = σ(g) g. Both are exact, but they are
different operators. A plain MLP has one choice: gelu(u) = Φ(u) u with Φ(u) frozen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from headdyn.models.decoder import Decoder
from headdyn.models.layers import MLP, Attention, Block, Norm

Branch = Literal["up", "gate"]

_LINEAR_OR_FROZEN = (Decoder, Block, Attention, Norm, MLP, nn.Linear, nn.Embedding, nn.ModuleList)
_MLPS = ("swiglu", "gelu", "gelu_tanh")


@dataclass(frozen=True, kw_only=True)
class FrozenLayer:
    """The frozen factors of one layer."""

    pattern_BHQK: Tensor
    scale1_BT: Tensor  # 1/σ of attention's norm, which is before it, or with post_norm after it
    scale2_BT: Tensor  # 1/σ of the MLP's norm, likewise
    gate_BTF: Tensor  # multiplies the linear branch of the MLP's hidden units


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A decoder frozen at B sequences, made by `freeze`.

    `residual` has L + 1 arrays [B, T, D]: the input of every layer, then the last layer's output y.
    """

    decoder: Decoder
    branch: Branch
    layers: Sequence[FrozenLayer]
    residual: Sequence[Tensor]
    final_scale_BT: Tensor

    def layer(
        self, index: int, x_NBTD: Float[Tensor, "N B T D"], *, biases: bool = True
    ) -> tuple[Float[Tensor, "N B T D"], Float[Tensor, "N B T H d"]]:
        """One frozen layer: its output, and its heads' outputs z before W_O. Affine in x; linear without `biases`."""
        z_NBTHd = self.heads(index, x_NBTD, biases=biases)
        block = cast(Block, self.decoder.blocks[index])
        attention_NBTD = _linear(block.attention.o, z_NBTHd.flatten(-2), biases)
        middle_NBTD = x_NBTD + _writes(block, block.norm1, attention_NBTD, self.layers[index].scale1_BT)
        return middle_NBTD + self.mlp(index, x_NBTD if block.parallel else middle_NBTD, biases=biases), z_NBTHd

    def heads(self, index: int, x_NBTD: Float[Tensor, "N B T D"], *, biases: bool = True) -> Float[Tensor, "N B T H d"]:
        """The heads' outputs z, before W_O, for an input x of the layer."""
        frozen, block = self.layers[index], cast(Block, self.decoder.blocks[index])
        c = self.decoder.config
        copies, batch, length, _ = x_NBTD.shape
        reads_NBTD = _reads(block, block.norm1, x_NBTD, frozen.scale1_BT, biases)
        v_NBTX = _linear(block.attention.v, reads_NBTD, biases)
        # The N inputs become columns beside the head's own: one product per head, however many inputs.
        v_BGKX = v_NBTX.view(copies, batch, length, c.num_kv_heads, -1).permute(1, 3, 2, 0, 4).flatten(3)
        pattern_BGrQK = frozen.pattern_BHQK.unflatten(1, (c.num_kv_heads, -1))
        z_BGrQX = pattern_BGrQK @ v_BGKX[:, :, None]
        z_BHTNd = z_BGrQX.flatten(1, 2).unflatten(-1, (copies, c.head_dim))
        return z_BHTNd.permute(3, 0, 2, 1, 4)

    def mlp(self, index: int, x_NBTD: Float[Tensor, "N B T D"], *, biases: bool = True) -> Float[Tensor, "N B T D"]:
        """The MLP's output for its input x: the residual stream after attention, or the layer's input if parallel."""
        frozen, block = self.layers[index], cast(Block, self.decoder.blocks[index])
        reads_NBTD = _reads(block, block.norm2, x_NBTD, frozen.scale2_BT, biases)
        hidden_NBTF = frozen.gate_BTF * _linear(_linear_branch(block.mlp, self.branch), reads_NBTD, biases)
        return _writes(block, block.norm2, _linear(block.mlp.down, hidden_NBTF, biases), frozen.scale2_BT)

    def states(self, x_NBTD: Float[Tensor, "N B T D"], *, biases: bool = True) -> Iterator[Float[Tensor, "N B T D"]]:
        """The outputs of every layer, for an input x of the first one."""
        for index in range(len(self.layers)):
            x_NBTD, _ = self.layer(index, x_NBTD, biases=biases)
            yield x_NBTD

    @torch.no_grad()
    def affine(self) -> Float[Tensor, "B T D"]:
        """c, the part of the output that comes from the biases; zeros in a model without biases."""
        c_BTD = torch.zeros_like(self.residual[0])
        for state_NBTD in self.states(c_BTD[None]):
            c_BTD = state_NBTD[0]
        return c_BTD

    def unembedding(self, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """u with ⟨u_t, y_t⟩ = the logit of token t of `tokens_BT` minus the mean logit, the norm's bias left out."""
        unembed_VD = self.decoder.unembed.weight
        return self.readout(F.embedding(tokens_BT, unembed_VD) - unembed_VD.mean(0))

    def readout(self, direction_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """u with ⟨u_t, y_t⟩ = ⟨direction_t, final norm of y_t⟩, the norm's bias left out."""
        norm = self.decoder.norm
        u_BTD = direction_BTD * norm.weight
        if norm.bias is not None:
            u_BTD = u_BTD - u_BTD.mean(-1, keepdim=True)
        return u_BTD * self.final_scale_BT[..., None]

    def tail(self, start: int) -> Frozen:
        """The frozen decoder for positions from `start` on; it suffices for inputs that are zero before `start`."""
        layers = [
            FrozenLayer(
                pattern_BHQK=layer.pattern_BHQK[:, :, start:, start:],
                scale1_BT=layer.scale1_BT[:, start:],
                scale2_BT=layer.scale2_BT[:, start:],
                gate_BTF=layer.gate_BTF[:, start:],
            )
            for layer in self.layers
        ]
        return dataclasses.replace(
            self,
            layers=layers,
            residual=[x_BTD[:, start:] for x_BTD in self.residual],
            final_scale_BT=self.final_scale_BT[:, start:],
        )


@torch.no_grad()
def freeze(
    decoder: Decoder,
    tokens_BT: Int[Tensor, "B T"],
    *,
    branch: Branch = "up",
    documents_BT: Int[Tensor, "B T"] | None = None,
) -> Frozen:
    """Run the decoder once and store the factors that make it linear: L · (H T² + T (F + D)) numbers for each sequence.

    Raises ValueError for a module that cannot be frozen, naming it, and for weights in half precision, whose rounding
    errors could not be told from a difference between the model and its operator.
    """
    _require_freezable(decoder)
    c, blocks = decoder.config, [cast(Block, block) for block in decoder.blocks]
    trace = decoder.trace(
        tokens_BT, sites=("resid_pre", "pattern", "z", "attn_out", "resid_post"), logits=None, documents_BT=documents_BT
    )
    layers = []
    for index, block in enumerate(blocks):
        x_BTD = trace["resid_pre", index]
        middle_BTD = x_BTD if block.parallel else x_BTD + trace["attn_out", index]
        reads_BTD = block.reads(block.norm2, middle_BTD)
        normed1_BTD, normed2_BTD = x_BTD, middle_BTD
        if block.post_norm:
            normed1_BTD, normed2_BTD = block.attention.o(trace["z", index].flatten(-2)), block.mlp(reads_BTD)
        layers.append(
            FrozenLayer(
                pattern_BHQK=trace["pattern", index],
                scale1_BT=_scale(block.norm1, normed1_BTD),
                scale2_BT=_scale(block.norm2, normed2_BTD),
                gate_BTF=_gate_factor(block.mlp, reads_BTD, branch),
            )
        )
    y_BTD = trace["resid_post", c.num_layers - 1]
    return Frozen(
        decoder=decoder,
        branch=branch,
        layers=layers,
        residual=[*(trace["resid_pre", index] for index in range(c.num_layers)), y_BTD],
        final_scale_BT=_scale(decoder.norm, y_BTD),
    )


def _require_freezable(decoder: Decoder) -> None:
    for name, module in decoder.named_modules():
        if type(module) not in _LINEAR_OR_FROZEN:
            raise ValueError(
                f"{name} is a {type(module).__name__}, which TensorLens cannot freeze; it knows "
                f"{', '.join(kind.__name__ for kind in _LINEAR_OR_FROZEN)}. Fold it into the weights first"
            )
    if decoder.config.mlp not in _MLPS:
        raise ValueError(
            f"mlp={decoder.config.mlp!r} has an activation that TensorLens cannot freeze; it knows {', '.join(_MLPS)}"
        )
    dtype = decoder.embed.weight.dtype
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"TensorLens cannot tell its operator from rounding in {dtype}; use decoder.float()")


def _linear(module: nn.Linear, x: Tensor, biases: bool) -> Tensor:
    return F.linear(x, module.weight, module.bias if biases else None)


def _reads(block: Block, norm: Norm, x_NBTD: Tensor, scale_BT: Tensor, biases: bool) -> Tensor:
    """The input of attention or MLP, given the residual stream x."""
    return x_NBTD if block.post_norm else _norm(norm, x_NBTD, scale_BT, biases)


def _writes(block: Block, norm: Norm, x_NBTD: Tensor, scale_BT: Tensor) -> Tensor:
    """What attention or MLP with output x adds to the residual stream: x, or with post_norm the frozen norm of x.

    The frozen RMSNorm is a diagonal matrix, hence its own transpose, and so serves gradients too.
    """
    return x_NBTD * scale_BT[..., None] * norm.weight if block.post_norm else x_NBTD


def _norm(module: Norm, x_NBTD: Tensor, scale_BT: Tensor, biases: bool) -> Tensor:
    if module.bias is None:
        return x_NBTD * scale_BT[..., None] * module.weight
    centred_NBTD = (x_NBTD - x_NBTD.mean(-1, keepdim=True)) * scale_BT[..., None] * module.weight
    return centred_NBTD + module.bias if biases else centred_NBTD


def _scale(module: Norm, x_BTD: Tensor) -> Tensor:
    """The norm's factor 1/σ; σ is the root mean square about 0 in an RMSNorm, about the mean in a LayerNorm."""
    spread_BT = x_BTD.pow(2).mean(-1) if module.bias is None else x_BTD.var(-1, correction=0)
    return torch.rsqrt(spread_BT + module.eps)


def _linear_branch(mlp: MLP, branch: Branch) -> nn.Linear:
    return mlp.gate if mlp.gate is not None and branch == "gate" else mlp.up


def _gate_factor(mlp: MLP, x_BTD: Tensor, branch: Branch) -> Tensor:
    """The gate factor [B, T, F]: hidden units divided by their linear branch, in closed form, since that may be 0."""
    up_BTF = mlp.up(x_BTD)
    if mlp.gate is not None:
        gate_BTF = mlp.gate(x_BTD)
        return F.silu(gate_BTF) if branch == "up" else torch.sigmoid(gate_BTF) * up_BTF
    if mlp.kind == "gelu_tanh":
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up_BTF + 0.044715 * up_BTF.pow(3))))
    return 0.5 * (1 + torch.erf(up_BTF / math.sqrt(2)))


# -- readouts of many sequences: one backward pass of the frozen decoder for each cotangent ----------------------------


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """Gradients of K frozen outputs with respect to the first block's input x and to every head's output z.

    ⟨gradient at x_j, x_j⟩ is token j's exact share of the output: the shares of all tokens and that of the biases sum
    to the output. ⟨gradient at z, z⟩ is the contribution of all paths through a head; since a path can cross several
    heads, these do not sum to the output.
    """

    x_KBTD: Tensor
    z_LKBTHd: Tensor

    def token_shares(self, frozen: Frozen) -> Float[Tensor, "K B T"]:
        """⟨T_ijᵀ g, x_j⟩ for every input token j."""
        return (self.x_KBTD * frozen.residual[0]).sum(-1)


def pull(frozen: Frozen, cotangent_KBTD: Float[Tensor, "K B T D"]) -> tuple[Pulled, Float[Tensor, "L B T H d"]]:
    """Gradients of the K outputs Σ ⟨cotangent, y⟩ of the frozen decoder (VJPs), and the heads' outputs z.

    One frozen forward pass, and one backward pass for each cotangent; parameters get no gradients.
    """
    x_NBTD = frozen.residual[0].detach()[None].requires_grad_()
    state_NBTD, heads = x_NBTD, []
    with torch.enable_grad():
        for index in range(len(frozen.layers)):
            state_NBTD, z_NBTHd = frozen.layer(index, state_NBTD)
            heads.append(z_NBTHd)
        x_grad, *z_grads = torch.autograd.grad(
            state_NBTD[0], [x_NBTD, *heads], cotangent_KBTD, is_grads_batched=True, materialize_grads=True
        )
    pulled = Pulled(x_KBTD=x_grad[:, 0], z_LKBTHd=torch.stack([grad[:, 0] for grad in z_grads]))
    return pulled, torch.stack([z_NBTHd[0].detach() for z_NBTHd in heads])


@dataclass(frozen=True, kw_only=True)
class Direct:
    """K frozen outputs Σ ⟨cotangent, y⟩ as sums of direct shares: ⟨cotangent, what a part adds to the residual stream⟩.

    The parts are computed without biases, which together contribute `biases_KB`. All shares sum to the output exactly.
    """

    embedding_KB: Tensor
    heads_LKBH: Tensor
    mlps_LKB: Tensor
    biases_KB: Tensor


@torch.no_grad()
def direct_shares(frozen: Frozen, cotangent_KBTD: Float[Tensor, "K B T D"]) -> Direct:
    """The direct shares of embedding, heads and MLPs, from two frozen forward passes."""
    x_NBTD, heads, mlps = frozen.residual[0][None], [], []
    for index, block in enumerate(frozen.decoder.blocks):
        z_NBTHd = frozen.heads(index, x_NBTD, biases=False)
        o_HdD = frozen.decoder.head_weights(index).o_HdD
        attention_NBTD = torch.einsum("nbthd,hdD->nbtD", z_NBTHd, o_HdD)
        block, scale_BT = cast(Block, block), frozen.layers[index].scale1_BT
        gradient_KBTD = _writes(block, block.norm1, cotangent_KBTD, scale_BT)  # with respect to attention's output
        # ⟨g W_Oᵀ, z⟩ in place of the equal ⟨g, z W_O⟩, for which each head would need an array of width D.
        heads.append((torch.einsum("kbtD,hdD->kbthd", gradient_KBTD, o_HdD) * z_NBTHd).sum((2, 4)))
        middle_NBTD = x_NBTD + _writes(block, block.norm1, attention_NBTD, scale_BT)
        written_NBTD = frozen.mlp(index, x_NBTD if block.parallel else middle_NBTD, biases=False)
        mlps.append((cotangent_KBTD * written_NBTD).sum((2, 3)))
        x_NBTD = middle_NBTD + written_NBTD
    return Direct(
        embedding_KB=(cotangent_KBTD * frozen.residual[0]).sum((2, 3)),
        heads_LKBH=torch.stack(heads),
        mlps_LKB=torch.stack(mlps),
        biases_KB=(cotangent_KBTD * frozen.affine()).sum((2, 3)),
    )


# -- heads ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def head_values(frozen: Frozen, layer: int, *, biases: bool = True) -> Float[Tensor, "B T H d"]:
    """v of every query head at every token, so that z_i = Σ_j A_ij v_j. Without `biases`, only v's linear part."""
    block, c = cast(Block, frozen.decoder.blocks[layer]), frozen.decoder.config
    reads_BTD = _reads(block, block.norm1, frozen.residual[layer], frozen.layers[layer].scale1_BT, biases)
    v_BTGd = _linear(block.attention.v, reads_BTD, biases).unflatten(-1, (c.num_kv_heads, c.head_dim))
    return v_BTGd.repeat_interleave(c.queries_per_group, dim=2)


@torch.no_grad()
def head_flow(frozen: Frozen, layer: int) -> Float[Tensor, "B H Q K"]:
    """‖A_ij v_j W_O‖: the norm of what every head of a layer writes at i after reading j, without biases."""
    v_BTHd = head_values(frozen, layer, biases=False)
    weights, factor_BHQK = frozen.decoder.head_weights(layer), frozen.layers[layer].pattern_BHQK
    o_HdD = weights.o_HdD
    if weights.out_gain_D is not None:
        o_HdD = o_HdD * weights.out_gain_D
        factor_BHQK = factor_BHQK * frozen.layers[layer].scale1_BT[:, None, :, None]
    gram_Hdd = o_HdD @ o_HdD.mT  # ‖v W_O‖² = v (W_O W_Oᵀ) vᵀ, without the product's D columns
    square_BTH = torch.einsum("bthd,hde,bthe->bth", v_BTHd, gram_Hdd, v_BTHd)
    return factor_BHQK * square_BTH.clamp_min(0).sqrt().mT[:, :, None]
