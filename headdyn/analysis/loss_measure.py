"""Held-out losses of a model, and of the exact Bayes filter on the same sequences. N sequences of T tokens."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from headdyn.analysis.estimates import means, ratio_units
from headdyn.analysis.figure_parts import topic_intervals
from headdyn.analysis.loss import HeldOutLoss
from headdyn.analysis.sequences import Sequences
from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.records import Findings, HeadTable
from headdyn.core.statistics import ratio_contributions
from headdyn.data.corpus import Corpus
from headdyn.models.decoder import Decoder

_BATCH_TOKENS, _BATCH_LOGITS = 2**14, 2**26
_NO_TOKENS = "no held-out token is of this topic"
_WITHOUT_FILTER = {"loss_nats", "repeated_pairs_nats", "repeat_gain_nats", "in_context_nats"}
_BY_TOPIC = (
    "Loss above the exact floor on the tokens of each topic. A model that has forgotten the other topics, because its "
    "training ended on the last one, loses least on the last; a model that learned worse because of its order of data "
    "loses on all topics alike."
)


def measure(settings: HeldOutLoss, decoder: Decoder, corpus: Corpus, generator: np.random.Generator) -> Findings:
    """Model rows, and the loss by position in the sequence, which shows how topics are inferred in context."""

    def row(metric: str, values_N: np.ndarray, null: float, reason: str = _NO_TOKENS) -> HeadTable:
        return means(values_N, generator, draws=settings.bootstrap_draws).rows(metric, null=null, reason=reason)

    loss_NT = token_losses(decoder, corpus, settings.sequences)
    tokens_NT = np.asarray(corpus.val.tokens_NT[: settings.sequences])
    position_T = np.arange(1, loss_NT.shape[1] + 1)
    model_N, random = np.nanmean(loss_NT, axis=1), corpus.random_nats
    parts = [row("loss_nats", model_N, random)]
    figures: dict[str, Figure] = {}
    lines = [Curve(label="model", x=position_T, y=np.nanmean(loss_NT, axis=0))]
    if corpus.oracle is None:
        reason = "the corpus has no exact law to compare with"
        unknown = sorted(HeldOutLoss.metrics.keys() - _WITHOUT_FILTER)
        parts += [HeadTable.whole(metric, None, reason=reason) for metric in unknown]
    else:
        bayes_NT, _ = corpus.oracle.filter(tokens_NT)
        bayes_N = bayes_NT.mean(axis=1)
        parts.append(row("excess_nats", model_N - bayes_N, 0.0))
        parts.append(row("gap_closed", ratio_contributions(random - model_N, random - bayes_N), 0.0))
        mixture = corpus.reference_nats.get("mixture")
        if mixture is None:
            parts.append(HeadTable.whole("gap_closed_from_mixture", None, reason="the corpus has no topic-blind line"))
        else:
            closed = ratio_contributions(mixture - model_N, mixture - bayes_N)
            parts.append(row("gap_closed_from_mixture", closed, 0.0))
        excess_NT, topics_NT = loss_NT - bayes_NT, corpus.val.topics_NT[: len(loss_NT), 1:]
        of_topic = [topics_NT == topic for topic in range(corpus.num_topics)]
        by_topic = np.stack([ratio_units((excess_NT * at_NT).sum(1), at_NT.sum(1)) for at_NT in of_topic], axis=1)
        excess_S = means(by_topic, generator, draws=settings.bootstrap_draws)
        parts.append(row("first_topic_excess_nats", by_topic[:, 0], 0.0))
        parts.append(row("last_topic_excess_nats", by_topic[:, -1], 0.0))
        parts.append(row("forgetting_nats", by_topic[:, 0] - by_topic[:, -1], 0.0))
        figures["by_topic"] = topic_intervals(
            corpus.topic_names, excess_S, "loss above the floor (nats)", scale=1, caption=_BY_TOPIC
        )
        lines.append(Curve(label="Bayes filter", x=position_T, y=bayes_NT.mean(axis=0)))
    first_NT = first_times(tokens_NT)
    first_loss_NT = np.take_along_axis(loss_NT, first_NT, axis=1)
    # Pairs of equal tokens are left out: an untrained model with tied embeddings predicts the present token again.
    different_NT = tokens_NT[:, 1:] != tokens_NT[:, :-1]
    repeats_NT = (first_NT < np.arange(first_NT.shape[1])) & different_NT & ~np.isnan(loss_NT + first_loss_NT)
    repeated_N, first_N = (_mean_where(losses_NT, repeats_NT) for losses_NT in (loss_NT, first_loss_NT))
    no_repeats = "no pair of two different tokens stands twice in a sequence"
    parts.append(row("repeated_pairs_nats", repeated_N, float(first_N.mean()), no_repeats))
    parts.append(row("repeat_gain_nats", first_N - repeated_N, 0.0, no_repeats))
    share_T = position_T / len(position_T)
    late_T, early_T = share_T > 0.9, (share_T > 0.05) & (share_T <= 0.15)
    late_N, early_N = _mean_where(loss_NT, late_T), _mean_where(loss_NT, early_T)
    parts.append(row("in_context_nats", late_N - early_N, 0.0, "sequences are shorter than ten tokens"))
    figure = curves(
        lines,
        xlabel="position in the sequence (tokens)",
        ylabel="loss (nats)",
        title="Loss by position",
        references={name: level for name, level in corpus.reference_nats.items() if name != "floor"},
        caption="Held-out loss by position, mean over sequences. It falls where the model infers the topic from what "
        "it has read; the level of random guessing, and of the best model that ignores topics, are the horizontal "
        "lines.",
    )
    return Findings(table=HeadTable.concat(parts), figures={"by_position": figure, **figures})


def first_times(tokens_NT: np.ndarray) -> np.ndarray:
    """Where the pair of tokens t and t + 1 first occurs in its sequence: the position of its first token, [N, T-1]."""
    tokens_NT = tokens_NT.astype(np.int64)
    pairs_NT = tokens_NT[:, :-1] << 32 | tokens_NT[:, 1:]
    first_NT = np.empty_like(pairs_NT)
    for pairs_T, first_T in zip(pairs_NT, first_NT, strict=True):
        _, first, which_T = np.unique(pairs_T, return_index=True, return_inverse=True)
        first_T[:] = first[which_T]
    return first_NT


def _mean_where(loss_NT: np.ndarray, mask_NT: np.ndarray) -> np.ndarray:
    """Units [N] whose mean is the mean loss over all tokens in the mask ([N, T] or [T]); NaN if none has a loss."""
    counted_NT = mask_NT & ~np.isnan(loss_NT)
    return ratio_units(np.where(counted_NT, loss_NT, 0).sum(1), counted_NT.sum(1))


@torch.no_grad()
def token_losses(decoder: Decoder, corpus: Corpus, sequences: int) -> np.ndarray:
    """Held-out loss in nats of predicting token t + 1 from tokens 0..t, [N, T-1].

    Where attention stays inside documents, a document's first token cannot be predicted: NaN there.
    """
    chosen = Sequences.of(corpus, slice(sequences))
    at_once = min(_BATCH_TOKENS, _BATCH_LOGITS // corpus.vocab_size) // chosen.tokens_NT.shape[1]

    def losses(_: slice, tokens_BT: Tensor, documents_BT: Tensor | None) -> dict[str, np.ndarray]:
        logits_BTV = decoder(tokens_BT, documents_BT)[:, :-1].float()
        loss_BT = F.cross_entropy(logits_BTV.mT, tokens_BT[:, 1:], reduction="none").double()
        if documents_BT is not None:
            loss_BT[documents_BT[:, 1:] != documents_BT[:, :-1]] = torch.nan
        return {"loss": loss_BT.cpu().numpy()}

    done = chosen.parts(at_once, decoder.embed.weight.device, losses)
    return np.concatenate([part["loss"] for _, part in done])
