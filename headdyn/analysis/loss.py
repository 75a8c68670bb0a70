"""The model's loss beside what is possible: uniform guessing, the topic-blind mixture, and the exact Bayes floor."""

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.metrics import BootstrapDraws, nats, share
from headdyn.core.records import Metric
from headdyn.core.settings import settings


@settings
class HeldOutLoss:
    """Next-token loss on the first `sequences` (or all) of the validation split, paired with the Bayes filter's.

    Intervals (95 %, BCa) take sequences as units. The Bayes filter runs on the same sequences, so `excess_nats`, the
    model's loss above the filter's, is a paired difference. Metrics that need the filter are absent where the corpus
    has no exact law.

    Copying shows in the loss on pairs of two different tokens that occurred in the sequence before, compared with the
    same pairs' first occurrence (`repeated_pairs_nats`, `repeat_gain_nats`): a model that reads nothing but the present
    token has the same loss on both. Where random tokens are repeated, only induction predicts the second occurrence.
    `in_context_nats` is like the score of Olsson et al. 2022, the loss on the 500th of 512 tokens less that on the
    50th.
    """

    sequences: Annotated[int, Field(ge=2)] = 256
    bootstrap_draws: BootstrapDraws = 2_000

    needs: ClassVar[frozenset[str]] = frozenset({"corpus"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "loss_nats": nats(
            "held-out loss", "mean next-token loss on held-out sequences; null: uniform guessing", low=0, outcome=True
        ),
        "excess_nats": nats(
            "loss above the Bayes floor", "loss above the exact Bayes filter's on the same sequences", outcome=True
        ),
        "first_topic_excess_nats": nats(
            "loss above the floor, first topic",
            "excess_nats over tokens of the topic with the lowest id, with which a topic-ordered pass begins unless "
            "data_ordering.first_topic is set",
        ),
        "last_topic_excess_nats": nats(
            "loss above the floor, last topic",
            "excess_nats over tokens of the topic with the highest id, with which such a pass ends",
        ),
        "forgetting_nats": nats(
            "forgetting",
            "first_topic_excess_nats less last_topic_excess_nats; with data_ordering.first_topic set it is no "
            "forgetting, since passes then begin and end with other topics",
            outcome=True,
        ),
        "gap_closed": share(
            "gap closed",
            "(random − loss)/(random − Bayes loss) on the same sequences: 0 is guessing uniformly among what may come, "
            "the corpus's random_nats, and 1 the Bayes filter",
            low=-math.inf,
            high=1.05,
            outcome=True,
        ),
        "gap_closed_from_mixture": share(
            "gap from the mixture closed",
            "(mixture − loss)/(mixture − Bayes loss): 0 is the best topic-blind bigram, 1 the Bayes filter",
            low=-math.inf,
            high=1.05,
            outcome=True,
        ),
        "repeated_pairs_nats": nats(
            "loss on repeated pairs",
            "loss on tokens that end a pair of two different tokens which occurred in the sequence before; null: on "
            "the same pairs' first occurrences",
            low=0,
            outcome=True,
        ),
        "repeat_gain_nats": nats(
            "loss saved on a pair's repeat",
            "loss on a pair's second token at the pair's first occurrence in the sequence less that at each later one",
            outcome=True,
        ),
        "in_context_nats": nats(
            "in-context score",
            "loss on the last tenth of the positions less that around a tenth of them; below 0 context helps",
            outcome=True,
        ),
    }

    __call__ = measured_in("headdyn.analysis.loss_measure")
