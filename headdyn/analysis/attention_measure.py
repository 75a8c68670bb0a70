"""Rows of attention statistics of every head, from sums over its attention patterns (science.md §6).

Letters as in pattern_sums.py; M metrics.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from headdyn.analysis.attention import AttentionStatistics
from headdyn.analysis.estimates import Estimate, estimate, flip_p, mean_denominator, means, ratio_units
from headdyn.analysis.figure_parts import head_panel, topic_intervals
from headdyn.analysis.head_profiles import profile_table
from headdyn.analysis.pattern_sums import Counts, Sums, collect
from headdyn.analysis.selectivity import drawn_sequences, without_topics
from headdyn.core.figures import Figure, head_map
from headdyn.core.records import Findings, HeadTable
from headdyn.core.statistics import largest_flip_test, ratio_contributions, spread_beyond_sampling, without_controls
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder

_UNDEFINED = "no queries, or no attention, to divide by"
_NO_DOCUMENTS = "the corpus packs no documents into its sequences, or attention stays inside them"
_TOPICAL = ("within", "cross", "cluster", "selectivity", "specialisation")  # in names of metrics that need topics
_SELECTIVITIES = ("selectivity", "selectivity_no_self")
Ratio = tuple[np.ndarray, np.ndarray | int]  # numerator and denominator, broadcasting to [N, L, H]


def measure(
    settings: AttentionStatistics, decoder: Decoder, corpus: Corpus, generator: np.random.Generator
) -> Findings:
    """Head rows of all metrics but `_uniform` and `_top` ones, model rows of all; one to three figures."""
    settings.check(corpus)
    sequences, swaps_NR = drawn_sequences(corpus, settings.sequences, settings.label_swaps, generator)
    sums = collect(decoder, sequences, swaps_NR, corpus.num_topics)
    # Every sequence's value of every statistic that is a ratio, [N, L, H].
    by_name = {name: ratio_units(*ratio) for name, ratio in _ratios(sums.heads, sums.counts).items()}
    by_name |= {name: without_controls(by_name[name], sums.labels_NJ) for name in _SELECTIVITIES}
    table = HeadTable.concat(
        [
            *_ratio_rows(settings, sums, by_name, generator),
            *_uniform_rows(settings, sums, generator),
            *_specialisation_rows(sums),
            *_document_rows(settings, sums, generator),
        ]
    )
    if corpus.without_topics is not None:
        table = without_topics(table, _TOPICAL, corpus.without_topics)
        by_name = {name: values for name, values in by_name.items() if not any(word in name for word in _TOPICAL)}
    table = table.with_q()
    figures = {"roles": _roles_figure(table)}
    if corpus.num_topics > 1:
        figures["topics"] = _topics_figure(table)
    if corpus.without_topics is None:
        figures["by_topic"] = _by_topic_figure(settings, sums, corpus, generator)
    return Findings(table=table, figures=figures, tables={"attention_profiles": profile_table(by_name)})


def _ratio_rows(
    settings: AttentionStatistics, sums: Sums, by_name: Mapping[str, np.ndarray], generator: np.random.Generator
) -> list[HeadTable]:
    """Rows of every statistic that is a ratio: of each head, and of the mean over the heads that have a value."""
    ratios, swapped, uniform = _ratios(sums.heads, sums.counts), _swapped(sums), _ratios(sums.uniform, sums.counts)
    units_NMLH = np.stack(list(by_name.values()), axis=1)
    heads = means(units_NMLH, generator, draws=settings.bootstrap_draws)
    model_NM = np.asfortranarray(_mean_over_heads(units_NMLH))  # numpy sums contiguous columns with less rounding
    model = means(model_NM, generator, draws=settings.bootstrap_draws)
    rows = []
    for m, name in enumerate(ratios):
        null_LH = ratio_units(*(swapped.get(name) or uniform[name])).mean(0) + np.zeros_like(heads.value[m])
        p_LH, p, p_top_LH = np.full_like(null_LH, np.nan), np.array(np.nan), np.full_like(null_LH, np.nan)
        if name.startswith("selectivity"):
            null_LH = np.zeros_like(heads.value[m])
        if name in _SELECTIVITIES:
            # Numerators alone are flipped: under the null they are 0 on average for any denominators.
            numerator_NLH, denominator = np.broadcast_arrays(*ratios[name])
            share_NLH = numerator_NLH / mean_denominator(denominator)
            p_LH, p, p_top_LH = _p_values(settings, share_NLH, sums.labels_NJ, generator)
        elif name == "induction":
            difference_NLH = by_name[name] - ratio_units(*swapped[name])
            p_LH, p, p_top_LH = _p_values(settings, difference_NLH, sums.labels_NJ[:, :0], generator)
        rows += [
            heads[m].rows(name, null=null_LH, p=p_LH, reason=_UNDEFINED),
            model[m].rows(name, null=_mean_over_heads(null_LH), p=p, reason=_UNDEFINED),
        ]
        if f"{name}_top" in settings.metrics:
            rows.append(_top_row(f"{name}_top", heads[m], null_LH, p_top_LH))
    return rows


def _top_row(metric: str, heads: Estimate, null_LH: np.ndarray, p_top_LH: np.ndarray) -> HeadTable:
    """The model row of the head with the largest value; its p is corrected for testing all heads."""
    if np.isnan(heads.value).all():
        return HeadTable.whole(metric, None, reason=_UNDEFINED)
    top = np.unravel_index(np.nanargmax(heads.value), heads.value.shape)
    return heads[top].rows(metric, null=null_LH[top], p=p_top_LH[top])


def _p_values(
    settings: AttentionStatistics, value_NLH: np.ndarray, controls_NJ: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three p-values against 0 by sign flips over sequences, NaN where undefined.

    They are each head's, [L, H]; the p of the mean over heads; and each head's corrected for testing all heads, [L, H].
    """
    flips_again = copy.deepcopy(generator)
    columns = np.concatenate((value_NLH.reshape(len(value_NLH), -1), _mean_over_heads(value_NLH)[:, None]), axis=1)
    p = flip_p(columns, controls_NJ, generator, draws=settings.sign_flips)
    p_top_LH = flip_p(value_NLH, controls_NJ, flips_again, draws=settings.sign_flips, test=largest_flip_test)
    return p[:-1].reshape(value_NLH.shape[1:]), p[-1], p_top_LH


def _uniform_rows(settings: AttentionStatistics, sums: Sums, generator: np.random.Generator) -> list[HeadTable]:
    ratios = _ratios(sums.uniform, sums.counts)
    names = ("within_ratio", "within_ratio_no_self", "cluster_ratio")
    uniform = [means(ratio_units(*ratios[name])[:, 0, 0], generator, draws=settings.bootstrap_draws) for name in names]
    return [mean.rows(f"{name}_uniform", reason=_UNDEFINED) for name, mean in zip(names, uniform, strict=True)]


def _ratios(sums: Mapping[str, np.ndarray], counts: Counts) -> dict[str, Ratio]:
    """Numerator and denominator of every statistic, by sequence: [N, L, H] or what broadcasts to it."""
    length, later = counts.length, counts.length - 1  # queries, and those with t ≥ 1
    not_self = length - sums["self"]  # attention not on the query itself; 0 at t = 0
    return {
        "entropy_nats": (sums["entropy"], length),
        "entropy_normalised": (sums["entropy_normalised"], later),
        "entropy_within_nats": (sums["entropy_within"], sums["entropy_within_queries"]),
        "entropy_cross_nats": (sums["entropy_cross"], sums["entropy_cross_queries"]),
        "within_ratio": (sums["within"], length),
        "within_ratio_no_self": (sums["within"] - sums["self"], not_self),
        # A query without other-topic keys has within-topic attention 1: the number of such queries is subtracted.
        "cluster_ratio": (sums["within"] - (length - counts.cross), sums["cross"]),
        "selectivity": (sums["within"] - sums["swapped"], length),
        "selectivity_no_self": (sums["within"] - sums["swapped"], not_self),
        **{f"selectivity_{which}_topic": _topic_ratio(sums, counts, s) for which, s in (("first", 0), ("last", -1))},
        "sink_rate": (sums["sink"], later),
        "previous_token": (sums["previous"], later),
        "induction": (sums["induction"], counts.induction),
        "distance_tokens": (sums["distance"], later),
    }


def _topic_ratio(sums: Mapping[str, np.ndarray], counts: Counts, topic: int) -> Ratio:
    return sums["topics"][..., topic] - sums["topics_swapped"][..., topic], counts.topics_NS[:, None, None, topic]


def _swapped(sums: Sums) -> dict[str, Ratio]:
    """The ratios under other sequences' labels (or tokens): the null of these statistics."""
    counts, heads = sums.counts, sums.heads
    length = counts.length
    return {
        "within_ratio": (heads["swapped"], length),
        "within_ratio_no_self": (heads["swapped"] - heads["self"], length - heads["self"]),
        "cluster_ratio": (heads["swapped"] - (length - counts.cross_swapped), length - heads["swapped"]),
        "induction": (heads["induction_swapped"], counts.induction_swapped),
    }


def _mean_over_heads(values_LH: np.ndarray) -> np.ndarray:
    """Mean over the heads that have a value (the last two axes); NaN where none has."""
    defined = ~np.isnan(values_LH)
    total, heads = np.where(defined, values_LH, 0).sum((-2, -1)), defined.sum((-2, -1))
    return np.divide(total, heads, out=np.full(np.shape(total), np.nan), where=heads > 0)


def _specialisation_rows(sums: Sums) -> list[HeadTable]:
    topics_NLHS = sums.heads["topics"]
    count, layers, heads, _ = topics_NLHS.shape
    occurs_S = sums.counts.topics_NS.sum(0) > 0
    queries_NLHS = sums.counts.topics_NS[:, None, None, occurs_S]
    units_NXS = ratio_contributions(topics_NLHS[..., occurs_S], queries_NLHS).reshape(count, layers * heads, -1)
    units_NXS = units_NXS if occurs_S.sum() > 1 else np.full_like(units_NXS, np.nan)
    by_head = [part.reshape(layers, heads) for part in spread_beyond_sampling(units_NXS)]
    # All heads at once, each centred over topics, so that differences between heads do not count.
    centred_NXS = units_NXS - units_NXS.mean(-1, keepdims=True)
    of_model = [part[0] for part in spread_beyond_sampling(centred_NXS.reshape(count, 1, -1))]
    common: dict[str, Any] = {"n": count, "unit": "sequence", "reason": "fewer than two topics occur"}
    rows: list[HeadTable] = []
    kinds: tuple[Any, ...] = ((HeadTable.per_head, by_head), (HeadTable.whole, of_model))
    for make_rows, (raw, noise, low, high) in kinds:
        rows.append(make_rows("specialisation_raw", raw, null=noise, **common))
        rows.append(make_rows("specialisation", raw - noise, null=0.0, ci_low=low, ci_high=high, **common))
    return rows


def _document_rows(settings: AttentionStatistics, sums: Sums, generator: np.random.Generator) -> list[HeadTable]:
    """Head and model rows of the selectivities whose null permutes the topics of a sequence's documents."""
    names = ("selectivity_documents", "selectivity_other_documents")
    if "documents" not in sums.heads:
        return [HeadTable.whole(name, None, reason=_NO_DOCUMENTS) for name in names]
    draws: dict[str, Any] = {"sign_flips": settings.sign_flips, "bootstrap_draws": settings.bootstrap_draws}
    numerator_NLH, rows = sums.heads["documents"], []
    queries_NLH = np.full_like(numerator_NLH, sums.counts.length)
    for name, denominator in zip(names, (queries_NLH, sums.heads["elsewhere"]), strict=True):
        units_NLH = ratio_units(numerator_NLH, denominator)
        heads = estimate(numerator_NLH, denominator, generator, **draws)
        model = estimate(_mean_over_heads(units_NLH), 1, generator, **draws)
        rows += [mean.rows(name, null=np.zeros_like(mean.value), reason=_UNDEFINED) for mean in (heads, model)]
    return rows


def _topics_figure(table: HeadTable) -> Figure:
    summary = table.summary()
    within, uniform = summary["within_ratio"], summary["within_ratio_uniform"]
    note = "attention stays inside documents, each of one topic"
    if "null" in within:
        note = f"label-swap null {100 * within['null']:.0f}, uniform {100 * uniform['value']:.0f}"
    metrics = AttentionStatistics.metrics
    panels = [
        head_panel(metrics, table, "selectivity", tested="selectivity", note="null 0", centre=0),
        head_panel(metrics, table, "within_ratio", note=note, limits=(0, 100)),
        head_panel(metrics, table, "entropy_normalised", note="uniform 100", limits=(0, 100)),
    ]
    return head_map(
        panels,
        caption="Selectivity: how much more heads attend to the query's own topic than their preference for near or "
        "far tokens explains (chance is 0). Beside it, how much attention stays in the topic, and how spread out it "
        "is. Much within-topic attention alone shows no selection: with the labels of other sequences the same heads "
        "have the share noted as label-swap null.",
    )


def _by_topic_figure(
    settings: AttentionStatistics, sums: Sums, corpus: Corpus, generator: np.random.Generator
) -> Figure:
    topics = range(corpus.num_topics)
    units_NS = [_mean_over_heads(ratio_units(*_topic_ratio(sums.heads, sums.counts, topic))) for topic in topics]
    by_topic = means(np.stack(units_NS, axis=1), generator, draws=settings.bootstrap_draws)
    return topic_intervals(
        corpus.topic_names,
        by_topic,
        "topic selectivity of the topic's queries (points)",
        scale=100,
        caption="Selectivity of the queries of each topic, mean over heads. Topic-ordered training ends on the last "
        "topic: selectivity for that topic alone shows forgetting of the others, not an effect of order.",
    )


def _roles_figure(table: HeadTable) -> Figure:
    panels = []
    for name, null in (("previous_token", "uniform"), ("induction", "token-swap null"), ("sink_rate", "uniform")):
        row = table.summary()[name]
        note = f"{null} {100 * row['null']:.1f}" if "null" in row else ""
        limits = (0.0, 100 * float(np.nanmax(table.matrix(name), initial=0.0)))
        panels.append(head_panel(AttentionStatistics.metrics, table, name, note=note, limits=limits))
    return head_map(
        panels,
        caption="Three roles that heads take in language models: attention to the previous token, to the token after "
        "an earlier occurrence of the same token (induction), and to position 0, which serves as a sink. The number "
        "above each map is the mean that uniform attention, or other sequences' tokens, would give.",
    )
