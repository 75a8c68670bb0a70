from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from headdyn.analysis.clusters import clusterings
from headdyn.analysis.clusters.geometry import circuit_cosines
from headdyn.analysis.interventions.ablation import GROUPS, KINDS, Ablation
from headdyn.analysis.interventions.ablation_measure import cluster_groups, energy
from headdyn.analysis.interventions.head_ablation import HeadAblation, Texts
from headdyn.core.records import Findings
from headdyn.core.settings import build
from headdyn.core.statistics import adjusted_rand
from headdyn.data.prompts import Prompts
from headdyn.models.decoder import Decoder
from tests.analysis import tiny
from tests.small_models import NEOX, drawn
from tests.small_tokenizer import byte_level, prompts

QUICK = {"dtype": "float64", "random_groups": 99, "splits": 100, "bootstrap_draws": 200}


def model(heads: int = 6) -> Decoder:
    shape = {"num_heads": heads, "num_kv_heads": heads, "vocab_size": len(byte_level())}
    return drawn(dataclasses.replace(NEOX, **shape))


def analysed(decoder: Decoder, family: Prompts, **settings) -> Findings:
    return Ablation(**{**QUICK, **settings})(decoder, family, np.random.default_rng(0))


@pytest.fixture(scope="module")
def family() -> Prompts:
    return prompts(bug_pairs=4, control_pairs=3)


@pytest.fixture(scope="module")
def findings(family: Prompts) -> Findings:
    return analysed(model(), family)


def test_rows_of_heads_and_layers(findings: Findings, family: Prompts) -> None:
    texts = Texts.of_prompts(family, 32)
    runs = HeadAblation(model(), texts, np.random.default_rng(9), donors=2)
    for kind in ("zero", "mean"):  # resampling draws its donors
        alone = np.stack([runs.divergences(kind, {layer: np.eye(6, dtype=bool)})[layer].mean(-1) for layer in range(3)])
        np.testing.assert_allclose(findings.table.matrix(f"{kind}_kl_nats"), alone)
        null = np.broadcast_to(alone.mean(1, keepdims=True), alone.shape)
        np.testing.assert_allclose(findings.table.matrix(f"{kind}_kl_nats", "null"), null)
        every = [runs.divergences(kind, {layer: np.ones((1, 6), dtype=bool)})[layer].mean() for layer in range(3)]
        np.testing.assert_allclose(findings.table.layer_series(f"layer_{kind}_kl_nats"), every)
    only = runs.divergences("mean", {1: ~np.eye(6, dtype=bool)})[1].mean(-1)
    np.testing.assert_allclose(findings.table.matrix("only_kl_nats")[1], only)
    (row,) = findings.table.where(metric="zero_kl_nats", layer=1, head=2).rows()
    assert row["n"] == 7 and row["unit"] == "pair" and row["ci_low"] < row["value"] < row["ci_high"]
    assert row["p"] is None, "its rank among the heads tested would be no test"


def test_groups_against_every_group_of_their_size(findings: Findings, family: Prompts) -> None:
    runs = HeadAblation(model(), Texts.of_prompts(family, 32), np.random.default_rng(9))
    summary = findings.table.summary()
    groups = findings.tables["groups"].to_pylist()
    assert {(row["group"], row["kind"]) for row in groups} == set(itertools.product(GROUPS, KINDS))
    for row in groups:
        if row["kind"] == "resample":
            continue
        every = list(itertools.combinations(range(6), len(row["silenced"])))
        masks = np.array([np.isin(range(6), heads) for heads in every])
        value_R = runs.divergences(row["kind"], {1: masks})[1].mean(-1)
        own = value_R[every.index(tuple(row["silenced"]))]
        assert row["kl_nats"] == pytest.approx(own)
        assert row["p"] == pytest.approx(np.mean(value_R >= own - 1e-9)) and row["random_groups"] == len(every)
        assert row["null_mean"] == pytest.approx(value_R.mean())
        metric = summary[f"{row['group']}_{row['kind']}_kl_nats"]
        assert (metric["value"], metric["p"], metric["q"]) == (row["kl_nats"], row["p"], row["q"])
    silenced = {row["group"]: row["silenced"] for row in groups}
    assert silenced["even"] == [0, 2, 4] and silenced["odd"] == [1, 3, 5]
    for circuit in ("qk", "ov"):
        apart = (silenced[f"{circuit}_cluster"], silenced[f"only_{circuit}_cluster"])
        assert sorted([*apart[0], *apart[1]]) == list(range(6)) and len(apart[0]) <= len(apart[1])


def test_the_clusters_are_those_of_k_means() -> None:
    decoder = model()
    for circuit, mask_H in cluster_groups(decoder, 1, np.random.default_rng(0)).items():
        cosine_HH = circuit_cosines(decoder, 1)[circuit.removesuffix("_cluster")]
        labels_H = clusterings.kmeans(cosine_HH[None], 2, np.random.default_rng(5))[0]
        assert adjusted_rand(clusterings.contingency(labels_H, mask_H.astype(int)[None]))[0] == 1


def test_heads_that_carry_the_layer_are_found_and_the_others_are_not(family: Prompts) -> None:
    """The even heads are one head four times, the odd ones' output is a thousandth: of the 70 groups of four none does
    as much as the even heads, and none as little as the odd ones."""
    decoder = model(8)
    with torch.no_grad():
        w = decoder.head_weights(1)
        for weight in (w.q_HDd, w.k_GDd, w.v_GDd, w.o_HdD, w.q_bias_Hd, w.k_bias_Gd, w.v_bias_Gd):
            weight[::2] = weight[0].clone()
        w.o_HdD[1::2] *= 1e-3
    summary = analysed(decoder, family).table.summary()
    for kind in KINDS:
        assert summary[f"even_{kind}_kl_nats"]["p"] == 1 / 70
        assert summary[f"odd_{kind}_kl_nats"]["p"] == 1
        assert summary[f"even_{kind}_kl_nats"]["value"] > 1e3 * summary[f"odd_{kind}_kl_nats"]["value"]
    other = analysed(decoder, family, layer=0).table.summary()
    assert other["even_zero_kl_nats"]["p"] > 2 / 70, "nothing was planted in layer 0"


def test_energy_distance_is_scipys_squared_on_a_line() -> None:
    places = np.random.default_rng(0).normal(size=7)
    first_RH = np.array([[1, 1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 1, 0]], dtype=bool)
    distance_HH = np.abs(np.subtract.outer(places, places))
    for value, first_H in zip(energy(distance_HH, first_RH), first_RH, strict=True):
        assert value == pytest.approx(scipy.stats.energy_distance(places[first_H], places[~first_H]) ** 2)
    alike_HH = np.abs(np.subtract.outer([0, 1, 0, 1], [0, 1, 0, 1]))
    assert energy(alike_HH, np.array([[1, 1, 0, 0]], dtype=bool))[0] == pytest.approx(0)


def test_two_sample_tests_take_heads_as_units(family: Prompts) -> None:
    """Even heads of layer 1 share a QK circuit: of all 35 ways to halve eight heads theirs is furthest apart."""
    decoder = model(8)
    with torch.no_grad():
        w = decoder.head_weights(1)
        for weight_HDd in (w.q_HDd, w.k_GDd):
            weight_HDd[::2] = weight_HDd[:1] + 0.1 * weight_HDd[::2]
    table = analysed(decoder, family).table
    rows = table.where(metric="qk_parity_energy", head=None).rows()
    by_layer = {row["layer"]: row for row in rows}
    assert by_layer[1]["p"] == pytest.approx(2 / 70) and by_layer[1]["n"] == 8 and by_layer[1]["unit"] == "head"
    assert by_layer[0]["p"] > 0.05 and by_layer[2]["p"] > 0.05
    assert all(row["p"] > 0.05 for row in table.where(metric="ov_parity_energy").rows())


def test_a_corpus_is_read_in_place_of_prompts() -> None:
    decoder = drawn(NEOX)
    corpus = tiny.corpus(rows=6, length=12)
    table = Ablation(**{**QUICK, "texts": 4})(decoder, corpus, np.random.default_rng(0)).table
    summary = table.summary()
    assert summary["even_zero_kl_nats"]["n"] == 4 and summary["even_zero_kl_nats"]["unit"] == "sequence"
    runs = HeadAblation(decoder, Texts.of_corpus(corpus, 4), np.random.default_rng(9))
    np.testing.assert_allclose(
        table.matrix("zero_kl_nats")[2], runs.divergences("zero", {2: np.eye(4, dtype=bool)})[2].mean(-1)
    )


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"texts": 1}, "analysis.ablation.texts=1 must be at least 2"),
        ({"random_groups": 5}, "analysis.ablation.random_groups=5 must be at least 20"),
        ({"dtype": "int8"}, "analysis.ablation.dtype='int8' must be one of float64, float32"),
    ],
)
def test_impossible_settings(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build(Ablation, settings, "analysis.ablation")


def test_impossible_models_and_prompts(family: Prompts) -> None:
    with pytest.raises(ValueError, match="layer=3 is out of range"):
        analysed(model(), family, layer=3)
    with pytest.raises(ValueError, match="2 heads a layer make no groups"):
        analysed(model(2), family)
    with pytest.raises(ValueError, match="of 1 pairs none has a prompt as long as another's"):
        analysed(model(), prompts(bug_pairs=1, control_pairs=0))
