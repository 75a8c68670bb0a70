"""Models with reordered heads against the model itself. Letters as in models/decoder.py; N prompts."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from headdyn.analysis.interventions.pair_rows import PairRows, succeeds
from headdyn.analysis.interventions.patch import Dtype, Patch, chosen_layer
from headdyn.analysis.interventions.patching import PromptPatching, bug_pairs, heads_as_weights, in_dtype
from headdyn.analysis.interventions.permutation import CONTROL, ORDERS, HeadPermutation
from headdyn.core.figures import Figure, Interval, interval_plot
from headdyn.core.kept_parts import Part, parts
from headdyn.core.records import Findings, HeadTable
from headdyn.data.prompts import Prompts
from headdyn.models.decoder import Decoder

_PLAIN, _FROM_FIRST = "plain", "_from_first_dtype"


def measure(settings: HeadPermutation, decoder: Decoder, prompts: Prompts, generator: np.random.Generator) -> Findings:
    """Everything that `HeadPermutation` reports under these settings."""
    c, bugs = decoder.config, bug_pairs(prompts)
    layer = chosen_layer(settings.layer, c.num_layers)
    orders = head_orders(c.num_heads, c.num_kv_heads, generator)
    pair_rows = PairRows(generator=generator, bootstrap_draws=settings.bootstrap_draws)
    rows, records = _compare(settings, pair_rows, decoder, prompts, layer, orders)
    patching = PromptPatching(in_dtype(decoder, "float32"), bugs, Patch(), [layer])
    cells = heads_as_weights([order[parity::2] for order in orders.values() for parity in (0, 1)], c.num_heads)
    delta_O2P = patching.deltas({layer: cells})[layer].reshape(len(orders), 2, -1)
    for name, (even_P, odd_P) in zip(orders, delta_O2P, strict=True):
        rows.append(pair_rows.mean(f"{name}_strength_nats", even_P - odd_P))
    return Findings(
        table=HeadTable.concat(rows),
        figures={"orders": _figure(records)},
        tables={"orders": pa.Table.from_pylist(records)},
    )


def head_orders(num_heads: int, num_kv_heads: int, generator: np.random.Generator) -> dict[str, tuple[int, ...]]:
    """The orders by name; place i holds head order[i].

    With grouped queries every order keeps each key/value group together: places are exchanged within groups, groups as
    wholes. `swap` exchanges even with odd places, `within_parity` shuffles each kind among itself.
    """
    size = num_heads // num_kv_heads
    # Where every key/value group has one head, whole groups are exchanged, which leaves all heads free.
    blocks = np.arange(num_heads).reshape((1, num_heads) if size == 1 else (num_kv_heads, size))
    swap, within, shuffled = blocks.copy(), blocks.copy(), blocks.copy()
    even = blocks.shape[1] // 2 * 2
    swap[:, :even] = blocks[:, :even].reshape(len(blocks), -1, 2)[:, :, ::-1].reshape(len(blocks), even)
    for row in range(len(blocks)):
        for parity in (0, 1):
            places = np.flatnonzero(blocks[row] % 2 == parity)
            within[row, places] = generator.permutation(blocks[row, places])
        shuffled[row] = generator.permutation(blocks[row])
    shuffled = shuffled[generator.permutation(len(shuffled))]
    orders = (blocks, swap, within, shuffled, blocks[::-1, ::-1])
    return {name: tuple(order.ravel().tolist()) for name, order in zip(ORDERS, orders, strict=True)}


def mismatched(decoder: Decoder, layer: int, order: Sequence[int]) -> Decoder:
    """The control, a different function: q, k and v reordered, W_O not, so heads write through others' columns."""
    other = decoder.permuted(layer, order)
    with torch.no_grad():
        other.head_weights(layer).o_HdD.copy_(decoder.head_weights(layer).o_HdD)
    return other


def repetition(tokens_NT: np.ndarray) -> np.ndarray:
    """Share of a text's runs of three tokens that occurred in it before, [N]; 0 is none, near 1 a loop."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens_NT, 3, axis=1)
    return np.array([1 - len({tuple(run) for run in text.tolist()}) / len(text) for text in windows])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One model's outputs: logits of the corrupted prompts, Δ of the answers by pair, greedy texts."""

    logits_NV: torch.Tensor  # at the prompts' last positions
    delta_P: np.ndarray
    texts_NT: np.ndarray  # without the prompts


@torch.no_grad()
def outcome(decoder: Decoder, prompts: Prompts, texts: int, tokens: int) -> Outcome:
    """Run a model on the corrupted prompts, unpatched, and let it write `tokens` tokens behind the first `texts`."""
    device, last = decoder.embed.weight.device, decoder.config.num_layers - 1
    ids = [torch.from_numpy(group.corrupted_NT).to(device) for group in prompts.groups]
    logits = [decoder.trace(ids_NT, logits="last").logits for ids_NT in ids]
    return Outcome(
        logits_NV=torch.cat([part[:, -1] for part in logits if part is not None]),
        delta_P=PromptPatching(decoder, prompts, Patch(), [last]).target_P,
        texts_NT=decoder.generate(ids[0][:texts], tokens)[:, ids[0].shape[1] :].cpu().numpy(),
    )


def compared(result: Outcome, reference: Outcome) -> dict[str, np.ndarray]:
    """max |Δlogit| over all prompts and the vocabulary; which pairs' answers flip, [P]; which texts differ, [N]."""
    return {
        "logit_change": (result.logits_NV.double() - reference.logits_NV.double()).abs().max().cpu().numpy(),
        "answers_changed": succeeds(result.delta_P) != succeeds(reference.delta_P),
        "texts_changed": (result.texts_NT != reference.texts_NT).any(1),
    }


def _compare(
    settings: HeadPermutation,
    pair_rows: PairRows,
    decoder: Decoder,
    prompts: Prompts,
    layer: int,
    orders: Mapping[str, tuple[int, ...]],
) -> tuple[list[HeadTable], list[dict[str, Any]]]:
    """Rows for the table of findings, and one record per dtype and order for the table `orders`."""
    cells = [(dtype, name) for dtype in settings.dtypes for name in (_PLAIN, *orders, CONTROL)]
    orders = {**orders, CONTROL: orders["reverse"]}

    @functools.lru_cache(maxsize=2)  # one for the first dtype, one for the present dtype
    def plain(dtype: Dtype) -> tuple[Decoder, Outcome]:
        model = in_dtype(decoder, dtype)
        return model, outcome(model, prompts, settings.texts, settings.tokens)

    def cell(at: slice) -> Part:
        dtype, name = cells[at.start]
        (_, first), (model, result) = plain(settings.dtypes[0]), plain(dtype)
        reference = result
        if name != _PLAIN:
            other = mismatched(model, layer, orders[name]) if name == CONTROL else model.permuted(layer, orders[name])
            result = outcome(other, prompts, settings.texts, settings.tokens)
        from_first = {f"{key}{_FROM_FIRST}": value for key, value in compared(result, first).items()}
        return {**compared(result, reference), **from_first, "repetition": repetition(result.texts_NT)}

    rows: list[HeadTable] = []
    records: list[dict[str, Any]] = []
    count = sum(len(group.corrupted_NT) for group in prompts.groups)
    done = [part for _, part in parts("reordering heads", "models", len(cells), 1, cell)]
    for (dtype, name), part in zip(cells, done, strict=True):
        metric, against = (dtype, _FROM_FIRST) if name == _PLAIN else (f"{name}_{dtype}", "")
        change = float(part[f"logit_change{against}"])
        rows.append(HeadTable.whole(f"{metric}_logit_change", change, null=0.0, n=count, unit="prompt"))
        rows.append(pair_rows.success(f"{metric}_answers_changed", part[f"answers_changed{against}"], null=0.0))
        if name == _PLAIN:
            rows.append(pair_rows.mean(f"{dtype}_repetition", part["repetition"], unit="text"))
        else:
            means = {key: float(value.mean()) for key, value in part.items()}
            records.append({"dtype": dtype, "order": name, "heads": list(orders[name]), **means})
    return rows, records


def _figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    rows = [
        Interval(
            label=f"{record['order']}, {record['dtype']}",
            value=math.log10(max(record["logit_change"], 1e-18)),
            group=record["dtype"],
        )
        for record in records
        if record["order"] != "identity"
    ]
    return interval_plot(
        rows,
        xlabel="log10 of the largest |Δlogit| (−18: none)",
        title="Heads reordered against heads in place",
        caption="Reordered heads are the same function, so only rounding may change a logit. “mismatched” is the "
        "control: W_O is left in place, and the function must change.",
    )
