from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from headdyn.analysis.interventions.patch import Patch
from headdyn.analysis.interventions.patching import PromptPatching, heads_as_weights
from headdyn.analysis.interventions.specialization import Specialization
from headdyn.core.records import Findings
from headdyn.core.settings import build
from headdyn.data.prompts import Prompts
from headdyn.models.decoder import Decoder
from tests.small_models import NEOX, drawn
from tests.small_tokenizer import byte_level, prompts

QUICK = {"groups_per_size": 3, "fractions": (0.0, 0.5, 1.0), "sign_flips": 999, "bootstrap_draws": 100}


def model(heads: int = 4, dtype: torch.dtype = torch.float64) -> Decoder:
    shape = {"num_heads": heads, "num_kv_heads": heads, "vocab_size": len(byte_level())}
    return drawn(dataclasses.replace(NEOX, d_model=24, **shape), dtype=dtype)


def analysed(decoder: Decoder, family: Prompts, **settings) -> Findings:
    settings = {**QUICK, "dtype": "float64", **settings}
    return Specialization(**settings)(decoder, family, np.random.default_rng(0))


@torch.no_grad()
def silenced(decoder: Decoder, layer: int, heads: tuple[int, ...]) -> Decoder:
    """The same model with columns of W_O set to 0, so that those heads' z has no effect."""
    silent = decoder.permuted(layer, range(decoder.config.num_heads))
    silent.head_weights(layer).o_HdD[list(heads)] = 0
    return silent


@pytest.fixture(scope="module")
def family() -> Prompts:
    return prompts(bug_pairs=6, control_pairs=3, variants_per_pair=2)


def test_every_figure_against_patching_done_by_hand(family: Prompts) -> None:
    decoder = model()
    findings = analysed(decoder, family)
    summary, bugs = findings.table.summary(), family.where(family.is_bug_P)
    engine = PromptPatching(decoder, bugs, Patch(), [1])
    subsets = list(itertools.combinations(range(4), 2))
    delta = dict(zip(subsets, engine.deltas({1: heads_as_weights(subsets, 4)})[1], strict=True))
    whole = engine.deltas({1: np.ones((1, 4))})[1][0]
    strength = {half: np.mean(delta[half] - delta[tuple(sorted({0, 1, 2, 3} - set(half)))]) for half in subsets}
    even, odd = delta[0, 2], delta[1, 3]

    assert summary["plain_success"]["value"] == np.mean(engine.target_P > 0)
    assert summary["source_nats"]["value"] == pytest.approx(engine.source_P.mean())
    for name, delta_P in (("even", even), ("odd", odd), ("all", whole)):
        assert summary[f"{name}_success"]["value"] == np.mean(delta_P > 0)
        share = (delta_P - engine.target_P).mean() / (engine.source_P - engine.target_P).mean()
        assert summary[f"{name}_recovered"].get("value", share) == pytest.approx(share)
    assert summary["strength"]["value"] == np.mean(even > 0) - np.mean(odd > 0)
    assert summary["strength_nats"]["value"] == pytest.approx(strength[0, 2])
    assert summary["strength_nats"]["p"] == np.mean([abs(s) >= abs(strength[0, 2]) - 1e-9 for s in strength.values()])
    assert summary["strength_rank"]["value"] == sum(s >= strength[0, 2] - 1e-9 for s in strength.values())
    assert summary["best_split_nats"]["value"] == pytest.approx(max(strength.values()))
    # Strengths are symmetric about 0, so a percentile of them without |·| would be exceeded twice as often.
    sizes = np.abs(list(strength.values()))
    assert summary["best_split_nats"]["null"] == pytest.approx(np.quantile(sizes, 0.95))
    assert np.quantile(list(strength.values()), 0.95) < np.quantile(sizes, 0.95) - 1e-3
    assert summary["strength_nats"]["n"] == 6 and summary["strength_rank"]["n"] == 6

    heads = {row["head"]: row for row in findings.table.where(metric="head_effect_nats", layer=1).rows()}
    alone = engine.deltas({1: np.eye(4)})[1]
    for head in range(4):
        assert heads[head]["value"] == pytest.approx((alone[head] - engine.target_P).mean())
        assert heads[head]["q"] >= heads[head]["p"] > 0
    controls = PromptPatching(decoder, family.where(~family.is_bug_P), Patch(), [1])
    on_controls = controls.deltas({1: heads_as_weights([(0, 2), (1, 3)], 4)})[1]
    assert summary["control_strength_nats"]["value"] == pytest.approx((on_controls[0] - on_controls[1]).mean())

    every = dict(zip(subsets, controls.deltas({1: heads_as_weights(subsets, 4)})[1], strict=True))
    control = {half: np.mean(every[half] - every[tuple(sorted({0, 1, 2, 3} - set(half)))]) for half in subsets}
    both, row = {half: (strength[half] + control[half]) / 2 for half in subsets}, summary["balanced_strength_nats"]
    assert row["value"] == pytest.approx(both[0, 2]) and row["n"] == 6 + 3
    assert row["p"] == np.mean([abs(s) >= abs(both[0, 2]) - 1e-9 for s in both.values()])
    assert row["ci_low"] < row["value"] < row["ci_high"]


def test_every_layer_has_its_rows(family: Prompts) -> None:
    decoder = model()
    table = analysed(decoder, family, null_at_every_layer=True).table
    bugs = family.where(family.is_bug_P)
    for layer in range(3):
        delta = PromptPatching(decoder, bugs, Patch(), [layer]).deltas({layer: heads_as_weights([(0, 2), (1, 3)], 4)})
        (row,) = table.where(metric="strength_nats", layer=layer).rows()
        assert row["value"] == pytest.approx((delta[layer][0] - delta[layer][1]).mean(), abs=1e-12)
        assert row["p"] is not None
    other = analysed(decoder, family, layer=2).table
    assert other.summary()["strength_nats"]["value"] == table.layer_series("strength_nats")[2]
    assert other.where(metric="strength_nats", layer=0).rows()[0]["p"] is None
    # What the common block writes in the last layer is not seen where the answer is read.
    assert table.layer_series("strength_nats")[2] == 0 and table.layer_series("strength_nats", "p")[2] == 1


def test_heads_that_write_nothing_repair_nothing(family: Prompts) -> None:
    odd_silent = analysed(silenced(model(), 1, (1, 3)), family).table.summary()
    assert odd_silent["odd_success"]["value"] == odd_silent["plain_success"]["value"]
    assert odd_silent["odd_recovered"].get("value", 0) == pytest.approx(0)
    assert odd_silent["even_recovered"].get("value") == pytest.approx(odd_silent["all_recovered"].get("value"))


def test_the_scan_finds_a_scattered_half(family: Prompts) -> None:
    """Only heads 0, 1 and 5 of six write: their split is the strongest either way, and even/odd is not."""
    findings = analysed(silenced(model(6), 1, (2, 3, 4)), family)
    splits = findings.tables["splits"].group_by(["split", "heads"]).aggregate([("delta_nats", "mean")])
    mean = dict(zip(splits["heads"].to_pylist(), splits["delta_nats_mean"].to_pylist(), strict=True))
    planted, rest = 0b100011, 0b011100
    strengths = {bits: value - mean[0b111111 - bits] for bits, value in mean.items()}
    together = abs(strengths[planted])
    plain = findings.table.summary()["plain_nats"]["value"]
    assert mean[rest] == pytest.approx(plain)
    assert together == pytest.approx(abs(mean[planted] - plain))
    assert findings.table.summary()["best_split_nats"]["value"] == pytest.approx(max(strengths.values()))


def test_relabelling_a_models_heads_in_all_ways_gives_uniform_p(family: Prompts) -> None:
    """Through the whole analysis: weights permuted, prompts patched, splits ranked (science.md §16)."""
    decoder, greater, two_sided = model(), [], []
    for order in itertools.permutations(range(4)):
        summary = analysed(decoder.permuted(1, order), family, bootstrap_draws=100).table.summary()
        greater.append(summary["strength_rank"]["p"])
        two_sided.append(summary["strength_nats"]["p"])
    assert sorted(greater) == pytest.approx(sorted([k / 6 for k in range(1, 7)] * 4))
    assert sorted(two_sided) == pytest.approx(sorted([k / 3 for k in range(1, 4)] * 8))


def test_splits_keep_every_pair_for_a_later_maximum(family: Prompts) -> None:
    decoder = model()
    table = analysed(decoder, family).tables["splits"]
    assert table.num_rows == 6 * 6 and set(table["layer"].to_pylist()) == {1}
    even = table.filter(table["is_reference"])
    assert set(even["heads"].to_pylist()) == {0b0101}
    bugs = family.where(family.is_bug_P)
    delta_P = PromptPatching(decoder, bugs, Patch(), [1]).deltas({1: heads_as_weights([(0, 2)], 4)})[1][0]
    np.testing.assert_allclose(even["delta_nats"].to_numpy(), delta_P, atol=1e-12)
    assert even["pair"].to_pylist() == [f"{pair.right}/{pair.wrong}" for pair in bugs.pairs]
    everywhere = analysed(decoder, family, null_at_every_layer=True).tables["splits"]
    assert everywhere.num_rows == 3 * table.num_rows
    assert everywhere.filter(pc.equal(everywhere["layer"], 1)).equals(table.combine_chunks())


def test_an_odd_number_of_heads_is_compared_with_halves_of_its_sizes(family: Prompts) -> None:
    decoder, bugs = model(5), family.where(family.is_bug_P)
    summary = analysed(decoder, family).table.summary()
    halves = list(itertools.combinations(range(5), 3))
    others = [tuple(sorted(set(range(5)) - set(half))) for half in halves]
    engine = PromptPatching(decoder, bugs, Patch(), [1])
    first, second = (engine.deltas({1: heads_as_weights(part, 5)})[1].mean(1) for part in (halves, others))
    strength = dict(zip(halves, first - second, strict=True))
    own, mean = strength[0, 2, 4], np.mean(list(strength.values()))
    assert summary["strength_nats"]["value"] == pytest.approx(own)
    assert summary["strength_nats"]["null"] == pytest.approx(mean)
    assert summary["strength_nats"]["p"] == np.mean(
        [abs(s - mean) >= abs(own - mean) - 1e-9 for s in strength.values()]
    )
    assert summary["strength_rank"]["value"] == sum(s >= own - 1e-9 for s in strength.values())
    assert summary["strength_rank"]["n"] == 10 and summary["strength_rank"]["null"] == 5.5


def test_necessity_is_the_other_way_round(family: Prompts) -> None:
    there, back = (analysed(model(), family, direction=d).table.summary() for d in ("sufficiency", "necessity"))
    assert there["plain_nats"]["value"] == pytest.approx(back["source_nats"]["value"])
    assert there["even_success"] != back["even_success"] or there["strength_nats"] != back["strength_nats"]


def test_it_is_deterministic_and_leaves_the_model(family: Prompts) -> None:
    decoder = model()
    before = {name: part.clone() for name, part in decoder.state_dict().items()}
    first, second = analysed(decoder, family), analysed(decoder, family)
    assert first.table.rows() == second.table.rows()
    assert all(first.tables[name].equals(second.tables[name]) for name in first.tables)
    assert all(torch.equal(before[name], part) for name, part in decoder.state_dict().items())
    assert set(first.figures) == {"null", "layers", "heads", "group_sizes", "fractions"}


def test_what_cannot_be_done_is_refused(family: Prompts) -> None:
    with pytest.raises(ValueError, match="layer=5 is out of range; this model's layers are 0 to 2"):
        analysed(model(), family, layer=5)
    with pytest.raises(ValueError, match="1 heads cannot be split into even and odd ones"):
        analysed(model(1), family)
    with pytest.raises(ValueError, match=r"no bug pairs.*data.bug_pairs"):
        analysed(model(), family.where(~family.is_bug_P))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"site": "attn_out"}, "analysis.specialization.site='attn_out' must be one of z, attn_out_slice"),
        ({"dtype": "int8"}, "analysis.specialization.dtype"),
        ({"bootstrap_draws": 5}, "analysis.specialization.bootstrap_draws=5 must be at least 100"),
        ({"exact_to_heads": 24}, "analysis.specialization.exact_to_heads=24 must be at most 20"),
        ({"fractions": [0.5, 1.5]}, r"analysis.specialization.fractions\[1\]=1.5 must be at most 1"),
        ({"fractions": []}, "analysis.specialization.fractions"),
    ],
)
def test_impossible_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(Specialization, settings, "analysis.specialization")
