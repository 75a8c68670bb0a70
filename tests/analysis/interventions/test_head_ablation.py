from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig

from headdyn.analysis.interventions.ablation import KINDS
from headdyn.analysis.interventions.ablation_measure import group_masks
from headdyn.analysis.interventions.head_ablation import HeadAblation, Texts, TokenGroup, group_rank
from headdyn.data.prompt_pairs import PromptPairs
from headdyn.models.decoder import Decoder, Edit
from headdyn.models.families import load_pretrained
from headdyn.studies.weight_clusters.ablation import other_slices_zero
from tests.analysis import tiny
from tests.parity import hugging_face
from tests.small_models import CONFIGS, NEOX, drawn, tokens
from tests.small_tokenizer import Pieces, prompts


def texts(rows: int = 5, length: int = 7, read: str = "last", **fields) -> Texts:
    group = TokenGroup(tokens_NT=tokens(rows, length).numpy(), units_N=np.arange(rows), **fields)
    return Texts(groups=(group,), units=rows, unit="sequence", read=read)


def kl(plain: torch.Tensor, other: torch.Tensor) -> np.ndarray:
    """KL in nats of every row, averaged over the positions given."""
    log_p, log_q = plain.double().log_softmax(-1), other.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean(-1).numpy()


@torch.no_grad()
def by_edit(decoder: Decoder, read: Texts, layer: int, heads: list[int], value: torch.Tensor) -> np.ndarray:
    """The same, written plainly: z replaced in a whole run of the model."""
    (group,) = read.groups
    text = torch.from_numpy(group.tokens_NT)
    documents = None if group.documents_NT is None else torch.from_numpy(group.documents_NT)
    where = torch.zeros(decoder.config.num_heads, 1, dtype=torch.bool)
    where[heads] = True
    edit = Edit(site="z", layer=layer, value=value, where=where)
    plain, other = (
        decoder.trace(text, layers=(), edits=edits, documents_BT=documents).logits for edits in ((), (edit,))
    )
    last = slice(-1, None) if read.read == "last" else slice(None)
    return kl(plain[:, last], other[:, last])


def mask(*heads: int, count: int = 4) -> np.ndarray:
    return np.isin(np.arange(count), heads)[None]


def test_zero_and_mean_ablation_of_hugging_faces_own_model(tmp_path) -> None:
    """A hook on the output projection's input, where the heads' z stand side by side."""
    config = GPTNeoXConfig(
        vocab_size=29, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40
    )
    folder = hugging_face.build(config, tmp_path)
    theirs, text = hugging_face.load(folder), tokens(5, 7)
    plain, z, _ = hugging_face.outputs(theirs, text)
    read = texts()
    runs = HeadAblation(load_pretrained(folder, torch.float32), read, np.random.default_rng(0))
    for layer, heads in itertools.product(range(3), [(0,), (1, 3), (0, 1, 2, 3)]):
        for kind in ("zero", "mean"):

            def hook(module, inputs, layer=layer, heads=heads, kind=kind):
                z_BTHd = inputs[0].unflatten(-1, (4, -1)).clone()
                z_BTHd[:, :, list(heads)] = 0 if kind == "zero" else z[layer].mean(0)[:, list(heads)]
                return (z_BTHd.flatten(-2),)

            handle = theirs.gpt_neox.layers[layer].attention.dense.register_forward_pre_hook(hook)
            with torch.no_grad():
                silenced = theirs(text).logits
            handle.remove()
            ours = runs.divergences(kind, {layer: mask(*heads)})[layer][0]
            expected = kl(plain[:, -1:], silenced[:, -1:])
            assert expected.min() > 1e-4
            np.testing.assert_allclose(ours, expected, rtol=3e-5)  # float32; measured 3e-6


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("read", ["last", "all"])
def test_every_way_of_silencing_against_whole_runs(name: str, read: str) -> None:
    decoder, plain = drawn(CONFIGS[name]), texts(read=read)
    runs = HeadAblation(decoder, plain, np.random.default_rng(0), donors=4)
    text = torch.from_numpy(plain.groups[0].tokens_NT)
    z = decoder.trace(text, sites=("z",), logits=None)
    for layer in range(3):
        own = z["z", layer]
        values = {"zero": [torch.zeros(())], "mean": [own.mean(0, keepdim=True)]}
        values["resample"] = [own.roll(shift, 0) for shift in range(1, 5)]  # every other row once, in some order
        for kind in KINDS:
            expected = np.mean([by_edit(decoder, plain, layer, [1, 2], value) for value in values[kind]], axis=0)
            np.testing.assert_allclose(
                runs.divergences(kind, {layer: mask(1, 2)})[layer][0], expected, rtol=1e-8, atol=1e-12
            )
            assert expected.max() > 1e-5


def test_documents_stay_apart() -> None:
    decoder, documents = drawn(NEOX), np.repeat([[0, 0, 0, 1, 1, 1, 1]], 5, axis=0)
    read = texts(read="all", documents_NT=documents)
    runs = HeadAblation(decoder, read, np.random.default_rng(0))
    ours = runs.divergences("zero", {0: mask(2)})[0][0]
    np.testing.assert_allclose(ours, by_edit(decoder, read, 0, [2], torch.zeros(())), rtol=1e-8)
    other = by_edit(decoder, texts(read="all"), 0, [2], torch.zeros(()))
    assert np.abs(ours - other).max() > 1e-4, "mutant: documents ignored"


def test_the_original_slices_are_other_heads() -> None:
    """Zeroing D/H numbers behind W_O is no ablation of a head: the KL is another."""
    decoder, read = drawn(NEOX), texts()
    ours = HeadAblation(decoder, read, np.random.default_rng(0)).divergences("zero", {1: mask(2)})[1][0]
    text = torch.from_numpy(read.groups[0].tokens_NT)
    edit = other_slices_zero(decoder, 1, ~mask(2)[0])
    sliced = kl(
        *(decoder.trace(text, layers=(), edits=edits, logits="last").logits.detach() for edits in ((), (edit,)))
    )
    assert np.abs(np.log(ours / sliced)).max() > 0.3


def test_cells_do_not_depend_on_how_many_run_at_once() -> None:
    decoder, every = drawn(NEOX), group_masks(4, 2, 99, np.random.default_rng(0))
    for kind in KINDS:
        together, alone = (
            HeadAblation(decoder, texts(), np.random.default_rng(0), max_bytes=size).divergences(kind, {1: every})[1]
            for size in (2**28, 1)
        )
        np.testing.assert_allclose(together, alone, rtol=1e-9)


def test_no_heads_no_loss_and_silenced_heads_lose_nothing_more() -> None:
    decoder = drawn(NEOX)
    runs = HeadAblation(decoder, texts(), np.random.default_rng(0))
    assert runs.divergences("zero", {1: mask()})[1].max() < 1e-14
    assert runs.divergences("zero", {1: mask(0, 1)})[1].sum() != runs.divergences("zero", {1: mask(0)})[1].sum()


def test_units_average_their_rows() -> None:
    groups = tuple(TokenGroup(tokens_NT=np.zeros((2, 3)), units_N=np.array(units)) for units in ([0, 1], [0, 0]))
    both = Texts(groups=groups, units=2, unit="pair", read="last")
    np.testing.assert_allclose(both.by_unit([np.array([[3.0, 5.0]]), np.array([[6.0, 9.0]])]), [[6, 5]])


def test_prompts_are_read_where_the_answers_part() -> None:
    family = prompts(bug_pairs=6, control_pairs=0)
    few = family.where(np.arange(6) < 5).in_company()
    read = Texts.of_prompts(family, 5)
    assert read.units == len(few.pairs) > 1 and read.read == "last"
    for ours, group in zip(read.groups, few.groups, strict=True):
        np.testing.assert_array_equal(ours.units_N, group.units_N)
        np.testing.assert_array_equal(ours.tokens_NT, np.concatenate((group.corrupted_NT, group.shared_NC), axis=1))


def test_a_prompt_of_a_length_of_its_own_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ends = (("a b c", "a d c"), ("a b c d", "a b d d"), ("a c c", "a d d"))
    rows = [{"clean": clean, "corrupted": corrupted, "right": " x", "wrong": " y"} for clean, corrupted in ends]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    family = PromptPairs(path=str(tmp_path / "pairs.jsonl")).prompts(Pieces(" x", " y", " a", " b", " c", " d"))
    read = Texts.of_prompts(family, 3)
    assert read.units == 2 and [group.units_N.tolist() for group in read.groups] == [[0, 1]]
    assert family.in_company().pairs == (family.pairs[0], family.pairs[2])
    assert "1 of 3 pairs are left out" in caplog.text
    with pytest.raises(ValueError, match="of 2 pairs none has a prompt as long as another's"):
        Texts.of_prompts(family, 2)


def test_a_corpus_is_read_everywhere() -> None:
    corpus = tiny.corpus(rows=6)
    read = Texts.of_corpus(corpus, 4)
    assert read.units == 4 and read.read == "all" and read.groups[0].documents_NT is None
    np.testing.assert_array_equal(read.groups[0].tokens_NT, corpus.val.tokens_NT[:4])


def test_one_text_of_a_length_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 1 groups of texts of equal length hold one text"):
        HeadAblation(drawn(NEOX), texts(rows=1), np.random.default_rng(0))


def test_groups_of_heads_are_all_or_different() -> None:
    every = group_masks(5, 2, 10, np.random.default_rng(0))
    assert {tuple(np.flatnonzero(row)) for row in every} == set(itertools.combinations(range(5), 2))
    some = group_masks(8, 4, 30, np.random.default_rng(0))
    assert len(np.unique(some, axis=0)) == 30 < math.comb(8, 4) and (some.sum(1) == 4).all()


def test_rank_of_a_group_by_hand() -> None:
    every = group_masks(3, 1, 10, np.random.default_rng(0))
    assert group_rank(2.0, every[1], every, np.array([3.0, 2.0, 1.0])) == 2 / 3
    assert group_rank(2.0, every[1], every[[0, 2]], np.array([3.0, 1.0])) == 2 / 3, "a sample without the group"
    assert group_rank(2.0, every[1], every, np.array([2.0 - 1e-12, 2.0, 1.0])) == 2 / 3, "ties up to rounding"


def test_the_rank_of_a_group_is_uniform_over_relabelled_heads() -> None:
    """Every group of a size in turn: p takes each value k/n once, so it is exact."""
    runs = HeadAblation(
        drawn(dataclasses.replace(NEOX, num_heads=6, num_kv_heads=6)), texts(), np.random.default_rng(0)
    )
    every = group_masks(6, 3, 20, np.random.default_rng(0))
    value_R = runs.divergences("resample", {1: every})[1].mean(-1)
    p = sorted(group_rank(value, row, every, value_R) for value, row in zip(value_R, every, strict=True))
    np.testing.assert_allclose(p, np.arange(1, 21) / 20)
