"""Linear probes: which layers of the residual stream tell the topic of a token (science.md §7)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from headdyn.analysis.contract import measured_in
from headdyn.analysis.metrics import BootstrapDraws, SignFlips, share, share_difference
from headdyn.core.records import Metric
from headdyn.core.settings import Count, settings
from headdyn.data.corpus import Corpus

_FEWEST_SEQUENCES = 12  # parts of 4, 1 and 6 by default; with fewer, neither penalty nor intervals mean anything
# Reference lines for a probe's accuracy: their metrics, without `probe_`, and their labels.
REFERENCES = {
    "ceiling": "Bayes ceiling",
    "majority": "commonest topic",
    "token_identity": "token alone",
    "position": "position alone",
}


@settings
class TopicProbes:
    """Topic probes at every place in the residual stream, with baselines, control task and ceiling.

    Sequences of the validation split, on which the model was not trained, are drawn at random into three parts: probes
    are fitted on `tokens_per_sequence` positions (or all) of each of `fit_sequences`, the L2 penalty is chosen from
    `penalties` on as many positions of each of `choose_sequences`, and everything is scored on all positions of
    `test_sequences`. A smaller validation split is divided in the same proportions. Units of intervals (95 %, BCa) and
    of p (sign flips of the difference to the best baseline) are test sequences.

    The null column of accuracies is the best of three baselines: the majority topic, the token's identity alone and its
    position alone, the latter two as smoothed tables over every token of `fit_sequences`. The control task (Hewitt &
    Liang 2019) gives each token type a random topic and fits the same probe to it; selectivity is the accuracy minus
    the accuracy on that task. The ceiling is the accuracy of the Bayes filter's posterior on the same test tokens,
    absent if the corpus has no such filter. The null of the accuracy on one topic's tokens is how often the same probe
    gives that topic at the same positions of the other test sequences.
    """

    fit_sequences: Count = 96
    choose_sequences: Count = 32
    test_sequences: Count = 128
    tokens_per_sequence: Count = 64
    penalties: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (0.1, 0.01, 0.001)
    max_iterations: Count = 1_000
    sign_flips: SignFlips = 9_999
    bootstrap_draws: BootstrapDraws = 2_000

    needs: ClassVar[frozenset[str]] = frozenset({"corpus", "topics"})
    metrics: ClassVar[Mapping[str, Metric]] = {
        "probe_accuracy": share("probe accuracy", "share of test tokens whose topic the probe gives"),
        "probe_accuracy_middle": share(
            "probe accuracy at the middle layer", "probe_accuracy after L // 2 layers", outcome=True
        ),
        **{
            f"probe_accuracy_{which}_topic": share(
                f"probe accuracy on the {which} topic",
                f"probe_accuracy_middle of the tokens of the topic with the {end} id",
            )
            for which, end in (("first", "lowest"), ("last", "highest"))
        },
        "probe_control_accuracy": share(
            "probe accuracy on the control task", "accuracy on one random topic per token type"
        ),
        "probe_selectivity": share_difference(
            "probe accuracy beyond the control task", "probe_accuracy minus probe_control_accuracy", digits=1
        ),
        "probe_majority": share("accuracy of the commonest topic", "accuracy of always giving the commonest topic"),
        "probe_token_identity": share("accuracy from the token alone", "accuracy from the token alone"),
        "probe_position": share("accuracy from the position alone", "accuracy from the position alone"),
        "probe_ceiling": share("accuracy of the Bayes filter", "accuracy of the Bayes filter's topic posterior"),
    }

    def check(self, corpus: Corpus) -> None:
        """Raise ValueError if the validation split is too small to be divided into three parts."""
        if len(corpus.val) < _FEWEST_SEQUENCES:
            raise ValueError(
                f"topic probes need at least {_FEWEST_SEQUENCES} validation sequences (to fit, choose and test), but "
                f"the corpus has {len(corpus.val)}; bring more text, or leave probes out of analysis=[...]"
            )

    __call__ = measured_in("headdyn.analysis.probes_measure")
