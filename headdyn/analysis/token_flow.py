"""Maps from tokens to tokens through a frozen pass, and shares of logits (science.md §9).

Letters as in models/frozen.py; K targets, R other sequences.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from headdyn.models.frozen import Frozen, head_values, pull
from headdyn.models.frozen_pairs import contributions


def row_shares(weight_XQK: Float[Tensor, "*X Q K"]) -> Float[Tensor, "*X Q K"]:
    """Rows over their sums; a row without any weight stays 0."""
    total_XQ1 = weight_XQK.sum(-1, keepdim=True)
    return weight_XQK / total_XQ1.where(total_XQ1 > 0, 1)


def rollout(mean_LQK: Float[Tensor, "L Q K"]) -> Float[Tensor, "L Q K"]:
    """Attention rollout up to every layer, from the mean attention of each layer's heads (Abnar & Zuidema 2020)."""
    mixed_LQK = (mean_LQK + torch.eye(mean_LQK.shape[-1], dtype=mean_LQK.dtype, device=mean_LQK.device)) / 2
    products = [mixed_LQK[0]]
    for layer_QK in mixed_LQK[1:]:
        products.append(layer_QK @ products[-1])
    return torch.stack(products)


@torch.no_grad()
def flow_maps(frozen: Frozen) -> tuple[Float[Tensor, "L I J"], Float[Tensor, "I J"], Float[Tensor, ""]]:
    """Two maps from tokens to tokens, and the relative error of Σ_j T_ij x_j + c_i against y_i.

    The first map is ‖T_ij x_j‖ up to every layer, over its row's sum; the second ⟨T_ij x_j, y_i⟩/‖y_i‖² of the whole
    model, whose rows sum to 1 less the biases' share.
    """
    x_BTD, y_ID = frozen.residual[0], frozen.residual[-1][0]
    length = x_BTD.shape[1]
    norms_LJI = x_BTD.new_zeros(len(frozen.layers), length, length)
    aligned_JI = x_BTD.new_zeros(length, length)
    total_ID = frozen.affine()[0].clone()
    for start, states in contributions(frozen):
        stop = start + len(states[0])
        for layer, state_JID in enumerate(states):
            norms_LJI[layer, start:stop, start:] = state_JID.norm(dim=-1)
        aligned_JI[start:stop, start:] = torch.einsum("jid,id->ji", states[-1], y_ID[start:])
        total_ID[start:] += states[-1].sum(0)
    aligned_IJ = aligned_JI.mT / y_ID.square().sum(-1, keepdim=True)
    return row_shares(norms_LJI.mT), aligned_IJ, (total_ID - y_ID).abs().max() / y_ID.abs().max()


def logit_shares(
    frozen: Frozen,
    tokens_T: Int[Tensor, " T"],
    swapped_RT: Int[Tensor, "R T"],
    contrast_QK: Float[Tensor, "Q K"],
    targets_K: Int[Tensor, " targets"],
) -> dict[str, Tensor]:
    """Shares of the next token's logit in nats, means over targets, from one gradient of the frozen map for each.

    `head_logit_nats` [L, H] is the share that each head carries; `head_swapped_nats` [L, H] its mean share for the
    tokens that R other sequences have in the same place; `head_topic_nats` [L, H] and `tensorlens_topic_nats` [] are
    sums over keys of shares times the topic contrast of target and key.
    """
    # Rolled by one, the last position has the first token; the last position is no target.
    following_TD = frozen.unembedding(tokens_T.roll(-1)[None])[0]
    swapped_TD = frozen.unembedding(swapped_RT.roll(-1, dims=1)).mean(0)
    targets, (length, width) = len(targets_K), following_TD.shape
    cotangent_KBTD = following_TD.new_zeros(targets + 1, 1, length, width)
    cotangent_KBTD[torch.arange(targets), 0, targets_K] = following_TD[targets_K]
    cotangent_KBTD[targets, 0, targets_K] = swapped_TD[targets_K]  # gradients are linear: one serves all targets
    pulled, z_LBTHd = pull(frozen, cotangent_KBTD)
    carried_LKH = (pulled.z_LKBTHd * z_LBTHd[:, None]).sum((2, 3, 5))
    contrast_KJ = contrast_QK[targets_K]
    topical_LH = []
    for layer, frozen_layer in enumerate(frozen.layers):
        read_KHJd = torch.einsum("hqj,kqhd->khjd", frozen_layer.pattern_BHQK[0], pulled.z_LKBTHd[layer, :targets, 0])
        share_KHJ = (read_KHJd * head_values(frozen, layer)[0].transpose(0, 1)).sum(-1)
        topical_LH.append((share_KHJ * contrast_KJ[:, None]).sum((0, 2)) / targets)
    return {
        "head_logit_nats": carried_LKH[:, :targets].mean(1),
        "head_swapped_nats": carried_LKH[:, targets] / targets,
        "head_topic_nats": torch.stack(topical_LH),
        "tensorlens_topic_nats": (pulled.token_shares(frozen)[:targets, 0] * contrast_KJ).sum() / targets,
    }


def jacobian_error(frozen: Frozen, documents_BT: Tensor | None) -> Float[Tensor, ""]:
    """The relative error of `flow_maps` if T were the model's Jacobian at x; it shows why the model must be frozen."""
    decoder, last = frozen.decoder, len(frozen.layers) - 1

    def model(x_BTD: Tensor) -> Tensor:
        trace = decoder.trace(
            torch.zeros(x_BTD.shape[:2], dtype=torch.long, device=x_BTD.device),
            start=(0, x_BTD),
            sites=("pattern", "resid_post"),  # patterns avoid the fused kernel, which has no forward derivative
            logits=None,
            documents_BT=documents_BT,
        )
        return trace["resid_post", last]

    x_BTD, y_BTD = frozen.residual[0], frozen.residual[-1]
    with torch.no_grad(), forward_ad.dual_level():
        moved_BTD = forward_ad.unpack_dual(model(forward_ad.make_dual(x_BTD, x_BTD))).tangent
    return (moved_BTD - y_BTD).abs().max() / y_BTD.abs().max()
