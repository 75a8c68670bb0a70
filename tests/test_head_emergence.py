"""Induction heads planted in a series of checkpoints are dated where Hugging Face sees the repeated tokens' loss fall."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from headdyn.run import main
from tests.commands import environment

STEPS = (0, 100, 200, 400, 800)
ONSET = 3  # the place of the first of them that has its heads
VOCABULARY, POSITIONS = 48, 32
# What the residual stream's dimensions hold, one for each token or position.
TOKEN, POSITION, PREVIOUS, COPIED = 0, VOCABULARY, VOCABULARY + POSITIONS, 2 * VOCABULARY + POSITIONS
WIDTH = 3 * VOCABULARY + POSITIONS
HEAD = WIDTH // 2  # dimensions of a head, more than there are tokens


@torch.no_grad()
def planted(strength: float) -> GPT2LMHeadModel:
    """A GPT-2 whose head 0.0 looks at the previous token and whose head 1.0 copies what followed its own (Elhage et al.
    2021), to the degree `strength`: at 0 both attend evenly and write nothing. Heads 0.1 and 1.1 do neither."""
    sizes = {
        "n_embd": WIDTH,
        "n_layer": 2,
        "n_head": 2,
        "n_inner": 1,
        "vocab_size": VOCABULARY,
        "n_positions": POSITIONS,
    }
    model = GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0))
    for name, parameter in model.named_parameters():
        parameter.fill_(float(name.endswith("weight") and ".ln_" in name))  # gains of 1, all else 0

    def one_to_one(matrix: torch.Tensor, row: int, column: int, count: int, value: float) -> None:
        places = torch.arange(count)
        matrix[row + places, column + places] = value

    body, read, copied = model.transformer, 1.2 * strength, 0.5 * strength
    one_to_one(body.wte.weight, 0, TOKEN, VOCABULARY, 1)
    one_to_one(body.wpe.weight, 0, POSITION, POSITIONS, 1)
    query, key, value = 0, WIDTH, 2 * WIDTH
    first, second = body.h[0].attn, body.h[1].attn
    one_to_one(first.c_attn.weight, POSITION + 1, query, POSITIONS - 1, read)  # position t asks for position t − 1
    one_to_one(first.c_attn.weight, POSITION, key, POSITIONS, read)
    one_to_one(first.c_attn.weight, TOKEN, value, VOCABULARY, 1)
    one_to_one(first.c_proj.weight, 0, PREVIOUS, VOCABULARY, 0.1 * strength)
    one_to_one(second.c_attn.weight, TOKEN, query, VOCABULARY, read)  # a token asks for where it was the previous one
    one_to_one(second.c_attn.weight, PREVIOUS, key, VOCABULARY, read)
    one_to_one(second.c_attn.weight, TOKEN, value, VOCABULARY, 1)
    one_to_one(second.c_proj.weight, 0, COPIED, VOCABULARY, copied)
    one_to_one(model.lm_head.weight, 0, COPIED, VOCABULARY, 1)
    return model.eval()


@torch.no_grad()
def repeated_loss(model: GPT2LMHeadModel) -> float:
    """Loss on the second reading of sixteen random tokens, in nats, mean over 64 sequences."""
    generator = torch.Generator().manual_seed(0)
    once_NT = torch.randint(VOCABULARY, (64, POSITIONS // 2), generator=generator)
    twice_NT = torch.cat((once_NT, once_NT), dim=1)
    loss_X = torch.nn.functional.cross_entropy(
        model(twice_NT).logits[:, :-1].flatten(0, 1), twice_NT[:, 1:].flatten(), reduction="none"
    )
    return float(loss_X.view(64, -1)[:, POSITIONS // 2 :].mean())


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[int]]:
    """A folder of revisions that get their heads at `ONSET`, and the steps between which Hugging Face
    sees the loss pass the middle of its fall."""
    for name in ("HEADDYN_OUT", "HEADDYN_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, environment(tmp_path)[name])
    monkeypatch.setattr(sys, "argv", ["headdyn"])
    losses = []
    for place, step in enumerate(STEPS):
        model = planted((0.9 if place >= ONSET else 0.0) + 0.02 * place)
        model.save_pretrained(tmp_path / "series" / f"checkpoint-{step}")
        losses.append(repeated_loss(model))
    assert max(losses) - min(losses) > 1
    fallen = int(np.argmax(np.array(losses) < (max(losses) + min(losses)) / 2))
    assert fallen == ONSET
    return tmp_path / "series", [STEPS[fallen - 1], STEPS[fallen]]


def dated(folder: Path) -> dict[str, list[int]]:
    """Between which steps the verdict has each measure emerge; the heads that have the roles at the end are as planted."""
    few = ("mode=smoke", "tracking=none", "threads=1", "patterns_kept=0", "analysis.emergence.bootstrap_draws=100")
    model = ("model=huggingface", f"model.name={folder}", f"data.sequence_length={POSITIONS}")
    attention = ("analysis.attention.sequences=32", "analysis.attention.bootstrap_draws=100")
    assert main(["-m", "experiment=head_emergence", *few, *model, *attention]) == 0
    (sweep,) = (folder.parent / "out" / "multirun").iterdir()
    roles = [row for row in pq.read_table(sweep / "head_roles.parquet").to_pylist() if row["step"] == STEPS[-1]]
    strongest = {row["role"]: (row["layer"], row["head"]) for row in roles}
    assert (strongest["previous-token"], strongest["induction"]) == ((0, 0), (1, 0))
    verdicts = {entry["analysis"]: entry["verdict"] for entry in json.loads((sweep / "verdict.json").read_text())}
    measures = verdicts["emergence"]["measures"]
    names = ("induction_top", "repeat_gain_nats")
    return {name: [measures[name][f"emerges_{end}_step"] for end in ("after", "at")] for name in names}


def test_planted_induction_heads_are_dated_where_the_loss_on_repeated_tokens_falls(
    series: tuple[Path, Sequence[int]],
) -> None:
    folder, fall = series
    assert dated(folder) == {"induction_top": fall, "repeat_gain_nats": fall}
