from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from headdyn.analysis.interventions.patch import Patch
from headdyn.analysis.interventions.patching import PromptPatching, heads_as_weights
from headdyn.analysis.interventions.permutation import CONTROL, ORDERS, HeadPermutation
from headdyn.analysis.interventions.permutation_measure import head_orders, mismatched, repetition
from headdyn.core.records import Findings
from headdyn.core.settings import build
from headdyn.models.decoder import Decoder
from tests.small_models import CONFIGS, GQA, NEOX, drawn, tokens
from tests.small_tokenizer import byte_level, prompts

FOUR_DTYPES = ("float64", "float32", "bfloat16", "float16")


def model(config=NEOX) -> Decoder:
    return drawn(dataclasses.replace(config, vocab_size=len(byte_level())))


@torch.no_grad()
def largest_change(decoder: Decoder, other: Decoder) -> float:
    tokens_BT = tokens(4, 9)
    return (decoder(tokens_BT) - other(tokens_BT)).abs().max().item()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_order_is_an_identity_and_the_control_is_not(name: str) -> None:
    config = CONFIGS[name]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):  # measured: 6e-15 and 3e-6
        decoder = drawn(config, dtype=dtype)
        orders = head_orders(config.num_heads, config.num_kv_heads, np.random.default_rng(1))
        for layer in range(config.num_layers):
            for order in orders.values():
                assert largest_change(decoder, decoder.permuted(layer, order)) < tolerance
            assert largest_change(decoder, mismatched(decoder, layer, orders["reverse"])) > 0.1


@pytest.mark.parametrize(("heads", "groups"), [(12, 12), (8, 8), (8, 2), (12, 4), (9, 3), (4, 1), (5, 5)])
def test_orders_are_what_their_names_say(heads: int, groups: int) -> None:
    size = heads // groups
    orders = head_orders(heads, groups, np.random.default_rng(0))
    assert tuple(orders) == ORDERS
    for order in orders.values():
        assert sorted(order) == list(range(heads))
        assert all(len({head // size for head in order[i : i + size]}) == 1 for i in range(0, heads, size))
    assert orders["identity"] == tuple(range(heads)) and orders["reverse"] == tuple(reversed(range(heads)))
    assert all((head - place) % 2 == 0 for place, head in enumerate(orders["within_parity"]))
    if size in (1, heads) and heads % 2 == 0:
        assert all(abs(head - place) == 1 and (head - place) % 2 for place, head in enumerate(orders["swap"]))
    assert heads < 8 or orders["random"] != orders["identity"]


def test_the_swap_for_twelve_heads() -> None:
    orders = head_orders(12, 12, np.random.default_rng(0))
    assert orders["swap"] == (1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10)
    grouped = head_orders(6, 2, np.random.default_rng(0))
    assert grouped["swap"] == (1, 0, 2, 4, 3, 5)  # the third head of a group has no neighbour to change with


def test_repetition_worked_out_by_hand() -> None:
    texts = np.array([[1, 2, 3, 4, 5, 6], [7, 7, 7, 7, 7, 7], [1, 2, 3, 1, 2, 3]])
    np.testing.assert_allclose(repetition(texts), [0, 3 / 4, 1 / 4])
    np.testing.assert_allclose(repetition(np.array([[1, 2, 3, 1, 2, 3, 1]])), [2 / 5])


def analysed(decoder: Decoder, **settings) -> Findings:
    settings = {"tokens": 4, "texts": 3, "bootstrap_draws": 100, **settings}
    return HeadPermutation(**settings)(decoder, prompts(bug_pairs=6, control_pairs=2), np.random.default_rng(0))


@pytest.mark.parametrize("config", [NEOX, GQA], ids=["parallel", "grouped queries"])
def test_the_sweep_over_orders_and_dtypes(config) -> None:
    findings = analysed(model(config))
    summary, records = findings.table.summary(), findings.tables["orders"].to_pylist()
    assert {(r["dtype"], r["order"]) for r in records} == {(d, o) for d in FOUR_DTYPES for o in (*ORDERS, CONTROL)}
    for record in records:
        name = f"{record['order']}_{record['dtype']}"
        assert summary[f"{name}_logit_change"]["value"] == record["logit_change"]
        assert summary[f"{name}_answers_changed"]["value"] == record["answers_changed"]
        if record["order"] == CONTROL:
            assert record["logit_change"] > 0.1
        elif record["order"] == "identity":
            assert record["logit_change"] == record["answers_changed"] == record["texts_changed"] == 0
        else:
            assert record["logit_change"] < {"float64": 1e-10, "float32": 1e-4}.get(record["dtype"], 0.3)
    assert summary["float64_logit_change"]["value"] == 0
    drift = [summary[f"{dtype}_logit_change"]["value"] for dtype in ("float32", "float16", "bfloat16")]
    assert 0 < drift[0] < 1e-4 < drift[1] < drift[2] < 1


def test_strengths_are_those_of_the_permuted_model() -> None:
    """What an order changes is which heads the even places hold."""
    decoder, family = model(), prompts(bug_pairs=6, control_pairs=2)
    summary = analysed(decoder, dtypes=("float64",)).table.summary()
    orders = head_orders(4, 4, np.random.default_rng(0))
    bugs, halves = family.where(family.is_bug_P), heads_as_weights([(0, 2), (1, 3)], 4)
    for name, order in orders.items():
        even_P, odd_P = PromptPatching(decoder.permuted(1, order), bugs, Patch(), [1]).deltas({1: halves})[1]
        assert summary[f"{name}_strength_nats"]["value"] == pytest.approx((even_P - odd_P).mean(), abs=1e-5)
    assert summary["swap_strength_nats"]["value"] == pytest.approx(-summary["identity_strength_nats"]["value"])


def test_it_is_deterministic_and_leaves_the_model() -> None:
    decoder = model()
    before = {name: part.clone() for name, part in decoder.state_dict().items()}
    first, second = (analysed(decoder, dtypes=("float32", "bfloat16")) for _ in range(2))
    assert first.table.rows() == second.table.rows() and first.tables["orders"].equals(second.tables["orders"])
    assert all(torch.equal(before[name], part) for name, part in decoder.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtypes": []}, r"analysis.permutation.dtypes=\[\] must be a list of 1 or more"),
        ({"dtypes": ["float32", "int8"]}, r"analysis.permutation.dtypes\[1\]='int8' must be one of float64, float32"),
        ({"dtypes": ["float32", "float32"]}, "must be distinct"),
        ({"tokens": 2}, "analysis.permutation.tokens=2 must be at least 3"),
        ({"texts": 0}, "analysis.permutation.texts=0"),
    ],
)
def test_impossible_settings(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(HeadPermutation, settings, "analysis.permutation")
    with pytest.raises(ValueError, match="layer=9 is out of range"):
        analysed(model(), layer=9)
