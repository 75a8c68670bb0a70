"""Training with a head's attention pattern held at an ideal: what follows once that part of a circuit is given.

Letters as in models/decoder.py.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headdyn.models.decoder import Decoder, Edit
from headdyn.training.settings import Clamp


def clamped_loss(clamp: Clamp) -> Callable[[Decoder, Tensor, Tensor | None], Tensor]:
    """Mean next-token loss in nats with the clamp's head held.

    It raises ValueError for sequences of several documents, which a held head would not keep apart.
    """
    ideal = {"previous_token": previous_token, "match": match}[clamp.pattern]

    def loss(decoder: Decoder, tokens_BT: Int[Tensor, "B T"], documents_BT: Tensor | None) -> Float[Tensor, ""]:
        if documents_BT is not None:
            raise ValueError("train.clamp holds a head across documents; set data.mask_documents=false")
        heads = torch.arange(decoder.config.num_heads, device=tokens_BT.device)
        held = Edit(
            site="pattern",
            layer=clamp.layer_of(decoder.config.num_layers),
            value=ideal(tokens_BT)[:, None],
            where=(heads == clamp.head)[:, None, None],
        )
        logits_BTV = decoder.trace(tokens_BT, edits=[held]).logits
        assert logits_BTV is not None
        return F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), tokens_BT[:, 1:].flatten())

    return loss


def previous_token(tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B Q K"]:
    """Every query attends to the token before it, the first one to itself."""
    place_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
    pattern_QK = F.one_hot((place_T - 1).clamp(min=0), len(place_T)).float()
    return pattern_QK.expand(len(tokens_BT), -1, -1)


def match(tokens_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B Q K"]:
    """Every query attends evenly to the tokens that followed its own token before, to token 0 where there is none."""
    length = tokens_BT.shape[1]
    same_BQK = tokens_BT[:, :, None] == F.pad(tokens_BT[:, :-1], (1, 0), value=-1)[:, None]
    follows_BQK: Bool[Tensor, "B Q K"] = (
        same_BQK & torch.ones(length, length, dtype=torch.bool, device=tokens_BT.device).tril()
    )
    follows_BQK[..., 0] = ~follows_BQK.any(-1)
    return follows_BQK / follows_BQK.sum(-1, keepdim=True)
