"""Attention statistics by head, with their nulls and intervals (science.md §6)."""

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from headdyn.analysis.contract import measured_in
from headdyn.analysis.metrics import LabelSwapSettings, nats, share, share_difference
from headdyn.core.records import Metric
from headdyn.core.settings import settings

_variance = partial(Metric, high=0.25, unit="share²", digits=5)  # of shares


@settings
class AttentionStatistics(LabelSwapSettings):
    """Statistics of every head's attention on `sequences` (or all) of the validation split; model rows average heads.

    Every statistic is a ratio of sums over queries and sequences. Intervals (95 %, BCa) and the p-values (sign flips)
    of selectivity against 0 and of induction against its null take sequences as units. Query t attends to keys 0..t.

    A sequence's selectivity varies mostly with its labels: with two long segments any attention is more selective than
    with four short ones. So swaps are balanced (every sequence lends its labels equally often), which makes the mean
    selectivity of any attention by position alone exactly 0. The selectivities of a few such attentions are control
    variates, which narrow the heads' intervals and leave the values as they are. On a trained model (16 heads, 64
    sequences) the standard error fell from 0.0145 to 0.0015, and 0.0015 is also how far the value varies (standard
    deviation) when other sequences are drawn.

    The null of `within_ratio` (with and without self) and of `cluster_ratio` is the same attention against the labels
    of `label_swaps` other sequences, which keeps the head's distance profile and the label statistics. The null of
    `induction` is the same attention against their tokens, that of the selectivities and of `specialisation` 0, that of
    `specialisation_raw` the value from sampling noise alone. All other nulls are values of causal-uniform attention.

    Where documents are packed into a sequence, a head that prefers its own document passes for a topic head under the
    label swap. The null of `selectivity_documents` therefore permutes the topics among the sequence's documents, so
    that each document keeps one topic; `selectivity_other_documents` counts keys of other documents alone. The mean
    over permutations is computed exactly; p is by sign flips over sequences.
    Where the corpus confines attention to documents, topic statistics are absent. Induction keys in other documents
    then count as keys that got no attention, in the null as well.

    Table `attention_profiles`: the value of every statistic on every sequence by head, by which heads of two
    checkpoints are matched (head_profiles.py).
    """

    sequences: int = 128

    name: ClassVar[str] = "attention"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "entropy_nats": nats(
            "attention entropy", "entropy of a query's attention, mean over all queries", low=0, outcome=True
        ),
        "entropy_normalised": share(
            "attention entropy, of its maximum",
            "entropy over ln(t + 1), mean over queries t ≥ 1; 100 % is uniform attention",
        ),
        "entropy_within_nats": nats(
            "entropy within the topic",
            "entropy of attention renormalised over same-topic keys, mean over all queries",
            low=0,
        ),
        "entropy_cross_nats": nats(
            "entropy across topics",
            "entropy of attention renormalised over other-topic keys, mean over queries with mass on any",
            low=0,
        ),
        "within_ratio": share(
            "within-topic attention", "attention on keys of the query's topic, mean over all queries", outcome=True
        ),
        "within_ratio_no_self": share(
            "within-topic attention, self left out",
            "of the attention that is not on the query itself, the share on keys of its topic",
            outcome=True,
        ),
        "within_ratio_uniform": share(
            "within-topic attention of uniform attention", "within_ratio of causal-uniform attention"
        ),
        "within_ratio_no_self_uniform": share(
            "within-topic attention of uniform attention, self left out",
            "within_ratio_no_self of causal-uniform attention",
        ),
        "cluster_ratio": Metric(
            label="within- over cross-topic attention",
            meaning="within over cross mass, of queries that have keys of both kinds",
            low=0,
            outcome=True,
        ),
        "cluster_ratio_uniform": Metric(
            label="within- over cross-topic attention of uniform attention",
            meaning="cluster_ratio of causal-uniform attention",
            low=0,
        ),
        "selectivity": share_difference(
            "topic selectivity", "within-topic attention less what it is when sequences swap topic labels", outcome=True
        ),
        "selectivity_no_self": share_difference(
            "topic selectivity, self left out",
            "selectivity of the attention that is not on the query itself",
            outcome=True,
        ),
        "selectivity_documents": share_difference(
            "topic selectivity beyond the document",
            "attention on same-topic keys less its mean over permutations of the topics of the sequence's documents",
            outcome=True,
        ),
        "selectivity_other_documents": share_difference(
            "topic selectivity, other documents alone",
            "selectivity_documents of the attention that is on keys of other documents",
            outcome=True,
        ),
        **{
            f"selectivity_{which}_topic": share_difference(
                f"topic selectivity, {which} topic", f"selectivity of the queries of the topic with the {end} id"
            )
            for which, end in (("first", "lowest"), ("last", "highest"))
        },
        "specialisation": _variance(
            label="variance over topics of within-topic attention",
            meaning="variance over topics of the within ratio of each topic's queries, beyond its sampling variance",
            low=-0.25,
            outcome=True,
        ),
        "specialisation_raw": _variance(
            label="variance over topics of within-topic attention, sampling noise included",
            meaning="variance over topics of the within ratio of each topic's queries",
            low=0,
        ),
        "sink_rate": share("attention on position 0", "attention on position 0, mean over queries t ≥ 1", outcome=True),
        "previous_token": share(
            "attention on the previous token", "attention on position t − 1, mean over queries t ≥ 1", outcome=True
        ),
        "induction": share(
            "induction",
            "attention on keys right behind earlier occurrences of the query's token (the query itself "
            "excluded), mean over queries that have such keys",
            outcome=True,
        ),
        **{
            f"{name}_top": share(
                f"{label} of its strongest head",
                f"largest {name} of any head, with that head's interval and null; p times the number of heads",
                low=-1,
                outcome=True,
            )
            for name, label in (
                ("selectivity", "topic selectivity"),
                ("previous_token", "attention on the previous token"),
                ("induction", "induction"),
                ("sink_rate", "attention on position 0"),
            )
        },
        "distance_tokens": Metric(
            label="attention distance",
            meaning="mean distance of what is attended, Σ A_tk (t − k), over queries t ≥ 1",
            low=0,
            unit="tokens",
            digits=2,
            outcome=True,
        ),
    }

    __call__ = measured_in("headdyn.analysis.attention_measure")
