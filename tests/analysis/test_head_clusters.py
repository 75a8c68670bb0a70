from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from headdyn.analysis.clusters import KINDS
from headdyn.analysis.clusters.divergence import cluster_divergence, head_distances, head_labels
from headdyn.analysis.clusters.figures import tsne, tsne_perplexity
from headdyn.analysis.clusters.geometry import circuit_cosines
from headdyn.analysis.head_clusters import HeadClusters
from headdyn.analysis.interventions.patch import Patch
from headdyn.analysis.interventions.patching import PromptPatching
from headdyn.core.records import Findings
from headdyn.core.settings import build
from headdyn.data.prompts import Prompts
from headdyn.models.decoder import Decoder, Edit
from tests.analysis import tiny
from tests.small_models import NEOX, drawn
from tests.small_tokenizer import byte_level, prompts

QUICK = {"null_draws": 200, "relabellings": 999, "sign_flips": 999, "bootstrap_draws": 200, "dtype": "float64"}


def model(heads: int = 8, seed: int = 0) -> Decoder:
    shape = {"num_heads": heads, "num_kv_heads": heads, "d_model": 24, "vocab_size": len(byte_level())}
    return drawn(dataclasses.replace(NEOX, **shape), seed=seed)


@torch.no_grad()
def two_kinds_of_heads(layer: int = 1, noise: float = 0.02) -> Decoder:
    """Even heads are one head and odd heads another, which attends elsewhere and writes the opposite; a little noise."""
    decoder = model(seed=3)  # whose heads move most answers the same way: t = 2.9 over the bug pairs
    w = decoder.head_weights(layer)
    generator = torch.Generator().manual_seed(1)
    for weight in (w.q_HDd, w.k_GDd, w.v_GDd, w.o_HdD, w.q_bias_Hd, w.k_bias_Gd, w.v_bias_Gd):
        weight[2:] = weight[:2].repeat(3, *[1] * (weight.ndim - 1))
        if weight is not w.q_HDd and weight is not w.k_GDd:
            weight[1::2] = weight[:1] * (-1 if weight is w.o_HdD else 1)
        weight += noise * weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return decoder


def analysed(decoder: Decoder, family, **settings) -> Findings:
    return HeadClusters(**{**QUICK, **settings})(decoder, family, np.random.default_rng(0))


@pytest.fixture(scope="module")
def family() -> Prompts:
    return prompts(bug_pairs=12, control_pairs=6)


@pytest.fixture(scope="module")
def planted(family: Prompts) -> Findings:
    return analysed(two_kinds_of_heads(), family)


def row(findings: Findings, metric: str, layer: int | None = None) -> dict:
    (found,) = findings.table.where(metric=metric, layer=layer, head=None).rows()
    return found


def test_planted_clusters_are_found_and_none_in_the_other_layers(planted: Findings) -> None:
    for kind in ("qk", "ov", "behaviour"):
        assert row(planted, f"{kind}_silhouette", 1)["value"] > 0.8
        assert row(planted, f"{kind}_silhouette", 1)["q"] < 0.05
        assert row(planted, f"{kind}_best_silhouette", 1)["p"] == 1 / 201
        assert row(planted, f"{kind}_parity_rand", 1)["value"] == 1
        assert row(planted, f"{kind}_parity_rand", 1)["p"] < 0.06, "2 of 70 relabellings"
        assert row(planted, f"{kind}_smallest_cluster", 1)["value"] == 4
        assert head_labels(planted.tables["clusterings"], 1, kind).tolist() == [0, 1] * 4
        assert not planted.table.matrix(f"{kind}_alone")[1].all()
    for kind in ("qk", "ov"):
        for layer in (0, 2):
            assert row(planted, f"{kind}_silhouette", layer)["q"] > 0.05
            assert row(planted, f"{kind}_best_silhouette", layer)["q"] > 0.05


def test_weight_clusters_agree_with_behaviour_and_predict_who_repairs(planted: Findings) -> None:
    for kind in ("qk", "ov"):
        agreement = row(planted, f"{kind}_behaviour_rand", 1)
        assert agreement["value"] == 1 and agreement["null"] == 0 and agreement["p"] < 0.06
        information = row(planted, f"{kind}_behaviour_information", 1)
        assert information["value"] == pytest.approx(np.log(2)) and information["p"] < 0.06
        assert row(planted, f"{kind}_behaviour_rand", 0)["p"] > 0.06
    accuracy = row(planted, "prediction_accuracy")
    # Both circuits' k-means with k = 2..5 and Ward with k = 2..4: each keeps even and odd heads apart.
    assert accuracy["value"] == 1 and accuracy["n"] == 14 and accuracy["p"] < 0.06
    told = [entry["separates"] for entry in planted.tables["clusterings"].to_pylist() if entry["layer"] == 1]
    assert told.count(True) == 14 and told.count(False) == 0


def test_the_models_rows_are_those_of_the_layer_asked_for(family: Prompts, planted: Findings) -> None:
    summary = planted.table.summary()
    for metric in ("qk_silhouette", "behaviour_first_component", "ov_behaviour_rand"):
        assert summary[metric]["value"] == row(planted, metric, 1)["value"]
    assert set(summary) == set(HeadClusters.metrics) - {
        "effect_nats",
        *(f"{kind}_alone" for kind in KINDS),
    }
    other = analysed(two_kinds_of_heads(), family, layer=0).table.summary()
    assert other["qk_silhouette"]["value"] == row(planted, "qk_silhouette", 0)["value"]


@torch.no_grad()
def test_effects_are_changes_of_the_answers_under_mean_ablation(family: Prompts, planted: Findings) -> None:
    decoder, layer, head = two_kinds_of_heads(), 1, 3
    parts = []
    for group in family.groups:
        assert group.right_NA.shape[1] == 1
        text = torch.from_numpy(np.concatenate((group.corrupted_NT, group.shared_NC), axis=1))
        mean = decoder.trace(text, sites=("z",), layers=(layer,), logits=None)["z", layer].mean(0, keepdim=True)
        edit = Edit(site="z", layer=layer, value=mean, where=torch.arange(8)[:, None] == head)
        rows = np.arange(len(group))
        delta = [
            logits[rows, group.right_NA[:, 0]] - logits[rows, group.wrong_NA[:, 0]]
            for logits in (decoder.trace(text, edits=edits, logits="last").logits[:, 0] for edits in ((), (edit,)))
        ]
        parts.append((delta[1] - delta[0]).numpy())
    effect = planted.table.where(metric="effect_nats", layer=layer, head=head).rows()[0]
    assert effect["value"] == pytest.approx(family.by_pair(parts).mean())
    assert effect["n"] == 18 and effect["unit"] == "pair" and effect["p"] is not None and effect["q"] >= effect["p"]


def test_heads_that_repair_are_those_that_raise_the_answer_when_patched_alone(
    family: Prompts, planted: Findings
) -> None:
    patching = PromptPatching(two_kinds_of_heads(), family.where(family.is_bug_P), Patch(), [1])
    raises_H = (patching.deltas({1: np.eye(8)})[1] - patching.target_P).mean(-1) > 0
    assert raises_H.tolist() in ([True, False] * 4, [False, True] * 4)
    assert row(planted, "prediction_accuracy")["value"] == 1


def test_distances_and_coordinates_are_those_of_the_circuits(planted: Findings) -> None:
    cosine_HH = circuit_cosines(two_kinds_of_heads(), 2)["ov"]
    distance_HH = np.sqrt(np.maximum(2 - 2 * cosine_HH, 0))
    np.testing.assert_allclose(head_distances(planted.tables["distances"], 2, "ov"), distance_HH, atol=1e-7)
    rows = [r for r in planted.tables["coordinates"].to_pylist() if (r["layer"], r["kind"]) == (1, "ov")]
    assert [r["head"] for r in rows] == list(range(8))
    sign = np.sign([r["pc_1"] for r in rows])
    assert (sign[::2] == sign[0]).all() and (sign[1::2] == -sign[0]).all()
    assert rows[0]["share_1"] > 0.9 and rows[0]["share_1"] + rows[0]["share_2"] <= 1


def test_a_checkpoint_like_the_one_before_has_not_moved(planted: Findings) -> None:
    table = cluster_divergence(planted.tables, planted.tables, np.random.default_rng(0), relabellings=999)
    for found in table.rows():
        assert found["value"] == pytest.approx(0, abs=1e-9) and found["p"] < 0.2


def test_weights_alone_are_clustered_where_there_are_no_prompts(planted: Findings) -> None:
    findings = analysed(two_kinds_of_heads(), tiny.corpus())
    assert "reason" in findings.table.summary()["behaviour_silhouette"]
    assert findings.table.summary()["prediction_accuracy"]["reason"].startswith("effects on answers need prompts")
    for metric in ("qk_silhouette", "ov_first_component"):
        here, there = (each.table.layer_series(metric) for each in (findings, planted))
        np.testing.assert_array_equal(here, there)
    assert set(findings.tables["distances"]["kind"].to_pylist()) == {"qk", "ov"}


def test_small_p_values_are_as_rare_as_they_say_over_models_drawn_at_random() -> None:
    """QK and OV circuits of three layers of six models; more than 6 of 36 below 0.05 have probability 0.002."""
    corpus, few = tiny.corpus(), {"kmeans_k": (2,), "ward_k": (2,), "dbscan_eps": (0.9,), "restarts": 3}
    config = dataclasses.replace(NEOX, num_heads=6, num_kv_heads=6, d_model=48)
    tables = [analysed(drawn(config, seed=seed), corpus, **few).table for seed in range(6)]
    p = {
        measure: np.concatenate(
            [table.layer_series(f"{kind}_{measure}", "p") for table in tables for kind in ("qk", "ov")]
        )
        for measure in ("silhouette", "best_silhouette")
    }
    assert all((p_X <= 0.05).sum() <= 6 for p_X in p.values())
    assert 0.35 < p["silhouette"].mean() < 0.65  # three standard errors


def test_the_perplexity_stays_below_the_number_of_heads() -> None:
    assert [tsne_perplexity(heads) for heads in (4, 8, 12, 32)] == [1, 7 / 3, 11 / 3, 5]
    points_HX = np.random.default_rng(0).normal(size=(4, 3))
    first, second = (tsne(points_HX, tsne_perplexity(4), seed=1) for _ in range(2))
    assert first.shape == (4, 2) and np.isfinite(first).all() and (first == second).all()
    assert not tsne(np.zeros((5, 3)), 1.0, seed=0).any()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"kmeans_k": [3, 4]}, "kmeans_k=.3, 4. must hold 2"),
        ({"ward_k": [1, 2]}, r"ward_k\[0\]=1 must be at least 2"),
        ({"dbscan_eps": [0.5, 1.2]}, r"dbscan_eps\[1\]=1.2 must be below 1"),
        ({"dbscan_eps": [0.5, 0.5]}, "holds a value twice"),
        ({"null_draws": 50}, "null_draws=50 must be at least 200"),
        ({"dtype": "int8"}, "dtype='int8' must be one of float64, float32"),
    ],
)
def test_impossible_settings(settings: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build(HeadClusters, settings, "analysis.head_clusters")


def test_impossible_models_and_prompts(family: Prompts) -> None:
    with pytest.raises(ValueError, match="layer=7 is out of range"):
        analysed(model(), family, layer=7)
    with pytest.raises(ValueError, match="2 heads a layer cannot form clusters"):
        analysed(model(2), family)
    with pytest.raises(ValueError, match="no bug pairs"):
        analysed(model(), family.where(~family.is_bug_P))
