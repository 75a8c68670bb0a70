"""Rows, tables and figures of the heads' circuits, measured on the model and on random heads (science.md §8).

Letters as in models/decoder.py; N heads of the whole model, numbered through the layers; R random heads.

A head's circuits are W_QK = left_q right_kᵀ and W_OV = left_v right_oᵀ with thin [D, d] factors; the D×D products are
never formed. What is linear is folded into the factors: the preceding norm's gain, LayerNorm's centring (of what the
head reads, and of what it writes, since every reader centres), and the q- and k-norm's gains. Not linear, so left out:
the division by the norm, of the residual stream and of q and k. Left out too: biases of q, k, v and of LayerNorm, which
add terms that are linear in one side only, and the rotation, except where a relative offset is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from headdyn.analysis.circuit_factors import (
    Factors,
    copying_scores,
    cosines,
    effective_rank,
    folded,
    random_circuits,
    singular_values,
    unembed_embed,
)
from headdyn.analysis.circuit_figures import (
    clusters_figure,
    heads_figure,
    readouts_figure,
    similarity_figure,
    spectra_figure,
)
from headdyn.analysis.circuit_readouts import furthest, token_names, token_readouts
from headdyn.analysis.circuits import Circuits
from headdyn.analysis.estimates import means
from headdyn.core.records import Findings, HeadTable
from headdyn.core.statistics import draws_test
from headdyn.data.comparisons import Prompts
from headdyn.data.corpus import Corpus
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder

_NULL_READOUTS = 32  # random heads that are read in the vocabulary: their mean is a figure's note
_ABSENT = "the circuit is zero, or there is no other head to compare with"


def measure(
    settings: Circuits, decoder: Decoder, material: Corpus | Prompts, generator: np.random.Generator
) -> Findings:
    """Head rows and model rows of every metric, the three tables, five figures; `material` names the tokens."""
    c = decoder.config
    circuits = _whole_model(decoder)
    similarity = {name: cosines(factors) for name, factors in circuits.items()}
    for offset in settings.offsets if c.rotary_dim else ():
        similarity[f"qk offset {offset}"] = cosines(_whole_model(decoder, offset)["qk"])
    spectra = {name: singular_values(factors) for name, factors in circuits.items()}
    tokens_DD = unembed_embed(decoder)
    measured = _measures(c, circuits, spectra, similarity, tokens_DD)

    nulls: list[dict[str, Tensor]] = []
    null_spectra: list[dict[str, Tensor]] = []
    null_similarity: list[dict[str, Tensor]] = []
    for _ in range(-(-settings.null_draws // (c.num_layers * c.num_heads))):
        drawn = {name: factors.to(tokens_DD.device) for name, factors in random_circuits(c, generator).items()}
        null_spectra.append({name: singular_values(factors) for name, factors in drawn.items()})
        null_similarity.append({name: cosines(factors) for name, factors in drawn.items()})
        nulls.append(_measures(c, drawn, null_spectra[-1], null_similarity[-1], tokens_DD))
    rows = []
    for name, value_N in measured.items():
        null_R = torch.cat([null[name] for null in nulls])
        rows += _rows(name, _numpy(value_N), _numpy(null_R), c, generator)
    table = HeadTable.concat(rows).with_q()

    def readouts_of(name: str, factors: Factors) -> pa.Table:
        text = token_names(material)
        return token_readouts(name, factors, decoder, directions=settings.directions, tokens=settings.tokens, text=text)

    readouts = {name: readouts_of(name, circuits[name]) for name in ("qk", "ov")}
    by_chance = {name: furthest(readouts_of(name, drawn[name][:_NULL_READOUTS])) for name in readouts}
    matrices = {name: _numpy(cosine_NN) for name, cosine_NN in similarity.items()}
    null_matrices = [{name: _numpy(cosine_NN) for name, cosine_NN in null.items()} for null in null_similarity]
    return Findings(
        table=table,
        figures={
            "heads": heads_figure(table, c.head_dim),
            "spectra": spectra_figure(spectra, null_spectra),
            "similarity": similarity_figure(matrices, null_matrices, c.num_heads),
            "clusters": clusters_figure(matrices, null_matrices, c.num_heads),
            "readouts": readouts_figure(readouts, by_chance),
        },
        tables={
            "spectra": pa.concat_tables(_spectrum_rows(spectra, c)),
            "head_similarity": pa.concat_tables(_similarity_rows(matrices, c)),
            "readouts": pa.concat_tables(readouts.values(), promote_options="default"),
        },
    )


def _whole_model(decoder: Decoder, offset: int = 0) -> dict[str, Factors]:
    """The circuits of all layers' heads, stacked."""
    layers = [folded(decoder, layer, offset) for layer in range(decoder.config.num_layers)]
    return {
        name: Factors(
            torch.cat([layer[name].left_NDd for layer in layers]),
            torch.cat([layer[name].right_NDd for layer in layers]),
        )
        for name in ("qk", "ov")
    }


def _numpy(x: Tensor) -> np.ndarray:
    return x.cpu().numpy()


def _measures(
    config: DecoderConfig,
    circuits: Mapping[str, Factors],
    spectra: Mapping[str, Tensor],
    similarity: Mapping[str, Tensor],
    tokens_DD: Tensor,
) -> dict[str, Tensor]:
    """Every metric by name, [N]; NaN where a circuit is zero or a head has no other to compare with."""
    measures = {f"{name}_effective_rank": effective_rank(spectra[name]) for name in ("qk", "ov")}
    measures["copying_score"] = copying_scores(circuits["ov"], tokens_DD)
    layer_N = torch.arange(config.num_layers, device=tokens_DD.device).repeat_interleave(config.num_heads)
    itself_NN = torch.eye(len(layer_N), dtype=torch.bool, device=tokens_DD.device)
    peers_NN = (layer_N[:, None] == layer_N) & ~itself_NN
    for name in ("qk", "ov"):
        cosine_NN = similarity[name]
        measures[f"{name}_similarity"] = (cosine_NN * peers_NN).sum(1) / peers_NN.sum(1)
        nearest_N = cosine_NN.masked_fill(itself_NN, -torch.inf).amax(1)
        measures[f"{name}_nearest"] = nearest_N.where(nearest_N.isfinite(), torch.nan)
    return measures


def _rows(
    name: str, value_N: np.ndarray, null_R: np.ndarray, config: DecoderConfig, generator: np.random.Generator
) -> list[HeadTable]:
    """Head rows with null and p, and the model row: mean over heads, interval over heads."""
    value_LH = value_N.reshape(config.num_layers, config.num_heads)
    null_R = null_R[~np.isnan(null_R)]
    null = null_R.mean() if len(null_R) else np.nan
    p_LH = np.where(np.isnan(value_LH), np.nan, draws_test(value_LH, null_R)) if len(null_R) else np.nan
    defined_N = value_N[~np.isnan(value_N)]
    rows = [HeadTable.per_head(name, value_LH, null=null, p=p_LH, n=1, unit="head", reason=_ABSENT)]
    if len(defined_N):
        rows.append(means(defined_N, generator).rows(name, null=null, unit="head"))
    else:
        rows.append(HeadTable.whole(name, None, null=null, n=0, unit="head", reason=_ABSENT))
    return rows


def _spectrum_rows(spectra: Mapping[str, Tensor], config: DecoderConfig) -> Iterator[pa.Table]:
    """One row per singular value, a table for each circuit."""
    layer_N, head_N = np.divmod(np.arange(config.num_layers * config.num_heads), config.num_heads)
    for name, values_Nd in spectra.items():
        count, width = values_Nd.shape
        columns = {
            "circuit": np.full(count * width, name),
            "layer": layer_N.repeat(width),
            "head": head_N.repeat(width),
            "index": np.tile(np.arange(width), count),
            "singular_value": _numpy(values_Nd).ravel(),
        }
        yield pa.table(columns)


def _similarity_rows(similarity: Mapping[str, np.ndarray], config: DecoderConfig) -> Iterator[pa.Table]:
    """One row per pair of heads, a table for each circuit."""
    layer_N, head_N = np.divmod(np.arange(config.num_layers * config.num_heads), config.num_heads)
    a, b = np.triu_indices(len(layer_N), 1)
    pairs = {"layer_a": layer_N[a], "head_a": head_N[a], "layer_b": layer_N[b], "head_b": head_N[b]}
    for name, cosine_NN in similarity.items():
        yield pa.table({"circuit": np.full(len(a), name), **pairs, "cosine": cosine_NN[a, b]})
