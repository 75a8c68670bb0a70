"""Training with heads' attention patterns, or a head's output, held at an ideal. Letters as in models/decoder.py."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headdyn.models.decoder import Decoder, Edit
from headdyn.training.settings import Clamp


def clamped_loss(clamp: Clamp) -> Callable[[Decoder, Tensor, Tensor | None], Tensor]:
    """The loss function of a training with the clamp: mean next-token loss in nats, with the heads held.

    That function raises ValueError if it is given documents, because a held head would attend across them.
    """

    def loss(decoder: Decoder, tokens_BT: Int[Tensor, "B T"], documents_BT: Tensor | None) -> Float[Tensor, ""]:
        if documents_BT is not None:
            raise ValueError("train.clamp holds a head across documents; set data.mask_documents=false")
        heads, layers = torch.arange(decoder.config.num_heads), clamp.layers_of(decoder.config.num_layers)
        is_held_H = torch.ones_like(heads, dtype=torch.bool) if clamp.head == "all" else heads == clamp.head
        is_held_H = is_held_H.to(tokens_BT.device)
        if clamp.pattern == "copy":
            logits_BTV = _logits_with_copies(decoder, tokens_BT, layers[0], is_held_H)
        else:
            value = IDEALS[clamp.pattern](tokens_BT)[:, None]
            edits = [Edit(site="pattern", layer=layer, value=value, where=is_held_H[:, None, None]) for layer in layers]
            logits_BTV = decoder.trace(tokens_BT, edits=edits).logits
        assert logits_BTV is not None
        return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())

    return loss


def _logits_with_copies(
    decoder: Decoder, tokens_BT: Int[Tensor, "B T"], layer: int, is_held_H: Bool[Tensor, " H"]
) -> Tensor | None:
    """Logits of a model whose held head writes only copies of the tokens to which its own pattern attends."""
    silent = Edit(site="z", layer=layer, value=torch.zeros((), device=tokens_BT.device), where=is_held_H[:, None])
    sites = ("resid_pre", "pattern", "attn_out")
    traced = decoder.trace(tokens_BT, sites=sites, layers=(layer,), edits=[silent], logits=None)
    pattern_BQK = traced["pattern", layer][:, is_held_H.nonzero()[0, 0]]
    written_BTD = traced["attn_out", layer] + pattern_BQK @ copies(decoder, tokens_BT).to(pattern_BQK.dtype)
    edit = Edit(site="attn_out", layer=layer, value=written_BTD)
    return decoder.trace(tokens_BT, start=(layer, traced["resid_pre", layer]), edits=[edit]).logits


def copies(decoder: Decoder, tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
    """Every token's current direction in the unembedding, of root mean square 1, without a gradient."""
    rows_BTD = decoder.unembed.weight.detach()[tokens_BT]
    return rows_BTD / rows_BTD.square().mean(-1, keepdim=True).sqrt()


def previous_token(tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B Q K"]:
    """Every query attends to the token before it, the first one to itself."""
    position_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    pattern_QK = F.one_hot((position_T - 1).clamp(min=0), len(position_T)).float()
    return pattern_QK.expand(len(tokens_BT), -1, -1)


def match(tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B Q K"]:
    """Every query attends evenly to the tokens that followed its own token earlier, or to token 0 if there is none."""
    length = tokens_BT.shape[1]
    same_BQK = tokens_BT[:, :, None] == F.pad(tokens_BT[:, :-1], (1, 0), value=-1)[:, None]
    follows_BQK: Bool[Tensor, "B Q K"] = (
        same_BQK & torch.ones(length, length, dtype=torch.bool, device=tokens_BT.device).tril()
    )
    follows_BQK[..., 0] = ~follows_BQK.any(-1)
    return follows_BQK / follows_BQK.sum(-1, keepdim=True)


def uniform(tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B Q K"]:
    """Every query attends evenly to the tokens up to itself."""
    length = tokens_BT.shape[1]
    allowed_QK = torch.ones(length, length, device=tokens_BT.device).tril()
    return (allowed_QK / allowed_QK.sum(-1, keepdim=True)).expand(len(tokens_BT), -1, -1)


IDEALS = {"previous_token": previous_token, "match": match, "uniform": uniform}
