from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from headdyn.analysis.interventions.patch import Patch
from headdyn.analysis.interventions.patch_map import PatchMap
from headdyn.analysis.interventions.patching import PromptPatching
from headdyn.core.settings import build
from headdyn.models.decoder import Decoder
from tests.small_models import GQA, NEOX, drawn
from tests.small_tokenizer import byte_level, prompts

QUICK = {"dtype": "float64", "sign_flips": 999, "bootstrap_draws": 100}


def model(config=NEOX) -> Decoder:
    return drawn(dataclasses.replace(config, vocab_size=len(byte_level())))


@pytest.mark.parametrize("config", [NEOX, GQA], ids=["parallel", "sequential"])
def test_the_map_against_patching_head_by_head(config) -> None:
    decoder, family = model(config), prompts(bug_pairs=6, control_pairs=4)
    table = PatchMap(**QUICK)(decoder, family, np.random.default_rng(0)).table
    bugs, controls = family.where(family.is_bug_P), family.where(~family.is_bug_P)
    cases = (
        ("sufficiency", bugs, "sufficiency"),
        ("necessity", bugs, "necessity"),
        ("control", controls, "sufficiency"),
    )
    for name, pairs, direction in cases:
        for layer in range(3):
            engine = PromptPatching(decoder, pairs, Patch(direction=direction), [layer])
            for head in range(4):
                alone = engine.deltas({layer: np.eye(4)[[head]]})[layer][0]
                assert table.matrix(f"{name}_nats")[layer, head] == pytest.approx(
                    (alone - engine.target_P).mean(), abs=1e-12
                )
            together = engine.deltas({layer: np.ones((1, 4))})[layer][0]
            assert table.layer_series(f"layer_{name}_nats")[layer] == pytest.approx(
                (together - engine.target_P).mean(), abs=1e-12
            )
    assert np.isfinite(table.matrix("sufficiency_nats", "q")).all()
    assert (table.matrix("sufficiency_nats", "q") >= table.matrix("sufficiency_nats", "p") - 1e-12).all()
    clean = PromptPatching(decoder, bugs, Patch(direction="necessity"), [0])
    assert table.summary()["clean_nats"]["value"] == pytest.approx(clean.target_P.mean())
    assert table.summary()["corrupted_success"]["value"] == np.mean(clean.source_P > 0)


def test_silent_heads_have_no_effect_and_others_do() -> None:
    decoder = model()
    with torch.no_grad():
        decoder.head_weights(0).o_HdD[[0, 3]] = 0
    effect_LH = PatchMap(**QUICK)(decoder, prompts(bug_pairs=6), np.random.default_rng(0)).table.matrix(
        "sufficiency_nats"
    )
    assert np.abs(effect_LH[0, [0, 3]]).max() < 1e-12 < 1e-3 < np.abs(effect_LH[0, [1, 2]]).min()


def test_permuting_heads_permutes_the_map() -> None:
    decoder, family, order = model(), prompts(), [2, 0, 3, 1]
    plain, moved = (
        PatchMap(**QUICK)(each, family, np.random.default_rng(0)).table.matrix("necessity_nats")
        for each in (decoder, decoder.permuted(1, order))
    )
    np.testing.assert_allclose(moved[1], plain[1, order], atol=1e-12)
    np.testing.assert_allclose(moved[[0, 2]], plain[[0, 2]], atol=1e-12)
    assert np.abs(moved[1] - plain[1]).max() > 1e-3


def test_ablation_by_mean_and_zero() -> None:
    decoder, family = model(), prompts(bug_pairs=12, control_pairs=0)
    for source in ("zero", "mean"):
        table = PatchMap(source=source, **QUICK)(decoder, family, np.random.default_rng(0)).table
        engine = PromptPatching(decoder, family, Patch(source=source), [1])  # type: ignore[arg-type]
        alone = engine.deltas({1: np.eye(4)})[1]
        np.testing.assert_allclose(table.matrix("sufficiency_nats")[1], (alone - engine.target_P).mean(1), atol=1e-12)
        assert "control_nats" not in table.table["metric"].to_pylist()


def test_what_cannot_be_done_is_refused() -> None:
    family = prompts()
    with pytest.raises(ValueError, match="no bug pairs"):
        PatchMap(**QUICK)(model(), family.where(~family.is_bug_P), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"analysis.patching.site='x' must be one of z, attn_out_slice"):
        build(PatchMap, {"site": "x"}, "analysis.patching")
    with pytest.raises(ValueError, match=r"analysis.patching.sign_flips=3 must be at least 999"):
        build(PatchMap, {"sign_flips": 3}, "analysis.patching")
