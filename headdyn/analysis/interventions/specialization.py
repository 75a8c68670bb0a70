"""Do the even heads of a layer repair an answer that the odd ones do not, and is that more than any split does?

Specialisation of head groups, science.md §11. Letters as in patching.py and splits.py; Δ is the answers' log-odds in
nats, and a pair succeeds where Δ, averaged over the pair's prompts, is above 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from headdyn.analysis.contract import chosen_layer
from headdyn.analysis.interventions.dose import (
    Dose,
    by_fraction,
    by_group_size,
    dose_table,
    fraction_figure,
    size_figure,
)
from headdyn.analysis.interventions.pair_rows import PairRows, Row, at_layers
from headdyn.analysis.interventions.patching import Patch, PromptPatching, heads_as_weights, in_dtype
from headdyn.analysis.interventions.seed_patching import Response, response_table, seed_responses, verdict_rows
from headdyn.analysis.interventions.splits import Splits, balanced_splits, rank_test, split_table
from headdyn.core.figures import Curve, Figure, Interval, curves, interval_plot
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.data.comparisons import Prompts
from headdyn.models.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class Specialization:
    """Patches groups of heads of one layer and compares even with odd, against all balanced splits of that layer.

    Repair is measured on bug pairs; controls are pairs that the bug does not touch. Intervals (95 %) take pairs as
    units: Clopper–Pearson for success, BCa otherwise. The model's rows are those of `layer` (default: ⌊L/2⌋), beside
    which every layer has its own. `protocol="seed"` adds the seed study's procedure (see seed_patching.py).

    Tables: `splits` (Δ of every split and bug pair, so that a maximum over checkpoints can be formed), `group_sizes`,
    `fractions`, and with the seed's protocol `seed_responses`.
    Raises ValueError for a layer out of range, an odd number of heads, or prompts without bug pairs.
    """

    layer: int | None = None
    null_at_every_layer: bool = False
    site: str = "z"
    source: str = "prompt"
    alignment: str = "span"
    steps: str = "prefill"
    direction: str = "sufficiency"
    dtype: str = "float32"
    exact_to_heads: int = 16
    sampled_splits: int = 5_000
    groups_per_size: int = 24
    fractions: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    sign_flips: int = 9_999
    bootstrap_draws: int = 2_000
    protocol: str = "corrected"
    seed_trials: int = 2
    seed_tokens: int = 20

    rows: ClassVar[Literal["split"]] = "split"
    needs: ClassVar[frozenset[str]] = frozenset({"prompts"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "plain_success": Metric(meaning="share of bug pairs answered rightly, nothing patched", low=0, high=1),
        "source_success": Metric(meaning="the same for the prompts that the values come from", low=0, high=1),
        "even_success": Metric(meaning="share of bug pairs answered rightly, even heads patched", low=0, high=1),
        "odd_success": Metric(meaning="share of bug pairs answered rightly, odd heads patched", low=0, high=1),
        "all_success": Metric(meaning="share of bug pairs answered rightly, all heads patched", low=0, high=1),
        "plain_nats": Metric(meaning="mean Δ over bug pairs, nothing patched", unit="nats"),
        "source_nats": Metric(meaning="mean Δ of the prompts that the values come from", unit="nats"),
        "even_recovered": Metric(meaning="(Δ_even − Δ_plain) / (Δ_source − Δ_plain)"),
        "odd_recovered": Metric(meaning="(Δ_odd − Δ_plain) / (Δ_source − Δ_plain)"),
        "all_recovered": Metric(meaning="(Δ_all − Δ_plain) / (Δ_source − Δ_plain)"),
        "strength": Metric(meaning="even_success − odd_success; its mean over all splits is 0", low=-1, high=1),
        "strength_nats": Metric(
            meaning="mean Δ with even heads patched − with odd; p: two-sided rank among balanced splits", unit="nats"
        ),
        "strength_rank": Metric(meaning="rank of even/odd's strength_nats among labelled splits; p one-sided", low=1),
        "best_split_nats": Metric(
            meaning="strength_nats of the strongest split; null: 95th percentile of |strength_nats|", low=0, unit="nats"
        ),
        "even_size_threshold": Metric(
            meaning="number of heads from which on every group of even heads drawn repairs over half the pairs", low=0
        ),
        "any_size_threshold": Metric(
            meaning="number of heads from which on every group of heads drawn repairs over half the pairs", low=0
        ),
        "even_fraction_threshold": Metric(
            meaning="share of the source in all even heads from which on over half the pairs succeed", low=0, high=1
        ),
        "head_effect_nats": Metric(meaning="change of mean Δ when this head alone is patched", unit="nats"),
        "head_success": Metric(meaning="share of bug pairs answered rightly, this head alone patched", low=0, high=1),
        "control_plain_success": Metric(meaning="plain_success on control pairs", low=0, high=1),
        "control_even_success": Metric(meaning="even_success on control pairs", low=0, high=1),
        "control_odd_success": Metric(meaning="odd_success on control pairs", low=0, high=1),
        "control_strength_nats": Metric(meaning="strength_nats on control pairs", unit="nats"),
        "seed_plain_success": Metric(meaning="the seed's verdict on its prompt, nothing patched", low=0, high=1),
        "seed_even_success": Metric(meaning="the seed's verdict, even pieces patched its way", low=0, high=1),
        "seed_odd_success": Metric(meaning="the seed's verdict, odd pieces patched its way", low=0, high=1),
        "seed_strength": Metric(meaning="seed_even_success − seed_odd_success, on one prompt", low=-1, high=1),
    }

    def __post_init__(self) -> None:
        words = {
            "site": ("z", "attn_out_slice"),
            "source": ("prompt", "zero", "mean"),
            "alignment": ("left", "right", "span"),
            "steps": ("prefill", "every_step"),
            "direction": ("sufficiency", "necessity"),
            "dtype": ("float64", "float32", "bfloat16", "float16"),
            "protocol": ("corrected", "seed"),
        }
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"analysis.specialization.{name}={getattr(self, name)!r} is unknown; choose one of "
                    f"{', '.join(known)}"
                )
        least = {"sampled_splits": 100, "groups_per_size": 1, "sign_flips": 999, "bootstrap_draws": 100}
        for name, low in {**least, "seed_trials": 1, "seed_tokens": 1}.items():
            if getattr(self, name) < low:
                raise ValueError(f"analysis.specialization.{name}={getattr(self, name)} must be at least {low}")
        if not 2 <= self.exact_to_heads <= 20:
            raise ValueError(
                f"analysis.specialization.exact_to_heads={self.exact_to_heads} must lie in 2..20; 20 heads "
                "have 184,756 splits already"
            )
        if not self.fractions or any(not 0 <= fraction <= 1 for fraction in self.fractions):
            raise ValueError(f"analysis.specialization.fractions={self.fractions} must be numbers in 0..1")

    def __call__(self, decoder: Decoder, corpus: Prompts, generator: np.random.Generator) -> Findings:
        """Model rows for `layer`, layer rows for even/odd at every layer, head rows for single heads of `layer`."""
        c = decoder.config
        layer = chosen_layer(self.layer, c.num_layers)
        layers = range(c.num_layers)
        bugs, controls = corpus.where(corpus.is_bug_P), corpus.where(~corpus.is_bug_P)
        if not bugs.pairs:
            raise ValueError("the prompts hold no bug pairs, on which repair is measured; set data.bug_pairs")
        splits = balanced_splits(c.num_heads, generator, exact_to=self.exact_to_heads, sample=self.sampled_splits)
        model, patch = in_dtype(decoder, getattr(torch, self.dtype)), self._patch()
        patching = PromptPatching(model, bugs, patch, layers)
        pools = {"even": range(0, c.num_heads, 2), "odd": range(1, c.num_heads, 2), "any": range(c.num_heads)}
        halves_3H = heads_as_weights([*pools.values()], c.num_heads)
        make = PairRows(generator=generator, bootstrap_draws=self.bootstrap_draws, sign_flips=self.sign_flips)

        halves = patching.deltas(dict.fromkeys(layers, halves_3H))
        nulls = patching.deltas(
            dict.fromkeys(layers if self.null_at_every_layer else [layer], splits.half_SH.astype(float))
        )
        by_layer = {at: _halves(make, halves[at], patching, splits, nulls.get(at)) for at in layers}
        heads = _single_heads(make, patching.deltas({layer: np.eye(c.num_heads)})[layer], patching.target_P, layer)
        sizes = by_group_size(patching, layer, pools, c.num_heads, self.groups_per_size, generator)
        fractions = by_fraction(patching, layer, pools, c.num_heads, self.fractions)
        rows = [
            make.success("plain_success", patching.target_P),
            make.success("source_success", patching.source_P),
            make.mean("plain_nats", patching.target_P),
            make.mean("source_nats", patching.source_P),
        ]
        rows += [*by_layer[layer], *_thresholds(make, sizes, fractions), *at_layers(by_layer)]
        if controls.pairs:
            beside = PromptPatching(model, controls, patch, [layer])
            rows += _controls(make, beside.deltas({layer: halves_3H})[layer], beside)
        tables = {
            "splits": split_table(splits, nulls, [f"{pair.right}/{pair.wrong}" for pair in bugs.pairs]),
            "group_sizes": dose_table(sizes),
            "fractions": dose_table(fractions),
        }
        if self.protocol == "seed":
            groups = {"plain": (), "even": pools["even"], "odd": pools["odd"]}
            said = seed_responses(decoder, corpus, layer, groups, trials=self.seed_trials, tokens=self.seed_tokens)
            rows += _verdicts(said)
            tables["seed_responses"] = response_table(said)
        figures = {
            "null": _null_figure(splits, nulls[layer], layer),
            "layers": _layer_figure(by_layer),
            "heads": _head_figure(heads, layer),
            "group_sizes": size_figure(sizes),
            "fractions": fraction_figure(fractions, generator, self.bootstrap_draws),
        }
        return Findings(
            table=HeadTable.concat([HeadTable.from_rows(rows), heads]),
            figures=figures,
            tables=tables,
        )

    def _patch(self) -> Patch:
        words = ("site", "source", "alignment", "steps", "direction")
        settings: dict[str, Any] = {word: getattr(self, word) for word in words}
        return Patch(**settings)


def degree(strength: float) -> Literal["strong", "moderate", "weak", "none"]:
    """The seed studies' word for a strength, which they read off its size: above 0.5, 0.3, 0.1, or not."""
    for word, least in (("strong", 0.5), ("moderate", 0.3), ("weak", 0.1)):
        if abs(strength) > least:
            return word  # type: ignore[return-value]
    return "none"


def _halves(
    make: PairRows, delta_3P: np.ndarray, patching: PromptPatching, splits: Splits, null_SP: np.ndarray | None
) -> list[Row]:
    """Rows of one layer: what even, odd and all heads do; where splits were run, even/odd's place among them too."""
    shares = make.recovered("recovered", delta_3P, patching.target_P, patching.source_P)
    rows: list[Row] = []
    for name, delta_P, share in zip(("even", "odd", "all"), delta_3P, shares, strict=True):
        rows += [make.success(f"{name}_success", delta_P), share | {"metric": f"{name}_recovered"}]
    even_P, odd_P = delta_3P[:2]
    rows.append(make.success_difference("strength", even_P, odd_P))
    strength = make.mean("strength_nats", even_P - odd_P, null=0.0)
    if null_SP is None:
        return [*rows, strength]
    strength_S = splits.strengths(null_SP)
    test = rank_test(strength_S, splits.even_odd)
    over = {"n": len(splits), "unit": "split"}
    return [
        *rows,
        strength | {"p": test.p_two_sided},
        {"metric": "strength_rank", "value": test.rank, "null": (len(splits) + 1) / 2, "p": test.p_greater, **over},
        {
            "metric": "best_split_nats",
            "value": strength_S.max().item(),
            "null": np.quantile(np.abs(strength_S), 0.95).item(),
            **over,
        },
    ]


def _single_heads(make: PairRows, delta_HP: np.ndarray, plain_P: np.ndarray, layer: int) -> HeadTable:
    effects = make.effects("head_effect_nats", (delta_HP - plain_P).T)
    success = [make.success("head_success", delta_P) for delta_P in delta_HP]
    rows = [{**row, "layer": layer, "head": head} for kind in (effects, success) for head, row in enumerate(kind)]
    return HeadTable.from_rows(rows).with_q()


def _thresholds(make: PairRows, sizes: Sequence[Dose], fractions: Sequence[Dose]) -> list[Row]:
    rows: list[Row] = []
    for metric, dose in (
        ("even_size_threshold", sizes[0]),
        ("any_size_threshold", sizes[2]),
        ("even_fraction_threshold", fractions[0]),
    ):
        value = dose.threshold()
        row: Row = {"metric": metric, "value": value, "n": dose.delta_CP.shape[1], "unit": "pair"}
        if value is None:
            row["reason"] = "no dose repairs over half the pairs in every group drawn"
        elif row["n"] > 1:
            row["ci_low"], row["ci_high"] = dose.threshold_interval(make.generator, make.bootstrap_draws)
        rows.append(row)
    return rows


def _controls(make: PairRows, delta_3P: np.ndarray, patching: PromptPatching) -> list[Row]:
    return [
        make.success("control_plain_success", patching.target_P),
        make.success("control_even_success", delta_3P[0]),
        make.success("control_odd_success", delta_3P[1]),
        make.mean("control_strength_nats", delta_3P[0] - delta_3P[1], null=0.0),
    ]


def _verdicts(said: Sequence[Response]) -> list[Row]:
    """The seed's rates and their difference; n is 1 whatever the number of trials, since all are one prompt."""
    success = {response.name: float(response.success) for response in said}
    strength = success["even"] - success["odd"]
    return [
        *verdict_rows(said),
        {"metric": "seed_strength", "value": strength, "null": 0.0, "n": 1, "unit": "prompt"},
    ]


def _null_figure(splits: Splits, null_SP: np.ndarray, layer: int) -> Figure:
    strength_S = splits.strengths(null_SP)
    kind = f"all {len(splits)}" if splits.exact else f"{len(splits)} sampled"
    return curves(
        [Curve(label=f"{kind} splits, sorted", x=np.arange(1, len(splits) + 1), y=np.sort(strength_S)[::-1])],
        xlabel="rank of the split",
        ylabel="strength (nats)",
        title=f"Even against odd among balanced splits, layer {layer}",
        references={"even/odd": strength_S[splits.even_odd].item()},
        whole_x=True,
    )


def _layer_figure(by_layer: Mapping[int, list[Row]]) -> Figure:
    rows = [
        next(row for row in by_layer[layer] if row["metric"] == "strength_nats") | {"layer": layer}
        for layer in sorted(by_layer)
    ]
    intervals = [
        Interval(label=f"layer {row['layer']}", value=row["value"], low=row.get("ci_low"), high=row.get("ci_high"))
        for row in rows
    ]
    return interval_plot(intervals, xlabel="strength (nats)", title="Even − odd at every layer", zero_line=True)


def _head_figure(heads: HeadTable, layer: int) -> Figure:
    intervals = [
        Interval(label=f"head {row['head']}", value=row["value"], low=row["ci_low"], high=row["ci_high"])
        for row in heads.where(metric="head_effect_nats").rows()
    ]
    title = f"Each head of layer {layer} patched alone"
    return interval_plot(intervals, xlabel="change of Δ (nats)", title=title, zero_line=True)
