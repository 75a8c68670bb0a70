"""Rows of the model's effective attention, from each sequence's frozen pass (science.md §9).

Letters as in models/frozen.py; N sequences, K targets, J attentions by position alone.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from headdyn.analysis.estimates import Estimate, estimate, means, ratio_units
from headdyn.analysis.figure_parts import head_panel, interval, layer_curve
from headdyn.analysis.pattern_sums import position_profiles
from headdyn.analysis.selectivity import drawn_sequences, topic_contrast, without_topics
from headdyn.analysis.tensorlens import TensorLens
from headdyn.analysis.token_flow import flow_maps, jacobian_error, logit_shares, rollout, row_shares
from headdyn.core.figures import Figure, curves, head_map, interval_plot
from headdyn.core.pictures import lift_grid
from headdyn.core.records import Findings, HeadTable
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder
from headdyn.models.frozen import Frozen, freeze, head_flow

_NAMES = {"raw": "raw attention", "rollout": "attention rollout", "tensorlens": "TensorLens"}
_TOPICAL = ("selectivity", "topic", "_less_")  # in names of metrics that read topics


def measure(settings: TensorLens, decoder: Decoder, corpus: Corpus, generator: np.random.Generator) -> Findings:
    """Layer and model rows of the three maps, head rows of what heads write and add to logits; four figures."""
    settings.check(corpus)
    sequences, swaps_NR = drawn_sequences(
        corpus, settings.sequences, settings.label_swaps, generator, length=settings.tokens
    )
    device = decoder.embed.weight.device
    tokens_NT, topics_NT = (torch.from_numpy(array) for array in (sequences.tokens_NT, sequences.topics_NT))
    targets_K = target_positions(tokens_NT.shape[1], settings.targets).to(device)
    pictured = int((np.diff(sequences.topics_NT) != 0).sum(1).argmax())  # the sequence that changes topic most often

    def sequence(rows: slice, tokens_BT: Tensor, documents_BT: Tensor | None) -> dict[str, np.ndarray]:
        n = rows.start
        frozen = freeze(decoder, tokens_BT, branch=settings.branch, documents_BT=documents_BT)
        error = jacobian_error(frozen, documents_BT)
        contrast_QK = topic_contrast(topics_NT[n], topics_NT[swaps_NR[n]], corpus.num_topics).to(device)
        shares = logit_shares(frozen, tokens_BT[0], tokens_NT[swaps_NR[n]].to(device), contrast_QK, targets_K)
        maps, sums = _maps_and_sums(frozen, contrast_QK, targets_K)
        sums |= {**shares, "jacobian_error": error}
        picture = {f"map {name}": map_QK.cpu().numpy() for name, map_QK in maps.items()} if n == pictured else {}
        return picture | {name: value.double().cpu().numpy() for name, value in sums.items()}

    done = [part for _, part in sequences.parts(1, device, sequence)]
    pictured_maps = {name: done[pictured][f"map {name}"] for name in _NAMES}
    names = [name for name in done[pictured] if not name.startswith("map ")]
    table = _table(settings, {name: np.stack([part[name] for part in done]) for name in names}, generator)
    if corpus.without_topics is not None:
        table = without_topics(table, _TOPICAL, corpus.without_topics)
    table = table.with_q()
    figures = {
        "instruments": _instruments_figure(table),
        "layers": _layers_figure(table),
        "heads": _heads_figure(table),
        "maps": _maps_figure(pictured_maps, sequences.topics_NT[pictured]),
    }
    return Findings(table=table, figures=figures)


def target_positions(length: int, count: int) -> Int[Tensor, " targets"]:
    """Evenly spaced positions whose next token is traced, never the last one, which has none.

    The same for every sequence, so that balanced swaps make attention by position alone come to 0 here too.
    """
    return torch.linspace(0, length - 2, count + 1).round().long()[1:].unique()


def _maps_and_sums(
    frozen: Frozen, contrast_QK: Float[Tensor, "Q K"], targets_K: Int[Tensor, " targets"]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The whole model's map by each instrument, and the sequence's means over queries, by name."""
    length = len(contrast_QK)
    raw_LQK = torch.stack([layer.pattern_BHQK[0].mean(0) for layer in frozen.layers])
    flow_LQK, aligned_QK, error = flow_maps(frozen)
    maps = {"raw": raw_LQK, "rollout": rollout(raw_LQK), "tensorlens": flow_LQK}
    written_LHQK = torch.stack([row_shares(head_flow(frozen, layer)[0]) for layer in range(len(frozen.layers))])
    profiles_JQK = position_profiles(length).to(contrast_QK.device) * contrast_QK
    sums = {
        **{f"{name}_topical": (map_LQK * contrast_QK).sum((-1, -2)) / length for name, map_LQK in maps.items()},
        **{f"{name}_self": map_LQK.diagonal(dim1=-2, dim2=-1).mean(-1) for name, map_LQK in maps.items()},
        "tensorlens_aligned_selectivity": (aligned_QK * contrast_QK).sum() / length,
        "head_written_selectivity": (written_LHQK * contrast_QK).sum((-1, -2)) / length,
        "profiles": profiles_JQK.sum((-1, -2)) / length,
        "targeted_profiles": profiles_JQK[:, targets_K].sum(-1).mean(-1),
        "error": error,
    }
    return {"raw": raw_LQK.mean(0), "rollout": maps["rollout"][-1], "tensorlens": flow_LQK[-1]}, sums


def _table(settings: TensorLens, sums: dict[str, np.ndarray], generator: np.random.Generator) -> HeadTable:
    """Rows from the sequences' sums, [N, ...] by name."""
    draws: dict[str, Any] = {"sign_flips": settings.sign_flips, "bootstrap_draws": settings.bootstrap_draws}
    controls_NJ, targeted_NJ = sums["profiles"], sums["targeted_profiles"]
    parts: list[HeadTable] = []

    def add(metric: str, values: Estimate, null: float | np.ndarray = 0.0) -> None:
        parts.append(values.rows(metric, null=null, reason="every token reads from itself alone"))

    def add_layers_and_model(metric: str, values: Estimate, null: float = 0.0) -> None:
        add(metric, values[:-1], null)
        add(metric, values[-1], null)

    model_N: dict[str, np.ndarray] = {}  # each instrument's selectivity of the model without the self key
    for name in ("raw", "rollout", "tensorlens"):
        topical_NX, own_NX = (_with_model(sums[f"{name}_{part}"], mean=name == "raw") for part in ("topical", "self"))
        for suffix, read_NX in (("", np.ones_like(own_NX)), ("_no_self", 1 - own_NX)):
            selectivity = estimate(topical_NX, read_NX, generator, controls_NJ=controls_NJ, **draws)
            add_layers_and_model(f"{name}_selectivity{suffix}", selectivity)
        if name == "tensorlens":
            own = means(own_NX, generator, draws=settings.bootstrap_draws)
            add_layers_and_model("tensorlens_self", own, np.nan)
        model_N[name] = ratio_units(topical_NX[:, -1], 1 - own_NX[:, -1])
    for name in ("raw", "rollout"):
        difference_N = model_N["tensorlens"] - model_N[name]
        difference = estimate(difference_N, 1, generator, controls_NJ=controls_NJ, **draws)
        add(f"tensorlens_less_{name}_no_self", difference)
    carried_NLH, swapped_NLH = sums["head_logit_nats"], sums["head_swapped_nats"]
    carried = means(carried_NLH, generator, draws=settings.bootstrap_draws)
    add("head_logit_nats", carried, swapped_NLH.mean(0))
    for name, values_NX, given_NJ in (
        ("head_written_selectivity", sums["head_written_selectivity"], controls_NJ),
        ("head_topic_nats", sums["head_topic_nats"], targeted_NJ),
        ("head_logit_excess_nats", carried_NLH - swapped_NLH, None),
        ("tensorlens_aligned_selectivity", sums["tensorlens_aligned_selectivity"], controls_NJ),
        ("tensorlens_topic_nats", sums["tensorlens_topic_nats"], targeted_NJ),
    ):
        add(name, estimate(values_NX, 1, generator, controls_NJ=given_NJ, **draws))
    error, control = (float(sums[name].max()) for name in ("error", "jacobian_error"))
    parts.append(HeadTable.whole("tensorlens_error", error, null=control, n=len(controls_NJ), unit="sequence"))
    return HeadTable.concat(parts)


def _with_model(values_NL: np.ndarray, *, mean: bool) -> np.ndarray:
    """The layers' values and then the model's: their mean, or the last layer's."""
    model_N1 = values_NL.mean(1, keepdims=True) if mean else values_NL[:, -1:]
    return np.concatenate((values_NL, model_N1), axis=1)


def _instruments_figure(table: HeadTable) -> Figure:
    summary = table.summary()
    groups = {"_no_self": "share of what is not on the query", "": "share of everything"}
    return interval_plot(
        [
            interval(label, summary[f"{name}_selectivity{suffix}"], group)
            for suffix, group in groups.items()
            for name, label in _NAMES.items()
        ],
        xlabel="topic selectivity (95 % interval over sequences)",
        zero_line=True,
        caption="How much more the whole model reads from tokens of the query's topic than from the same places "
        "under other sequences' topics, by three instruments. 0 is chance. Compare the instruments without the query "
        "itself: TensorLens and rollout contain the residual stream, raw attention does not.",
    )


def _layers_figure(table: HeadTable) -> Figure:
    reach = {"raw": "of the layer", "rollout": "up to the layer", "tensorlens": "up to the layer"}
    lines = [layer_curve(table, f"{name}_selectivity_no_self", f"{_NAMES[name]} ({reach[name]})") for name in _NAMES]
    return curves(
        [line for line in lines if len(line.x)],
        xlabel="layer",
        ylabel="topic selectivity, self key left out",
        title="Mean over sequences with 95 % band",
        references={"label-swap null": 0.0},
        whole_x=True,
        caption="Topic selectivity layer by layer. 0, the label-swap null, is what attention by position alone gives.",
    )


def _heads_figure(table: HeadTable) -> Figure:
    names = ("head_written_selectivity", "head_topic_nats", "head_logit_excess_nats")
    panels = [head_panel(TensorLens.metrics, table, name, tested=name, note="null 0", centre=0) for name in names]
    return head_map(
        panels,
        caption="How much more heads write for keys of the query's topic, and how much each head adds to the logit of "
        "the next token. 0 is chance: the labels, or the next tokens, of other sequences. A star: q < 0.05.",
    )


def _maps_figure(maps: Mapping[str, np.ndarray], topics_T: np.ndarray) -> Figure:
    lift_QK = np.arange(1, len(topics_T) + 1)[:, None]
    return lift_grid(
        np.stack([maps[name] * lift_QK for name in _NAMES]),
        columns=list(_NAMES.values()),
        boundaries=(np.flatnonzero(np.diff(topics_T)) + 1).tolist(),
        caption="How much every token of one sequence reads from every earlier one, relative to uniform attention. "
        "Lines are topic boundaries: blocks along the diagonal are attention within a topic.",
    )
