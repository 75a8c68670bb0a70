"""Prefix matching and attention to the previous token of every head. Letters as in models/decoder.py."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from headdyn.analysis.estimates import means
from headdyn.core.figures import HeadMap, head_map
from headdyn.core.records import Findings, HeadTable
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder
from headdyn.studies.landmarks.induction_scores import InductionScores


def measure(settings: InductionScores, decoder: Decoder, corpus: Corpus, generator: np.random.Generator) -> Findings:
    """Head rows of prefix matching and attention to the previous token, and a model row of the best head."""
    block_NB = generator.random((settings.sequences, corpus.vocab_size)).argsort(1)[:, : settings.block]
    tokens_NT = torch.from_numpy(np.tile(block_NB, settings.repeats)).to(decoder.embed.weight.device)
    layers = range(decoder.config.num_layers)
    with torch.no_grad():
        trace = decoder.trace(tokens_NT, sites=("pattern",), logits=None)
    by_head = [head_scores(trace["pattern", layer].double(), settings.block) for layer in layers]
    prefix_NLH, previous_NLH = (np.stack(part, axis=1) for part in zip(*by_head, strict=True))
    query_Q = np.arange(settings.block, tokens_NT.shape[1])
    uniform = {
        "prefix_matching": float((query_Q // settings.block / (query_Q + 1)).mean()),
        "previous_token": float((1 / np.arange(2, tokens_NT.shape[1] + 1)).mean()),
    }
    draws, tables, maps = settings.bootstrap_draws, [], []
    for name, score_NLH in (("prefix_matching", prefix_NLH), ("previous_token", previous_NLH)):
        estimate = means(score_NLH, generator, draws=draws)
        tables.append(estimate.rows(name, null=np.full(estimate.value.shape, uniform[name])))
        title = name.replace("_", " ")
        maps.append(HeadMap(title=title, value_LH=100 * estimate.value, unit="%", limits=(0, 100)))
    best = np.unravel_index(prefix_NLH.mean(0).argmax(), prefix_NLH.shape[1:])
    best_N = prefix_NLH[:, best[0], best[1]]
    best_rows = means(best_N, generator, draws=draws).rows("best_prefix_matching", null=uniform["prefix_matching"])
    caption = (
        "Left: attention from a token to those that followed the same token before, on repeated random tokens; an "
        f"induction head is near 100 %, uniform attention gives {100 * uniform['prefix_matching']:.0f} %. Right: "
        "attention to the token before, which an induction head of a later layer builds on."
    )
    return Findings(table=HeadTable.concat([*tables, best_rows]), figures={"heads": head_map(maps, caption=caption)})


def head_scores(pattern_BHQK: Float[Tensor, "B H Q K"], block: int) -> tuple[np.ndarray, np.ndarray]:
    """Prefix matching and attention to the previous token of sequences that repeat a block, each [B, H].

    Prefix matching is averaged over the queries behind the first block: the sum over keys q + 1 − m·block > 0.
    """
    length = pattern_BHQK.shape[-1]
    position_T = torch.arange(length, device=pattern_BHQK.device)
    behind_QK = (position_T[:, None] + 1 - position_T) % block == 0
    behind_QK &= (position_T <= position_T[:, None]) & (position_T > 0)  # key 0 follows nothing
    prefix_BH = (pattern_BHQK * behind_QK).sum(-1)[..., block:].mean(-1)
    previous_BH = pattern_BHQK.diagonal(offset=-1, dim1=-2, dim2=-1).mean(-1)
    return prefix_BH.cpu().numpy(), previous_BH.cpu().numpy()
