import dataclasses

import numpy as np
import pytest
import torch

from headdyn.analysis.circuit_factors import (
    Factors,
    copying_scores,
    cosines,
    effective_rank,
    folded,
    singular_values,
    unembed_embed,
)
from headdyn.analysis.circuits import Circuits
from headdyn.core.settings import build
from headdyn.models.decoder import Decoder
from tests import small_models
from tests.analysis import tiny

LAYER, OFFSET = 1, 3
CONFIGS = dict(small_models.CONFIGS)
PLAIN = dataclasses.replace(small_models.MHA, qk_norm=False, rotary_fraction=0.0)


@torch.no_grad()
def without_biases(config) -> Decoder:
    decoder = small_models.drawn(config)
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    return decoder


def dense(factors: Factors) -> torch.Tensor:
    return factors.left_NDd @ factors.right_NDd.mT


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.pow(2).mean(-1, keepdim=True).sqrt()


@pytest.fixture(params=CONFIGS)
def traced(request):
    """A decoder without biases, one traced sequence, and what its layer reads: x / σ, uncentred and without gain; x itself
    where the norm stands behind attention."""
    decoder = without_biases(dataclasses.replace(CONFIGS[request.param], norm_eps=1e-12, sliding_window=None))
    with torch.no_grad():
        sites = ("resid_pre", "q", "k", "pattern", "z", "attn_out")
        trace = decoder.trace(small_models.tokens(1, 9), sites=sites, logits=None)
    x_TD = trace["resid_pre", LAYER][0]
    if decoder.config.norm == "layer":
        return decoder, trace, x_TD / x_TD.std(-1, correction=0, keepdim=True)
    return decoder, trace, x_TD if decoder.config.post_norm else x_TD / rms(x_TD)


def bilinear(traced, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores between position t and t − offset: by the folded circuit, and by the model's own q and k."""
    decoder, trace, x_TD = traced
    c = decoder.config
    with torch.no_grad():
        qk_HDD = dense(folded(decoder, LAYER, offset)["qk"])
        circuit_HT = torch.einsum("td,hde,te->ht", x_TD[offset:], qk_HDD, x_TD[: len(x_TD) - offset])
        q_HTd = trace["q", LAYER][0].transpose(0, 1)
        k_HTd = trace["k", LAYER][0].transpose(0, 1)
        if c.qk_norm:  # the circuit leaves the division by rms(q) and rms(k) out: undo it
            attention = decoder.blocks[LAYER].attention
            normed_TD = x_TD if c.post_norm else x_TD * decoder.blocks[LAYER].norm1.weight
            per_head = (-1, c.head_dim) if c.qk_norm_over == "head" else (1, -1)
            q_HTd = q_HTd * rms(attention.q(normed_TD).unflatten(-1, per_head)).transpose(0, 1)
            k_HTd = k_HTd * rms(attention.k(normed_TD).unflatten(-1, per_head)).transpose(0, 1)
        k_HTd = k_HTd.repeat_interleave(c.queries_per_group, dim=0)
        own_HT = (q_HTd[:, offset:] * k_HTd[:, : len(x_TD) - offset]).sum(-1)
    return circuit_HT, own_HT


@pytest.mark.parametrize("offset", [0, OFFSET])
def test_the_qk_circuit_gives_the_models_scores(traced, offset):
    circuit_HT, own_HT = bilinear(traced, offset)
    np.testing.assert_allclose(circuit_HT, own_HT, rtol=1e-6, atol=1e-6 * own_HT.abs().max())


@pytest.mark.parametrize("traced", [name for name in CONFIGS if CONFIGS[name].rotary_dim], indirect=True)
def test_without_its_rotation_the_qk_circuit_would_miss(traced):
    _, own_HT = bilinear(traced, OFFSET)
    decoder, _, x_TD = traced
    unrotated_HDD = dense(folded(decoder, LAYER)["qk"]).detach()
    mutant_HT = torch.einsum("td,hde,te->ht", x_TD[OFFSET:], unrotated_HDD, x_TD[:-OFFSET])
    assert (mutant_HT - own_HT).abs().max() > 0.01 * own_HT.abs().max()


def test_the_ov_circuits_give_the_attentions_output(traced):
    decoder, trace, x_TD = traced
    with torch.no_grad():
        ov_HDD = dense(folded(decoder, LAYER)["ov"])
        circuit_TD = torch.einsum("hts,sd,hde->te", trace["pattern", LAYER][0], x_TD, ov_HDD)
        own_TD = trace["attn_out", LAYER][0]
        if decoder.config.norm == "layer":
            own_TD = own_TD - own_TD.mean(-1, keepdim=True)  # what every later LayerNorm sees of it
        if decoder.config.post_norm:  # the circuit leaves this division out, too
            own_TD = own_TD * rms(decoder.blocks[LAYER].attention.o(trace["z", LAYER][0].flatten(-2)))
    np.testing.assert_allclose(circuit_TD, own_TD, rtol=1e-6, atol=1e-6 * own_TD.abs().max())


@pytest.mark.parametrize("name", CONFIGS)
def test_singular_values_are_those_of_the_whole_matrix(name):
    decoder = small_models.drawn(CONFIGS[name])
    for factors in folded(decoder, LAYER).values():
        whole = torch.linalg.svdvals(dense(factors))
        width = decoder.config.head_dim
        np.testing.assert_allclose(singular_values(factors).detach(), whole[:, :width].detach(), atol=1e-10)
        assert whole[:, width:].max() < 1e-10


def test_every_query_head_has_its_own_circuit_under_grouped_queries():
    decoder = small_models.drawn(small_models.GQA)
    w = decoder.head_weights(0)
    ov = dense(folded(decoder, 0)["ov"])
    for head in range(4):
        expected = w.norm_gain_D[:, None] * w.v_GDd[head // 2] @ w.o_HdD[head]
        np.testing.assert_allclose(ov[head].detach(), expected.detach(), atol=1e-12)


def test_effective_rank_of_equal_values_is_their_number_and_of_one_is_1():
    values = torch.tensor([[2.0, 2, 2, 2], [3, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    np.testing.assert_allclose(effective_rank(values), [4, 1, 2, np.nan])


def test_copying_score_of_matrices_with_known_eigenvalues():
    turn = torch.tensor([[0.0, -1], [1, 0]], dtype=torch.float64)  # eigenvalues ±i
    mixed = torch.diag(torch.tensor([3.0, -1], dtype=torch.float64))
    eye = torch.eye(2, dtype=torch.float64)
    left = torch.stack((eye, -eye, turn, mixed))
    scores = copying_scores(Factors(left, eye.expand(4, 2, 2)), eye)
    np.testing.assert_allclose(scores, [1, -1, 0, 0.5], atol=1e-12)


@pytest.mark.parametrize("name", ["gqa", "neox", "gpt2"])
@torch.no_grad()
def test_copying_score_is_that_of_the_matrix_over_the_vocabulary(name):
    decoder = without_biases(CONFIGS[name])
    ov = folded(decoder, LAYER)["ov"]
    scores = copying_scores(ov, unembed_embed(decoder))
    embed_VD = decoder.embed.weight
    for head, matrix_DD in enumerate(dense(ov)):
        written_VD = embed_VD @ matrix_DD
        if decoder.config.norm == "layer":
            written_VD = written_VD - written_VD.mean(-1, keepdim=True)
        logits_VV = (written_VD * decoder.norm.weight) @ decoder.unembed.weight.mT
        eigenvalues = torch.linalg.eigvals(logits_VV)
        expected = (eigenvalues.sum() / eigenvalues.abs().sum()).real
        assert scores[head] == pytest.approx(expected.item(), abs=1e-7)  # V − d eigenvalues are 0 only to rounding
    transposed = copying_scores(Factors(ov.right_NDd, ov.left_NDd), unembed_embed(decoder))
    assert (transposed - scores).abs().max() > 0.01  # mutant: value and output factors swapped


@pytest.mark.parametrize("name", ["mha", "gqa", "neox"])
def test_cosines_are_those_of_the_whole_matrices(name):
    decoder = small_models.drawn(CONFIGS[name])
    for factors in folded(decoder, LAYER).values():
        flat = dense(factors).flatten(1)
        flat = flat / flat.norm(dim=1, keepdim=True)
        np.testing.assert_allclose(cosines(factors).detach(), (flat @ flat.mT).detach(), atol=1e-12)


def turned(factors: Factors, seed: int = 0) -> Factors:
    """Another gauge of the same circuits: left R and right R⁻ᵀ with a random, ill-conditioned enough R per head."""
    count, _, width = factors.left_NDd.shape
    r = torch.randn(count, width, width, generator=torch.Generator().manual_seed(seed), dtype=factors.left_NDd.dtype)
    return Factors(factors.left_NDd @ r, factors.right_NDd @ torch.linalg.inv(r).mT)


@pytest.mark.parametrize("circuit", ["qk", "ov"])
def test_cosines_spectra_and_copying_do_not_depend_on_the_gauge(circuit):
    decoder = small_models.drawn(small_models.MHA)
    factors = folded(decoder, LAYER)[circuit]
    other = turned(factors)
    np.testing.assert_allclose(cosines(other).detach(), cosines(factors).detach(), atol=1e-5)
    np.testing.assert_allclose(singular_values(other).detach(), singular_values(factors).detach(), atol=1e-5)
    core_DD = unembed_embed(decoder)
    np.testing.assert_allclose(copying_scores(other, core_DD), copying_scores(factors, core_DD), atol=1e-5)


def test_cosines_of_flattened_query_weights_fail_the_gauge_test():
    factors = folded(small_models.drawn(small_models.MHA), LAYER)["qk"]

    def flattened(f: Factors) -> torch.Tensor:
        flat = torch.nn.functional.normalize(f.left_NDd.flatten(1), dim=1)
        return flat @ flat.mT

    assert (flattened(turned(factors)) - flattened(factors)).abs().max() > 0.1


@torch.no_grad()
def test_a_models_similarities_do_not_depend_on_its_gauge():
    """On the weights themselves, in a model without rotation and q-norm: the function is the same, so must these be."""
    decoder, other = small_models.drawn(PLAIN), small_models.drawn(PLAIN)
    c = PLAIN
    r = torch.randn(
        c.num_heads, c.head_dim, c.head_dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    attention = other.blocks[LAYER].attention
    for linear, turn in ((attention.q, r.mT), (attention.k, torch.linalg.inv(r))):
        linear.weight.copy_((turn @ linear.weight.view(c.num_heads, c.head_dim, -1)).flatten(0, 1))
    tokens = small_models.tokens(2, 7)
    np.testing.assert_allclose(other(tokens), decoder(tokens), atol=1e-8)
    settings = Circuits(null_draws=100)
    ours, theirs = (settings(d, tiny.corpus(), np.random.default_rng(0)).table for d in (decoder, other))
    for metric in Circuits.metrics:
        np.testing.assert_allclose(theirs.matrix(metric), ours.matrix(metric), atol=1e-5)


def run(decoder: Decoder, seed: int = 0, **settings):
    return Circuits(**{"null_draws": 100, **settings})(decoder, tiny.corpus(), np.random.default_rng(seed))


def test_twin_heads_are_found_and_random_heads_are_not():
    decoder = small_models.drawn(small_models.MHA)
    with torch.no_grad():
        for part in (decoder.blocks[0].attention.q, decoder.blocks[0].attention.k):
            heads = part.weight.view(4, 6, 16)
            heads[2] = heads[1]
    table = run(decoder).table
    np.testing.assert_allclose(table.matrix("qk_nearest")[0, 1:3], 1)
    assert (table.matrix("qk_nearest", "p")[0, 1:3] < 0.02).all()
    assert table.matrix("ov_nearest").max() < 0.9
    flat_HX = dense(folded(decoder, 0)["qk"]).detach().flatten(1).numpy()
    cosine_HH = flat_HX @ flat_HX.T / np.outer(*[np.linalg.norm(flat_HX, axis=1)] * 2)
    np.testing.assert_allclose(table.matrix("qk_similarity")[0], (cosine_HH.sum(1) - 1) / 3, atol=1e-6)


def test_a_value_far_below_the_random_heads_is_found_as_surely_as_one_far_above():
    decoder = small_models.drawn(small_models.MHA)
    attention = decoder.blocks[0].attention
    with torch.no_grad():
        value, output = attention.v.weight.view(4, 6, 16), attention.o.weight.view(16, 4, 6)
        value[1, 1:], output[:, 1, 1:] = 1e-6, 1e-6  # head 1 uses one direction
        value[2], output[:, 2] = torch.eye(16)[:6], torch.eye(16)[:, :6]  # head 2 all six alike
        decoder.blocks[0].norm1.weight.fill_(1)
    table = run(decoder, null_draws=400).table
    rank, p = table.matrix("ov_effective_rank")[0], table.matrix("ov_effective_rank", "p")[0]
    null = table.matrix("ov_effective_rank", "null")[0]
    assert rank[1] < 1.1 < null[1] < 5.9 < rank[2]
    assert p[1] < 0.01 and p[2] < 0.01  # mutant: to one side, one of these is 1


def test_heads_of_an_untrained_model_look_like_the_null():
    config = dataclasses.replace(small_models.GQA, num_layers=6, qk_norm=False)
    p = []
    for seed in range(4):
        decoder = Decoder(config).initialise(torch.Generator().manual_seed(seed)).double()
        table = run(decoder, seed, null_draws=400).table
        p.append([table.matrix(metric, "p") for metric in ("qk_effective_rank", "ov_effective_rank", "qk_similarity")])
    p = np.array(p)
    assert np.all(np.mean(p < 0.05, axis=(0, 2, 3)) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 96))
    assert 0.4 < p.mean() < 0.6


def test_a_zero_head_is_absent_with_a_reason():
    decoder = small_models.drawn(small_models.MHA)
    with torch.no_grad():
        decoder.blocks[1].attention.o.weight.view(16, 4, 6)[:, 2] = 0
    table = run(decoder).table
    (absent,) = table.where(metric="ov_effective_rank", layer=1, head=2).rows()
    assert absent["value"] is None and "zero" in absent["reason"]
    assert table.summary()["ov_effective_rank"]["n"] == 11
    assert np.isfinite(table.matrix("qk_effective_rank")).all()


def test_tables_hold_every_spectrum_and_pair():
    findings = run(small_models.drawn(small_models.GQA), offsets=(1, 2))
    assert findings.tables["spectra"].num_rows == 2 * 12 * 6
    similarity = findings.tables["head_similarity"]
    assert similarity.num_rows == 4 * 12 * 11 // 2
    assert set(similarity["circuit"].to_pylist()) == {"qk", "ov", "qk offset 1", "qk offset 2"}
    nope = run(small_models.drawn(small_models.NOPE), offsets=(1, 2))
    assert set(nope.tables["head_similarity"]["circuit"].to_pylist()) == {"qk", "ov"}  # nothing rotates


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"null_draws": 3}, "null_draws=3 must be at least 100"),
        ({"offsets": [0, 1]}, r"offsets\[0\]=0 must be at least 1"),
        ({"directions": 0}, "directions=0 must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"^analysis.circuits.{message}"):
        build(Circuits, settings, "analysis.circuits")
