"""Rows, tables and figures of the heads' circuits, measured on the model and on random heads (science.md §8).

Letters as in models/decoder.py; N heads of the whole model, numbered through the layers; R random heads.

Linear operations are folded into the factors of circuits: the preceding norm's gain, LayerNorm's centring (of the
head's input, and of its output, since every reader of the residual stream centres), and the q- and k-norm's gains. Left
out are the norms' divisions, which are not linear; the biases of q, k, v and of LayerNorm, which add terms that are
linear in one side only; and the rotation, except where a relative offset is named.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from headdyn.analysis import circuit_factors, circuit_figures
from headdyn.analysis.circuit_factors import Factors
from headdyn.analysis.circuit_readouts import furthest, token_names, token_readouts
from headdyn.analysis.circuits import Circuits
from headdyn.analysis.estimates import means
from headdyn.core.kept_parts import Part, parts
from headdyn.core.records import Findings, HeadTable
from headdyn.core.statistics import draws_test
from headdyn.data.corpus import Corpus
from headdyn.data.prompts import Prompts
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder

_NULL_READOUTS = 32  # random heads that are read in the vocabulary: their mean is a figure's note
_ABSENT = "the circuit is zero, or there is no other head to compare with"


def measure(
    settings: Circuits, decoder: Decoder, material: Corpus | Prompts, generator: np.random.Generator
) -> Findings:
    """Head rows and model rows of every metric, the three tables, five figures; `material` has the tokens' texts."""
    c = decoder.config
    circuits, unembed_embed_DD = _whole_model(decoder), circuit_factors.unembed_embed(decoder)
    offsets = settings.offsets if c.rotary_dim else ()
    seeds = generator.integers(2**63, size=-(-settings.null_draws // (c.num_layers * c.num_heads))).tolist()

    def random_heads(seed: int) -> dict[str, Factors]:
        heads = circuit_factors.random_circuits(c, np.random.default_rng(seed))
        return {name: factors.to(unembed_embed_DD.device) for name, factors in heads.items()}

    def compute(at: slice) -> Part:
        if at.start == 0:
            return measured(c, circuits, unembed_embed_DD)
        if at.start <= len(offsets):
            offset = offsets[at.start - 1]
            cosine_NN = circuit_factors.cosines(_whole_model(decoder, offset)["qk"])
            return {f"similarity qk offset {offset}": cosine_NN.cpu().numpy()}
        return measured(c, random_heads(seeds[at.start - 1 - len(offsets)]), unembed_embed_DD)

    done = [part for _, part in parts("comparing heads", "models", 1 + len(offsets) + len(seeds), 1, compute)]
    model = {name: array for part in done[: 1 + len(offsets)] for name, array in part.items()}
    null = done[1 + len(offsets) :]
    spectra, similarity = _of_kind("spectra", model), _of_kind("similarity", model)
    rows: list[HeadTable] = []
    for name, value_LH in _of_kind("values", model).items():
        rows += _rows(name, value_LH, np.concatenate([part[f"values {name}"].ravel() for part in null]), generator)
    table = HeadTable.concat(rows).with_q()
    text = token_names(material)

    def read(name: str, factors: Factors) -> pa.Table:
        return token_readouts(name, factors, decoder, directions=settings.directions, tokens=settings.tokens, text=text)

    readouts = {name: read(name, circuits[name]) for name in ("qk", "ov")}
    last = random_heads(seeds[-1])
    by_chance = {name: furthest(read(name, last[name][:_NULL_READOUTS])) for name in readouts}
    return Findings(
        table=table,
        figures={
            "heads": circuit_figures.heads_figure(table, c.head_dim),
            "spectra": circuit_figures.spectra_figure(spectra, [_of_kind("spectra", part) for part in null]),
            **circuit_figures.similarity_figures(
                similarity, [_of_kind("similarity", part) for part in null], c.num_heads
            ),
            "readouts": circuit_figures.readouts_figure(readouts, by_chance),
        },
        tables={
            "spectra": _spectra_table(spectra, c),
            "head_similarity": _similarity_table(similarity, c),
            "readouts": pa.concat_tables(readouts.values(), promote_options="default"),
        },
    )


def _of_kind(kind: str, part: Part) -> dict[str, np.ndarray]:
    """The arrays of one kind that `measured` returned, by name."""
    return {name.removeprefix(f"{kind} "): value for name, value in part.items() if name.startswith(f"{kind} ")}


def measured(config: DecoderConfig, circuits: Mapping[str, Factors], unembed_embed_DD: Tensor) -> Part:
    """The measures of a whole model's circuits, or of random ones; `unembed_embed_DD` (W_U W_E) is for copying scores.

    "values METRIC" holds a metric, [L, H], NaN where a circuit is zero or a head has no other to compare with; "spectra
    CIRCUIT" and "similarity CIRCUIT" hold singular values [N, d] and cosines [N, N].
    """
    spectra = {name: circuit_factors.singular_values(factors) for name, factors in circuits.items()}
    similarity = {name: circuit_factors.cosines(factors) for name, factors in circuits.items()}
    values = {f"{name}_effective_rank": circuit_factors.effective_rank(spectra[name]) for name in circuits}
    values["copying_score"] = circuit_factors.copying_scores(circuits["ov"], unembed_embed_DD)
    layer_N = torch.arange(config.num_layers, device=unembed_embed_DD.device).repeat_interleave(config.num_heads)
    same_head_NN = torch.eye(len(layer_N), dtype=torch.bool, device=unembed_embed_DD.device)
    peers_NN = (layer_N[:, None] == layer_N) & ~same_head_NN
    for name, cosine_NN in similarity.items():
        values[f"{name}_similarity"] = (cosine_NN * peers_NN).sum(1) / peers_NN.sum(1)
        nearest_N = cosine_NN.masked_fill(same_head_NN, -torch.inf).amax(1)
        values[f"{name}_nearest"] = nearest_N.where(nearest_N.isfinite(), torch.nan)
    values = {name: value_N.view(config.num_layers, -1) for name, value_N in values.items()}
    kinds = {"values": values, "spectra": spectra, "similarity": similarity}
    return {f"{kind} {name}": value.cpu().numpy() for kind, arrays in kinds.items() for name, value in arrays.items()}


def _whole_model(decoder: Decoder, offset: int = 0) -> dict[str, Factors]:
    """The circuits of all layers' heads, stacked."""
    layers = [circuit_factors.folded(decoder, layer, offset) for layer in range(decoder.config.num_layers)]
    return {name: Factors.stacked([layer[name] for layer in layers]) for name in ("qk", "ov")}


def _rows(name: str, value_LH: np.ndarray, null_R: np.ndarray, generator: np.random.Generator) -> Sequence[HeadTable]:
    """Head rows with null and p, and the model row: mean over heads, interval over heads."""
    null_R = null_R[~np.isnan(null_R)]
    null = null_R.mean() if len(null_R) else np.nan
    p_LH = np.where(np.isnan(value_LH), np.nan, draws_test(value_LH, null_R)) if len(null_R) else np.nan
    defined_N = value_LH[~np.isnan(value_LH)]
    heads = HeadTable.per_head(name, value_LH, null=null, p=p_LH, n=1, unit="head", reason=_ABSENT)
    if len(defined_N):
        return heads, means(defined_N, generator).rows(name, null=null, unit="head")
    return heads, HeadTable.whole(name, None, null=null, n=0, unit="head", reason=_ABSENT)


def _spectra_table(spectra: Mapping[str, np.ndarray], config: DecoderConfig) -> pa.Table:
    tables = []
    for name, values_Nd in spectra.items():
        layer, head, index = np.indices((config.num_layers, config.num_heads, values_Nd.shape[1])).reshape(3, -1)
        columns = {"circuit": np.full(len(layer), name), "layer": layer, "head": head, "index": index}
        tables.append(pa.table({**columns, "singular_value": values_Nd.ravel()}))
    return pa.concat_tables(tables)


def _similarity_table(similarity: Mapping[str, np.ndarray], config: DecoderConfig) -> pa.Table:
    layer_N, head_N = np.divmod(np.arange(config.num_layers * config.num_heads), config.num_heads)
    a, b = np.triu_indices(len(layer_N), 1)
    pairs = {"layer_a": layer_N[a], "head_a": head_N[a], "layer_b": layer_N[b], "head_b": head_N[b]}
    return pa.concat_tables(
        pa.table({"circuit": np.full(len(a), name), **pairs, "cosine": cosine_NN[a, b]})
        for name, cosine_NN in similarity.items()
    )
