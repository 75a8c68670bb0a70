"""The seed study's patching as it was run, for comparison (science.md §10 and §11, protocol=seed).

What it did, and why none of it is evidence about heads:
- It sliced the attention output behind W_O into H pieces of D/H numbers. W_O mixes all heads into every number, so a
  piece is no head. (`Patch.site = "attn_out_slice"`)
- It aligned prompts from the left, so that "Which" of one stood for "Q" of the other, and each number for a word.
- Its hook went on firing while the model decoded with a cache: each new token's activation was overwritten with that of
  the clean prompt's first token, in the patched pieces. Answers are in part what that does to decoding.
- It judged one prompt in float16 by whether 20 greedy tokens contain "9.8" and lack "9.11", 15 times. Greedy decoding
  repeats itself, so 15 trials are one unit, and the success rate of a group can only be 0 or 1. Here two show that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from headdyn.analysis.interventions.patching import SEED_PATCH, GroupPatching, heads_as_weights, in_dtype
from headdyn.core.statistics import binomial_interval
from headdyn.data.comparisons import Prompts, judged_right
from headdyn.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Response:
    """What the model wrote in the first trial with one group of pieces patched, and the seed's verdict on it.

    `agreeing` is the share of trials that wrote the same.
    """

    name: str
    heads: tuple[int, ...]
    text: str
    success: bool
    agreeing: float


def seed_responses(
    decoder: Decoder,
    prompts: Prompts,
    layer: int,
    groups: Mapping[str, Sequence[int]],
    *,
    trials: int = 2,
    tokens: int = 20,
) -> list[Response]:
    """The seed's answers to its own prompt in float16, for each named group of "heads"; an empty group is unpatched."""
    model = in_dtype(decoder, torch.float16)
    patching = GroupPatching(model, prompts.seed_prompt, SEED_PATCH, [layer])
    weight_CH = heads_as_weights(list(groups.values()), decoder.config.num_heads)
    written = patching.generate(layer, np.repeat(weight_CH, trials, axis=0), tokens)[:, 0]
    responses = []
    for (name, heads), trial_tokens in zip(groups.items(), written.reshape(len(groups), trials, tokens), strict=True):
        texts = [prompts.decode(row.tolist()) for row in trial_tokens]
        responses.append(
            Response(
                name=name,
                heads=tuple(heads),
                text=texts[0],
                success=judged_right(texts[0]),
                agreeing=float(np.mean([text == texts[0] for text in texts])),
            )
        )
    return responses


def verdict_rows(responses: Sequence[Response]) -> list[dict[str, Any]]:
    """HeadTable rows `seed_NAME_success`, 0 or 1, with the interval that one prompt allows (Clopper–Pearson)."""
    rows = []
    for response in responses:
        low, high = binomial_interval(int(response.success), 1)
        row = {"metric": f"seed_{response.name}_success", "value": float(response.success), "n": 1, "unit": "prompt"}
        rows.append(row | {"ci_low": low.item(), "ci_high": high.item()})
    return rows


def response_table(responses: Sequence[Response]) -> pa.Table:
    """One row per group: name, heads, text, success, agreeing."""
    columns = {name: [getattr(r, name) for r in responses] for name in ("name", "text", "success", "agreeing")}
    return pa.table({**columns, "heads": pa.array([list(r.heads) for r in responses], type=pa.list_(pa.int32()))})
