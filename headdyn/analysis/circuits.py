"""QK and OV circuits from the weights alone: spectra, copying, and head similarity free of gauge (science.md §8).

Letters as in models/decoder.py; N heads of the whole model, numbered through the layers.

A head's circuits are W_QK = left_q right_kᵀ and W_OV = left_v right_oᵀ with thin [D, d] factors; the D×D products are
never formed. What is linear is folded into the factors: the preceding norm's gain, LayerNorm's centring (of what the
head reads, and of what it writes, since every reader centres), and the q- and k-norm's gains. Not linear, so left out:
the division by the norm, of the residual stream and of q and k. Omitted too: biases of q, k, v and of LayerNorm, which
add terms that are linear in one side only, and the rotation, except where a relative offset is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

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
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.statistics import bootstrap_interval, draws_test
from headdyn.data.comparisons import Prompts
from headdyn.data.corpus import Corpus
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder

_NULL_READOUTS = 32  # random heads that are read in the vocabulary: their mean is a figure's note


@dataclass(frozen=True, kw_only=True)
class Circuits:
    """What every head's weights can do, against random heads of the same shape and grouping.

    `null_draws` random heads (at least; whole random models are drawn) give the null column, their mean, and p: the
    share of them at least as far from that mean. A head's weights are one unit and carry no interval; model rows are
    means over heads with an interval over heads. `offsets` are the relative positions, in tokens, at which QK
    similarity is repeated with RoPE's rotation. Tables: `spectra`, one row per singular value, `head_similarity`, one
    per pair of heads, and `readouts`, one per token among the `tokens` furthest along the top `directions` of a head.
    Raises ValueError for settings that give no null.
    """

    null_draws: int = 200
    offsets: tuple[int, ...] = (1, 8)
    directions: int = 3
    tokens: int = 8

    rows: ClassVar[Literal["head"]] = "head"
    needs: ClassVar[frozenset[str]] = frozenset()
    metrics: ClassVar[Mapping[str, Metric]] = {
        "qk_effective_rank": Metric(
            meaning="effective rank of W_QK: exp of the entropy of its singular values", low=1, unit="dimensions"
        ),
        "ov_effective_rank": Metric(
            meaning="effective rank of W_OV: exp of the entropy of its singular values", low=1, unit="dimensions"
        ),
        "copying_score": Metric(meaning="Σλ / Σ|λ| over the eigenvalues of W_E W_OV W_U", low=-1, high=1),
        "qk_similarity": Metric(
            meaning="mean cosine of W_QK with those of the layer's other heads", low=-1, high=1, unit="cosine"
        ),
        "ov_similarity": Metric(
            meaning="mean cosine of W_OV with those of the layer's other heads", low=-1, high=1, unit="cosine"
        ),
        "qk_nearest": Metric(
            meaning="largest cosine of W_QK with that of any other head", low=-1, high=1, unit="cosine"
        ),
        "ov_nearest": Metric(
            meaning="largest cosine of W_OV with that of any other head", low=-1, high=1, unit="cosine"
        ),
    }

    def __post_init__(self) -> None:
        if self.null_draws < 100:
            raise ValueError(f"analysis.circuits.null_draws={self.null_draws} must be at least 100 random heads")
        if any(offset < 1 for offset in self.offsets):
            raise ValueError(f"analysis.circuits.offsets={self.offsets} must be 1 or more tokens; 0 is always there")
        for name in ("directions", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"analysis.circuits.{name}={getattr(self, name)} must be at least 1")

    def __call__(self, decoder: Decoder, material: Corpus | Prompts, generator: np.random.Generator) -> Findings:
        """Head rows and model rows for every metric, the three tables, five figures; `material` names the tokens."""
        c = decoder.config
        circuits = _whole_model(decoder)
        similarity = {name: cosines(factors) for name, factors in circuits.items()}
        for offset in self.offsets if c.rotary_dim else ():
            similarity[f"qk offset {offset}"] = cosines(_whole_model(decoder, offset)["qk"])
        spectra = {name: singular_values(factors) for name, factors in circuits.items()}
        tokens_DD = unembed_embed(decoder)
        measured = _measures(c, circuits, spectra, similarity, tokens_DD)

        nulls: list[dict[str, Tensor]] = []
        null_spectra: list[dict[str, Tensor]] = []
        null_similarity: list[dict[str, Tensor]] = []
        for _ in range(-(-self.null_draws // (c.num_layers * c.num_heads))):
            drawn = {name: _on(tokens_DD, factors) for name, factors in random_circuits(c, generator).items()}
            null_spectra.append({name: singular_values(factors) for name, factors in drawn.items()})
            null_similarity.append({name: cosines(factors) for name, factors in drawn.items()})
            nulls.append(_measures(c, drawn, null_spectra[-1], null_similarity[-1], tokens_DD))
        table = HeadTable.concat(
            _rows(name, _numpy(value_N), _numpy(torch.cat([null[name] for null in nulls])), c, generator)
            for name, value_N in measured.items()
        ).with_q()
        readouts = {name: self._readouts(name, circuits[name], decoder, material) for name in ("qk", "ov")}
        some = {name: Factors(f.left_NDd[:_NULL_READOUTS], f.right_NDd[:_NULL_READOUTS]) for name, f in drawn.items()}
        by_chance = {name: furthest(self._readouts(name, some[name], decoder, material)) for name in readouts}
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
                "spectra": _spectra_table(spectra, c),
                "head_similarity": _similarity_table(similarity, c),
                "readouts": pa.concat_tables(readouts.values(), promote_options="default"),
            },
        )

    def _readouts(self, name: str, factors: Factors, decoder: Decoder, material: Corpus | Prompts) -> pa.Table:
        return token_readouts(
            name, factors, decoder, directions=self.directions, tokens=self.tokens, text=token_names(material)
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


def _on(like: Tensor, factors: Factors) -> Factors:
    return Factors(factors.left_NDd.to(like.device), factors.right_NDd.to(like.device))


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
) -> HeadTable:
    """Head rows with null and p, and the model row: mean over heads, interval over heads."""
    value_LH = value_N.reshape(config.num_layers, config.num_heads)
    null_R = null_R[~np.isnan(null_R)]
    null = null_R.mean() if len(null_R) else np.nan
    p_LH = np.where(np.isnan(value_LH), np.nan, draws_test(value_LH, null_R)) if len(null_R) else None
    there_N = value_N[~np.isnan(value_N)]
    low, high = bootstrap_interval(there_N, generator) if len(there_N) else (np.nan, np.nan)
    reason = "the circuit is zero, or there is no other head to compare with"
    mean = there_N.mean() if len(there_N) else np.nan
    return HeadTable.concat(
        [
            HeadTable.per_head(name, value_LH, null=null, p=p_LH, n=1, unit="head", reason=reason),
            HeadTable.whole(
                name, mean, ci_low=low, ci_high=high, null=null, n=len(there_N), unit="head", reason=reason
            ),
        ]
    )


def _spectra_table(spectra: Mapping[str, Tensor], config: DecoderConfig) -> pa.Table:
    layer_N, head_N = np.divmod(np.arange(config.num_layers * config.num_heads), config.num_heads)
    parts = []
    for name, values_Nd in spectra.items():
        count, width = values_Nd.shape
        columns = {
            "circuit": np.full(count * width, name),
            "layer": layer_N.repeat(width),
            "head": head_N.repeat(width),
            "index": np.tile(np.arange(width), count),
            "singular_value": _numpy(values_Nd).ravel(),
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)


def _similarity_table(similarity: Mapping[str, Tensor], config: DecoderConfig) -> pa.Table:
    layer_N, head_N = np.divmod(np.arange(config.num_layers * config.num_heads), config.num_heads)
    first, second = np.triu_indices(len(layer_N), 1)
    parts = []
    for name, cosine_NN in similarity.items():
        columns = {
            "circuit": np.full(len(first), name),
            "layer_a": layer_N[first],
            "head_a": head_N[first],
            "layer_b": layer_N[second],
            "head_b": head_N[second],
            "cosine": _numpy(cosine_NN)[first, second],
        }
        parts.append(pa.table(columns))
    return pa.concat_tables(parts)
