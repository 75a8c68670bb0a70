"""The study's "virtual permutation", for comparison (science.md §14); its outcomes say nothing about indices.

The study patched the heads that would sit at even indices if the heads were reordered. That tests another group of
heads, not the effect of an index.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from headdyn.analysis.interventions.patch import Layer, chosen_layer
from headdyn.analysis.interventions.permutation import ORDERS
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.settings import Count, settings
from headdyn.studies.even_odd_emergence.patching import responses_to_patches, verdict, verdict_rows

if TYPE_CHECKING:
    import numpy as np

    from headdyn.data.prompts import Prompts
    from headdyn.models.decoder import Decoder

NOTE = (
    "Reordering heads with their rows of q, k, v and their columns of W_O leaves the model the same function, so an "
    "index carries no meaning of its own. The study's virtual permutation patched the heads that would stand at even "
    "indices: another group of heads, judged by the same rule. Where its answer changes, the group changed."
)


@settings
class VirtualPermutation:
    """The study's verdict on its prompt under each order of heads: the heads that it puts at even places are patched.

    Table: `virtual_permutation`, whose metadata say why it tells nothing about indices.
    """

    layer: Layer = None
    trials: Count = 2
    tokens: Count = 20

    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        f"original_{order}_success": verdict(f"heads at even places patched, {order.replace('_', ' ')} order")
        for order in ORDERS
    }

    def __call__(self, decoder: Decoder, corpus: Prompts, generator: np.random.Generator) -> Findings:
        from headdyn.analysis.interventions.permutation_measure import head_orders

        c = decoder.config
        orders = head_orders(c.num_heads, c.num_kv_heads, generator)
        groups = {name: order[::2] for name, order in orders.items()}
        layer = chosen_layer(self.layer, c.num_layers)
        responses = responses_to_patches(decoder, corpus, layer, groups, trials=self.trials, tokens=self.tokens)
        table = responses.replace_schema_metadata({"note": NOTE})
        return Findings(table=HeadTable.from_rows(verdict_rows(responses)), tables={"virtual_permutation": table})
