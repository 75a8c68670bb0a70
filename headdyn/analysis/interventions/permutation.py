"""Reordering a layer's heads is an identity of the function; what moves is only which indices a label covers.

Weight permutation, science.md §14. Heads are reordered in q, k and v (weights and biases) and in the columns of W_O.
Letters as in models/decoder.py; N prompts.

The seed study "virtually permuted" heads: it patched those that would sit at even indices. That asks what another group
of heads does, not what an index does, so no outcome of it can show that a function depends on indices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from headdyn.analysis.contract import chosen_layer
from headdyn.analysis.interventions.pair_rows import PairRows, Row
from headdyn.analysis.interventions.patching import Patch, PromptPatching, heads_as_weights, in_dtype
from headdyn.analysis.interventions.seed_patching import response_table, seed_responses, verdict_rows
from headdyn.core.figures import Figure, Interval, interval_plot
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.data.comparisons import Prompts
from headdyn.models.decoder import Decoder
from headdyn.models.layers import Block

ORDERS = ("identity", "swap", "within_parity", "random", "reverse")
CONTROL = "mismatched"  # q, k and v reversed, W_O left as it is: must change the function
DTYPES = ("float64", "float32", "bfloat16", "float16")

NOTE = (
    "Reordering heads with their rows of q, k, v and their columns of W_O leaves the model the same function, so an "
    "index carries no meaning of its own. The seed's virtual permutation patched the heads that would stand at even "
    "indices: another group of heads, judged by the same rule. Where its answer changes, the group changed."
)


def head_orders(num_heads: int, num_kv_heads: int, generator: np.random.Generator) -> dict[str, tuple[int, ...]]:
    """The seed's orders by name; place i holds head order[i].

    With grouped queries every order keeps each key/value group together: places are exchanged within groups, groups as
    wholes. `swap` exchanges even with odd places, `within_parity` shuffles each kind among itself.
    """
    size = num_heads // num_kv_heads
    # With one head a group, the groups themselves are what can be exchanged.
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
    """The control that must fail: q, k and v reordered, W_O not, so that heads write through each other's columns."""
    other = decoder.permuted(layer, order)
    theirs: Block = other.blocks[layer]  # type: ignore[assignment]
    ours: Block = decoder.blocks[layer]  # type: ignore[assignment]
    with torch.no_grad():
        theirs.attention.o.weight.copy_(ours.attention.o.weight)
    return other


def repetition(tokens_NT: np.ndarray, width: int = 3) -> np.ndarray:
    """Share of a text's runs of `width` tokens that occurred in it before, [N]; 0 is none, near 1 a loop."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens_NT, width, axis=1)
    return np.array([1 - len({tuple(run) for run in text.tolist()}) / len(text) for text in windows])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one model does with the prompts: logits of the corrupted ones, answers' Δ per pair, greedy texts."""

    logits: tuple[torch.Tensor, ...]  # at the prompts' last positions
    delta_P: np.ndarray
    texts_NT: np.ndarray  # without the prompts

    def largest_change(self, other: Outcome) -> float:
        """max |Δlogit| over all prompts and the vocabulary."""
        pairs = zip(self.logits, other.logits, strict=True)
        return max((mine.double() - its.double()).abs().max().item() for mine, its in pairs)

    def answers_changed(self, other: Outcome) -> np.ndarray:
        """Which pairs' answers flip, [P]."""
        return (self.delta_P > 0) != (other.delta_P > 0)

    def texts_changed(self, other: Outcome) -> float:
        """Share of greedy texts with a differing token."""
        return float((self.texts_NT != other.texts_NT).any(1).mean())


@torch.no_grad()
def outcome(decoder: Decoder, prompts: Prompts, texts: int, tokens: int) -> Outcome:
    """Run a model on the corrupted prompts, unpatched, and let it write `tokens` tokens behind the first `texts`."""
    device, last = decoder.embed.weight.device, decoder.config.num_layers - 1
    ids = [torch.from_numpy(group.corrupted_NT).to(device) for group in prompts.groups]
    logits = [decoder.trace(ids_NT, logits="last").logits for ids_NT in ids]
    return Outcome(
        logits=tuple(part for part in logits if part is not None),
        delta_P=PromptPatching(decoder, prompts, Patch(), [last]).target_P,
        texts_NT=decoder.generate(ids[0][:texts], tokens)[:, ids[0].shape[1] :].cpu().numpy(),
    )


def _metrics() -> dict[str, Metric]:
    metrics = {}
    for dtype in DTYPES:
        for order in (*ORDERS, CONTROL):
            against = f"{order} order against none, both {dtype}"
            metrics[f"{order}_{dtype}_logit_change"] = Metric(meaning=f"max |Δlogit|, {against}", low=0, unit="logits")
            metrics[f"{order}_{dtype}_answers_changed"] = Metric(meaning=f"share of pairs, {against}", low=0, high=1)
        against = f"{dtype} against the first dtype, heads in place"
        metrics[f"{dtype}_logit_change"] = Metric(meaning=f"max |Δlogit|, {against}", low=0, unit="logits")
        metrics[f"{dtype}_answers_changed"] = Metric(meaning=f"share of pairs, {against}", low=0, high=1)
        metrics[f"{dtype}_repetition"] = Metric(meaning=f"repeated trigrams in greedy texts, {dtype}", low=0, high=1)
    for order in ORDERS:
        metrics[f"{order}_strength_nats"] = Metric(
            meaning=f"Δ patching heads at even places − at odd places, {order} order", unit="nats"
        )
        metrics[f"seed_{order}_success"] = Metric(
            meaning=f"the seed's virtual permutation: its verdict with the heads at even places, {order} order",
            low=0,
            high=1,
        )
    return metrics


@dataclass(frozen=True, kw_only=True)
class HeadPermutation:
    """Permutes the weights of one layer's heads and compares logits, answers and greedy texts, in every dtype.

    An order is compared with heads in place in the same dtype, and each dtype, heads in place, with the first: logits
    where the answer begins, answers of all pairs, and `tokens` greedy tokens behind `texts` of the corrupted prompts.
    The `mismatched` control leaves W_O as it is and must change the function. `strength_nats` is the even/odd contrast
    on bug pairs (`Patch()`, in float32) under each order's labels: the only thing that an order can change.

    Table `orders`: one row per dtype and order. `protocol="seed"` adds the seed's virtual permutation as
    `virtual_permutation`, with the reason why it says nothing about indices in the table's metadata.
    Raises ValueError for a layer out of range, or prompts without bug pairs.
    """

    layer: int | None = None
    dtypes: tuple[str, ...] = ("float64", "float32", "bfloat16", "float16")
    texts: int = 8
    tokens: int = 20
    protocol: str = "corrected"
    seed_trials: int = 2
    bootstrap_draws: int = 2_000

    rows: ClassVar[Literal["order"]] = "order"
    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = _metrics()

    def __post_init__(self) -> None:
        known = ("float64", "float32", "bfloat16", "float16")
        if not self.dtypes or len(set(self.dtypes)) < len(self.dtypes) or any(d not in known for d in self.dtypes):
            raise ValueError(f"analysis.permutation.dtypes={self.dtypes} must be distinct names of {', '.join(known)}")
        if self.tokens < 3:
            raise ValueError(
                f"analysis.permutation.tokens={self.tokens} must be at least 3: repetition counts trigrams"
            )
        for name in ("texts", "seed_trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"analysis.permutation.{name}={getattr(self, name)} must be at least 1")
        if self.bootstrap_draws < 100:
            raise ValueError(f"analysis.permutation.bootstrap_draws={self.bootstrap_draws} must be at least 100")
        if self.protocol not in ("corrected", "seed"):
            raise ValueError(f"analysis.permutation.protocol={self.protocol!r} is unknown; choose corrected or seed")

    def __call__(self, decoder: Decoder, corpus: Prompts, generator: np.random.Generator) -> Findings:
        """Model rows by dtype and order, with the tables described above."""
        c = decoder.config
        layer = chosen_layer(self.layer, c.num_layers)
        bugs = corpus.where(corpus.is_bug_P)
        if not bugs.pairs:
            raise ValueError("the prompts hold no bug pairs, on which repair is measured; set data.bug_pairs")
        orders = head_orders(c.num_heads, c.num_kv_heads, generator)
        make = PairRows(generator=generator, bootstrap_draws=self.bootstrap_draws)
        rows, records = self._sweep(make, decoder, corpus, layer, orders)
        places = {name: (order[::2], order[1::2]) for name, order in orders.items()}
        patching = PromptPatching(in_dtype(decoder, torch.float32), bugs, Patch(), [layer])
        cells = heads_as_weights([heads for halves in places.values() for heads in halves], c.num_heads)
        delta_O2P = patching.deltas({layer: cells})[layer].reshape(len(orders), 2, -1)
        for name, (even_P, odd_P) in zip(orders, delta_O2P, strict=True):
            rows.append(make.mean(f"{name}_strength_nats", even_P - odd_P))
        tables = {"orders": pa.Table.from_pylist(records)}
        if self.protocol == "seed":
            groups = {name: even for name, (even, _) in places.items()}
            said = seed_responses(decoder, corpus, layer, groups, trials=self.seed_trials, tokens=self.tokens)
            rows += verdict_rows(said)
            tables["virtual_permutation"] = response_table(said).replace_schema_metadata({"note": NOTE})
        return Findings(table=HeadTable.from_rows(rows), figures={"orders": _figure(records)}, tables=tables)

    def _sweep(
        self,
        make: PairRows,
        decoder: Decoder,
        prompts: Prompts,
        layer: int,
        orders: Mapping[str, tuple[int, ...]],
    ) -> tuple[list[Row], list[Row]]:
        """Rows for the table of heads, and one record per dtype and order."""
        rows: list[Row] = []
        records: list[Row] = []
        first: Outcome | None = None
        for dtype in self.dtypes:
            model = in_dtype(decoder, getattr(torch, dtype))
            plain = outcome(model, prompts, self.texts, self.tokens)
            first = first or plain
            rows += _changes(make, dtype, plain, first)
            rows.append(make.mean(f"{dtype}_repetition", repetition(plain.texts_NT)) | {"unit": "text"})
            for name, order in {**orders, CONTROL: orders["reverse"]}.items():
                other = mismatched(model, layer, order) if name == CONTROL else model.permuted(layer, order)
                mine = outcome(other, prompts, self.texts, self.tokens)
                rows += _changes(make, f"{name}_{dtype}", mine, plain)
                record: Row = {"dtype": dtype, "order": name, "heads": list(order)}
                for against, theirs in (("", plain), ("_from_first_dtype", first)):
                    record |= {
                        f"logit_change{against}": mine.largest_change(theirs),
                        f"answers_changed{against}": float(mine.answers_changed(theirs).mean()),
                        f"texts_changed{against}": mine.texts_changed(theirs),
                    }
                records.append(record | {"repetition": float(repetition(mine.texts_NT).mean())})
        return rows, records


def _changes(make: PairRows, name: str, mine: Outcome, theirs: Outcome) -> list[Row]:
    prompts = sum(map(len, mine.logits))
    change = {"value": mine.largest_change(theirs), "null": 0.0, "n": prompts, "unit": "prompt"}
    answers = make.success(f"{name}_answers_changed", 1.0 * mine.answers_changed(theirs))
    return [{"metric": f"{name}_logit_change", **change}, answers | {"null": 0.0}]


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
    title = "Heads reordered against heads in place (mismatched: the control that must differ)"
    return interval_plot(rows, xlabel="log10 of the largest |Δlogit| (−18: none)", title=title)
