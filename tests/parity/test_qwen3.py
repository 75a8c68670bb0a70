"""Mini-Qwen3 is Hugging Face's Qwen3, in and out (science.md section 3)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config

from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.models.families import export_config, export_pretrained, import_config, load_pretrained
from tests.parity import hugging_face
from tests.parity.checks import ATOL, assert_parity, assert_same_weights
from tests.small_models import GQA, MHA, drawn, tokens

QWEN3 = {
    "mha": MHA,
    "gqa": GQA,
    "dropped": GQA.without_positions(),
    "untied": dataclasses.replace(GQA, tied_embeddings=False),
}
LENGTH = 19


def stock_config(**changes: object) -> Qwen3Config:
    settings = {
        "vocab_size": 29,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 3e3},
    }
    return Qwen3Config(**{**settings, **changes})


@pytest.mark.parametrize("config", QWEN3.values(), ids=QWEN3)
def test_export_is_a_stock_model(config: DecoderConfig, tmp_path: Path) -> None:
    decoder, x_BT = drawn(config, dtype=torch.float32), tokens(3, LENGTH)
    assert export_pretrained(decoder, tmp_path) == tmp_path
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "qwen3"
    assert_parity(decoder, tmp_path, x_BT)
    assert_same_weights(load_pretrained(tmp_path, torch.float32), decoder)


STOCK = {
    "mha": {"num_key_value_heads": 4},
    "gqa": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}},
}


@pytest.mark.parametrize("changes", STOCK.values(), ids=STOCK)
def test_import_of_a_stock_model(changes: dict[str, object], tmp_path: Path) -> None:
    hugging_face.build(stock_config(**changes), tmp_path)
    assert_parity(load_pretrained(tmp_path, torch.float32), tmp_path, tokens(3, LENGTH))


@pytest.mark.parametrize("config", [MHA, GQA], ids=["mha", "gqa"])
def test_without_positions_a_stock_model_cannot_tell_them(config: DecoderConfig, tmp_path: Path) -> None:
    """Bitwise: the exported DroPE model gives one result whatever positions it is told, the RoPE model does not."""
    x_BT = tokens(2, LENGTH)
    position_ids = torch.randint(100_000, (1, LENGTH), generator=torch.Generator().manual_seed(3))
    decoder = drawn(config, dtype=torch.float32)
    for kind, exported in (("dropped", decoder.with_config(config.without_positions())), ("rotated", decoder)):
        model = hugging_face.load(export_pretrained(exported, tmp_path / kind))
        usual = hugging_face.outputs(model, x_BT)[0]
        moved = hugging_face.outputs(model, x_BT, position_ids=position_ids)[0]
        assert torch.equal(usual, moved) == (kind == "dropped")


def zero_queries(decoder: Decoder) -> None:
    decoder.blocks[1].attention.q.weight.zero_()


def drop_the_q_norm(decoder: Decoder) -> None:
    for block in decoder.blocks:
        block.attention.q_norm = None


def swap_two_heads(decoder: Decoder) -> None:
    weight = decoder.blocks[2].attention.o.weight
    weight.copy_(weight[:, [*range(6, 12), *range(6), *range(12, 24)]])


def use_a_gain_of_one(decoder: Decoder) -> None:
    decoder.blocks[0].attention.k_norm.weight.fill_(1)


@pytest.mark.parametrize("mutate", [zero_queries, drop_the_q_norm, swap_two_heads, use_a_gain_of_one])
@torch.no_grad()
def test_a_wrong_model_is_not_at_parity(mutate: Callable[[Decoder], None], tmp_path: Path) -> None:
    decoder, x_BT = drawn(GQA, dtype=torch.float32), tokens(3, LENGTH)
    logits = hugging_face.logits(export_pretrained(decoder, tmp_path), x_BT)
    mutate(decoder)
    assert (decoder(x_BT) - logits).abs().max() > 1000 * ATOL


@pytest.mark.parametrize("setting", [{"rotary_theta": 1e4}, {"norm_eps": 1e-2}, {"rotary_fraction": 0.0}], ids=str)
@torch.no_grad()
def test_a_setting_that_is_ignored_shows(setting: dict[str, float], tmp_path: Path) -> None:
    decoder, x_BT = drawn(GQA, dtype=torch.float32), tokens(3, LENGTH)
    logits = hugging_face.logits(export_pretrained(decoder, tmp_path), x_BT)
    mutant = decoder.with_config(dataclasses.replace(GQA, **setting))
    assert (mutant(x_BT) - logits).abs().max() > 100 * ATOL


def test_older_and_newer_transformers_find_theta() -> None:
    """4.57 reads rope_theta and rope_scaling, 5.23 rope_parameters; a DroPE model's scaling stands in both."""
    rope = export_config(GQA, "qwen3", max_positions=512)
    assert rope["rope_theta"] == rope["rope_parameters"]["rope_theta"] == 1e6
    dropped = export_config(GQA.without_positions(), "qwen3", max_positions=512)
    expected = {"rope_type": "linear", "factor": 1e30, "rope_theta": 1e6}
    assert dropped["rope_parameters"] == dropped["rope_scaling"] == expected
    for old in (rope, dropped):
        assert import_config({key: value for key, value in old.items() if key != "rope_parameters"}) == import_config(
            old
        )
