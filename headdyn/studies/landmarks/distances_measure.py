"""Distances of a model from exact predictors, with intervals over sequences. Letters as in landmarks/predictors.py."""

from collections.abc import Mapping

import numpy as np
import torch

from headdyn.analysis.estimates import means
from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.records import HeadTable
from headdyn.models.decoder import Decoder
from headdyn.studies.landmarks.distances import Distances
from headdyn.studies.landmarks.predictors import divergence

_BATCH_TOKENS = 2**14


def distances(
    settings: Distances,
    decoder: Decoder,
    tokens_NT: np.ndarray,
    laws: Mapping[str, np.ndarray],
    generator: np.random.Generator,
    where: str = "",
) -> tuple[HeadTable, Figure]:
    """Model rows `kl_NAMEwhere_nats` (intervals: 95 %, BCa over sequences), and a figure of the distances by position.

    `laws` are what each predictor says of these sequences, [N, T-1, V]; `where` says what they are, as `_fresh`.
    """
    log_model_NTV = log_laws(decoder, tokens_NT)
    kl = {name: divergence(law_NTV, log_model_NTV) for name, law_NTV in laws.items()}
    rows = [
        means(kl_NT.mean(1), generator, draws=settings.bootstrap_draws).rows(f"kl_{name}{where}_nats", null=0.0)
        for name, kl_NT in kl.items()
    ]
    position_T = np.arange(1, tokens_NT.shape[1])
    figure = curves(
        [Curve(label=name.replace("_", " "), x=position_T, y=kl_NT.mean(0)) for name, kl_NT in kl.items()],
        xlabel="position in the sequence (tokens)",
        ylabel="KL(predictor ‖ model), nats",
        title=f"Distance from exact predictors by position{where.replace('_', ', ')}",
        references={"the predictor itself": 0.0},
        caption="How far the model's law of the next token is from each exact predictor's, mean over sequences. The "
        "predictor whose curve is lowest is the one that the model is most like.",
    )
    return HeadTable.concat(rows), figure


@torch.no_grad()
def log_laws(decoder: Decoder, tokens_NT: np.ndarray) -> np.ndarray:
    """The model's log-probabilities of the next token, float64 [N, T-1, V]."""
    device = decoder.embed.weight.device
    batches = torch.from_numpy(tokens_NT).split(max(1, _BATCH_TOKENS // tokens_NT.shape[1]))
    parts = [decoder(ids_BT.to(device), None)[:, :-1].double().log_softmax(-1).cpu().numpy() for ids_BT in batches]
    return np.concatenate(parts)
