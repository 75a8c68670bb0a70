"""The study's patching as it was run, for comparison (science.md §10 and §11).

study.json says what the study did, and why none of it is evidence about heads: it patched slices of the attention
output behind W_O (`attn_out_slice`), aligned prompts from the left, and its hook went on firing at `every_step` of
decoding. It judged one prompt in float16 15 times; since greedy decoding repeats itself, two trials show as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from headdyn.analysis.interventions.patch import Layer, Patch, chosen_layer
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.settings import Count, settings
from headdyn.data.comparisons import ORIGINAL_PAIR

if TYPE_CHECKING:
    from headdyn.data.prompts import Prompts
    from headdyn.models.decoder import Decoder

ORIGINAL_PATCH = Patch(site="attn_out_slice", alignment="left", steps="every_step")
RESPONSES = pa.schema(
    {
        "name": pa.string(),
        "text": pa.string(),
        "success": pa.bool_(),
        "agreeing": pa.float64(),
        "heads": pa.list_(pa.int32()),
    }
)


def verdict(how: str) -> Metric:
    """The metric of success on the study's one prompt, by the study's own rule; `how` names the patch."""
    words = f"the study's verdict on its prompt, {how}"
    return Metric(label=words, meaning=words, low=0, high=1, unit="one prompt, 0 or 1", digits=0)


@settings
class OriginalPatching:
    """The study's test on its one prompt: is it answered rightly with the even pieces patched, and not with the odd?

    Each patch gets `trials` greedy runs of `tokens` tokens; the study made 15 runs, all alike. Table:
    `original_responses`.
    """

    layer: Layer = None
    trials: Count = 2
    tokens: Count = 20

    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "original_strength": Metric(
            label="strength as the study judged it",
            meaning="original_even_success − original_odd_success, on one prompt",
            low=-1,
            high=1,
            unit="one prompt, −1, 0 or 1",
            digits=0,
        ),
        **{
            f"original_{name}_success": verdict(how)
            for name, how in (
                ("plain", "nothing patched"),
                ("even", "even pieces patched its way"),
                ("odd", "odd pieces patched its way"),
            )
        },
    }

    def __call__(self, decoder: Decoder, corpus: Prompts, generator: np.random.Generator) -> Findings:
        """The study's rates and their difference; n is 1 whatever the number of trials, since all are one prompt."""
        layer, heads = chosen_layer(self.layer, decoder.config.num_layers), range(decoder.config.num_heads)
        groups = {"plain": (), "even": heads[::2], "odd": heads[1::2]}
        responses = responses_to_patches(decoder, corpus, layer, groups, trials=self.trials, tokens=self.tokens)
        success = {row["name"]: row["success"] for row in responses.to_pylist()}
        strength = {"metric": "original_strength", "value": float(success["even"]) - success["odd"], "null": 0.0}
        rows = [*verdict_rows(responses), strength | {"n": 1, "unit": "prompt"}]
        return Findings(table=HeadTable.from_rows(rows), tables={"original_responses": responses})


def responses_to_patches(
    decoder: Decoder,
    prompts: Prompts,
    layer: int,
    groups: Mapping[str, Sequence[int]],
    *,
    trials: int,
    tokens: int,
) -> pa.Table:
    """The model's answers to the study's prompt in float16, with each named group of "heads" patched.


    For an empty group nothing is patched. One row (RESPONSES) for each group: `text` is that of the first trial,
    `success` the study's verdict on it, `agreeing` the share of trials that wrote the same text.
    """
    from headdyn.analysis.interventions.patching import GroupPatching, heads_as_weights, in_dtype

    model = in_dtype(decoder, "float16")
    patching = GroupPatching(model, prompts.original_prompt, ORIGINAL_PATCH, [layer])
    weight_CH = heads_as_weights(list(groups.values()), decoder.config.num_heads)
    written = patching.generate(layer, np.repeat(weight_CH, trials, axis=0), tokens)[:, 0]
    rows = []
    for (name, heads), trial_tokens in zip(groups.items(), written.reshape(len(groups), trials, tokens), strict=True):
        texts = [prompts.decode(row.tolist()) for row in trial_tokens]
        row = {"name": name, "text": texts[0], "success": judged_right(texts[0]), "heads": list(heads)}
        rows.append(row | {"agreeing": float(np.mean([text == texts[0] for text in texts]))})
    return pa.Table.from_pylist(rows, schema=RESPONSES)


def judged_right(text: str) -> bool:
    """The study's verdict on a continuation: right if it names the right number and not the wrong one."""
    return ORIGINAL_PAIR.right in text.lower() and ORIGINAL_PAIR.wrong not in text.lower()


def verdict_rows(responses: pa.Table) -> list[dict[str, Any]]:
    """HeadTable rows `original_NAME_success`, 0 or 1, with the interval that one prompt allows (Clopper–Pearson)."""
    from headdyn.core.statistics import binomial_interval

    rows = []
    for response in responses.to_pylist():
        low, high = binomial_interval(int(response["success"]), 1)
        row = {"metric": f"original_{response['name']}_success", "value": float(response["success"]), "n": 1}
        rows.append(row | {"unit": "prompt", "ci_low": low.item(), "ci_high": high.item()})
    return rows
