"""Even heads against odd ones, patched and ranked among all splits. Letters as in patching.py and splits.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from headdyn.analysis.interventions import dose
from headdyn.analysis.interventions.pair_rows import PairRows, succeeds
from headdyn.analysis.interventions.patch import chosen_layer
from headdyn.analysis.interventions.patching import PromptPatching, bug_pairs, heads_as_weights, in_dtype
from headdyn.analysis.interventions.specialization import Specialization
from headdyn.analysis.interventions.splits import Splits, balanced_splits, split_table
from headdyn.core.figures import Curve, Figure, Interval, curves, interval_plot
from headdyn.core.records import Findings, HeadTable
from headdyn.data.prompts import Prompts
from headdyn.models.decoder import Decoder


def measure(settings: Specialization, decoder: Decoder, prompts: Prompts, generator: np.random.Generator) -> Findings:
    """Everything that `Specialization` reports under these settings."""
    heads, layers = decoder.config.num_heads, range(decoder.config.num_layers)
    layer = chosen_layer(settings.layer, len(layers))
    bugs, controls = bug_pairs(prompts), prompts.where(~prompts.is_bug_P)
    splits = balanced_splits(heads, generator, exact_to=settings.exact_to_heads, sample=settings.sampled_splits)
    model, patch = in_dtype(decoder, settings.dtype), settings.patch(settings.direction)
    patching = PromptPatching(model, bugs, patch, layers)
    pools = {"even": range(0, heads, 2), "odd": range(1, heads, 2), "any": range(heads)}
    halves_3H = heads_as_weights([*pools.values()], heads)
    pair_rows = PairRows(generator=generator, bootstrap_draws=settings.bootstrap_draws, sign_flips=settings.sign_flips)

    halves = patching.deltas(dict.fromkeys(layers, halves_3H))
    nulls = patching.deltas(dict.fromkeys(layers if settings.null_at_every_layer else [layer], splits.half_SH))
    by_layer = {at: _halves(pair_rows, halves[at], patching, splits, nulls.get(at)) for at in layers}
    alone = _single_heads(pair_rows, patching.deltas({layer: np.eye(heads)})[layer], patching.target_P, layer)
    sizes = dose.by_group_size(patching, layer, pools, heads, settings.groups_per_size, generator)
    fractions = dose.by_fraction(patching, layer, pools, heads, settings.fractions)
    rows = [
        pair_rows.success("plain_success", patching.target_P),
        pair_rows.success("source_success", patching.source_P),
        pair_rows.mean("plain_nats", patching.target_P),
        pair_rows.mean("source_nats", patching.source_P),
        by_layer[layer],
        _threshold(pair_rows, "even_size_threshold", sizes[0]),
        _threshold(pair_rows, "any_size_threshold", sizes[2]),
        _threshold(pair_rows, "even_fraction_threshold", fractions[0]),
        *(by_layer[at].labelled(layer=at) for at in layers),
    ]
    tables = {
        "splits": split_table(splits, nulls, _names(bugs)),
        "group_sizes": dose.dose_table(sizes),
        "fractions": dose.dose_table(fractions),
    }
    if controls.pairs:
        control_patching = PromptPatching(model, controls, patch, [layer])
        even_P, odd_P, _ = control_patching.deltas({layer: halves_3H})[layer]
        control_SC = control_patching.deltas({layer: splits.half_SH})[layer]
        rows += [
            pair_rows.success("control_plain_success", control_patching.target_P),
            pair_rows.success("control_even_success", even_P),
            pair_rows.success("control_odd_success", odd_P),
            pair_rows.mean("control_strength_nats", even_P - odd_P, null=0.0),
            _balanced(pair_rows, splits, nulls[layer], control_SC),
        ]
        tables["control_splits"] = split_table(splits, {layer: control_SC}, _names(controls))
    return Findings(
        table=HeadTable.concat([*rows, alone]),
        figures={
            "null": _null_figure(splits, nulls[layer], layer),
            "layers": _interval_figure(
                {f"layer {at}": by_layer[at].summary()["strength_nats"] for at in layers},
                "strength (nats)",
                "Even − odd at every layer",
                "Δ with a layer's even heads patched less that with its odd ones, with 95 % intervals over pairs.",
            ),
            "heads": _interval_figure(
                {f"head {row['head']}": row for row in alone.where(metric="head_effect_nats").rows()},
                "change of Δ (nats)",
                f"Each head of layer {layer} patched alone",
                "How far patching one head moves the log-odds of the right answer, with 95 % intervals over pairs.",
            ),
            "group_sizes": dose.size_figure(sizes),
            "fractions": dose.fraction_figure(fractions, generator, settings.bootstrap_draws),
        },
        tables=tables,
    )


def _names(prompts: Prompts) -> list[str]:
    return [f"{pair.right}/{pair.wrong}" for pair in prompts.pairs]


def _balanced(pair_rows: PairRows, splits: Splits, bug_SP: np.ndarray, control_SC: np.ndarray) -> HeadTable:
    """The row of even/odd's strength over both kinds of pairs with equal weight, with p among the splits."""
    even, strength_S = splits.reference, splits.balanced(bug_SP, control_SC)
    parts = [delta_SP[even] - delta_SP[::-1][even] for delta_SP in (bug_SP, control_SC)]
    value, pairs = np.mean([part_P.mean() for part_P in parts]), sum(map(len, parts))
    # One value per pair, whose mean is the average of the two means; the interval is that of two samples of fixed size.
    by_pair_P = [value + pairs / (2 * len(part_P)) * (part_P - part_P.mean()) for part_P in parts]
    null = (splits.advantage(bug_SP) + splits.advantage(control_SC)) / 2
    p = splits.rank_test(strength_S).p_two_sided
    return pair_rows.mean("balanced_strength_nats", np.concatenate(by_pair_P), null=null, p=p)


def _halves(
    pair_rows: PairRows, delta_3P: np.ndarray, patching: PromptPatching, splits: Splits, null_SP: np.ndarray | None
) -> HeadTable:
    """Rows of one layer: effects of even, odd and all heads and, where splits were run, even/odd's rank among them."""
    shares, columns = pair_rows.recovered(delta_3P, patching.target_P, patching.source_P)
    rows = []
    for at, name in enumerate(("even", "odd", "all")):
        rows.append(pair_rows.success(f"{name}_success", delta_3P[at]))
        rows.append(shares[at].rows(f"{name}_recovered", unit="pair", **columns))
    even_P, odd_P = delta_3P[:2]
    if null_SP is None:
        rows.append(pair_rows.success_difference("strength", even_P, odd_P, null=0.0))
        return HeadTable.concat([*rows, pair_rows.mean("strength_nats", even_P - odd_P, null=0.0)])
    strength_S = splits.strengths(null_SP)
    test, success_null = splits.rank_test(strength_S), splits.advantage(succeeds(null_SP))
    count = int(splits.alike_S.sum())
    common: dict[str, Any] = {"n": count, "unit": "split"}
    highest = np.quantile(np.abs(strength_S), 0.95)
    return HeadTable.concat(
        [
            *rows,
            pair_rows.success_difference("strength", even_P, odd_P, null=success_null),
            pair_rows.mean("strength_nats", even_P - odd_P, null=splits.advantage(null_SP), p=test.p_two_sided),
            HeadTable.whole("strength_rank", test.rank, null=(count + 1) / 2, p=test.p_greater, **common),
            HeadTable.whole("best_split_nats", strength_S.max(), null=highest, **common),
        ]
    )


def _single_heads(pair_rows: PairRows, delta_HP: np.ndarray, plain_P: np.ndarray, layer: int) -> HeadTable:
    effects = pair_rows.effects((delta_HP - plain_P).T[:, None]).rows("head_effect_nats", unit="pair", null=0.0)
    success = pair_rows.success("head_success", delta_HP[None])
    return HeadTable.concat([effects, success]).labelled(layer=layer).with_q()


def _threshold(pair_rows: PairRows, metric: str, curve: dose.Dose) -> HeadTable:
    value, pairs = curve.threshold(), curve.delta_CP.shape[1]
    low, high = np.nan, np.nan
    if value is not None and pairs > 1:
        low, high = curve.threshold_interval(pair_rows.generator, pair_rows.bootstrap_draws)
    reason = "no dose repairs over half the pairs in every group drawn"
    return HeadTable.whole(metric, value, ci_low=low, ci_high=high, n=pairs, unit="pair", reason=reason)


def _null_figure(splits: Splits, null_SP: np.ndarray, layer: int) -> Figure:
    strength_S = splits.strengths(null_SP)
    kind = f"all {len(splits)}" if splits.exact else f"{len(splits)} sampled"
    return curves(
        [Curve(label=f"{kind} splits, sorted", x=np.arange(1, len(splits) + 1), y=np.sort(strength_S)[::-1])],
        xlabel="rank of the split",
        ylabel="strength (nats)",
        title=f"Even against odd among balanced splits, layer {layer}",
        references={"even/odd": strength_S[splits.reference].item()},
        whole_x=True,
        caption="Every way to split the layer's heads into halves, by how much more one half repairs than the other. "
        "The line is even/odd: if it is a split like any other, it crosses the curve at a random rank.",
    )


def _interval_figure(rows: Mapping[str, Mapping[str, Any]], xlabel: str, title: str, caption: str) -> Figure:
    intervals = [
        Interval(label=label, value=row["value"], low=row.get("ci_low"), high=row.get("ci_high"))
        for label, row in rows.items()
    ]
    return interval_plot(intervals, xlabel=xlabel, title=title, zero_line=True, caption=caption)
