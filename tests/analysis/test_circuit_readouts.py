from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
import torch

from headdyn.analysis.circuit_factors import Factors, cosines, folded, singular_values
from headdyn.analysis.circuit_figures import readouts_figure, similarity_figures
from headdyn.analysis.circuit_readouts import by_head, furthest, singular_directions, token_names, token_readouts
from headdyn.core.figures import rendered
from headdyn.data.text.tokenizer import save_tokenizer
from headdyn.models.decoder import Decoder
from tests import small_models, small_tokenizer
from tests.analysis import tiny
from tests.figure_checks import charts, rows

UNTIED = dataclasses.replace(small_models.MHA, d_model=32, tied_embeddings=False, num_layers=1)


def drawn(width: int = 6, heads: int = 3) -> Factors:
    generator = torch.Generator().manual_seed(0)
    return Factors(*torch.randn((2, heads, 32, width), generator=generator, dtype=torch.float64))


def test_directions_are_those_of_the_whole_matrix():
    factors = drawn()
    share_NX, left_NDX, right_NDX = singular_directions(factors, 4)
    whole_NDD = factors.left_NDd @ factors.right_NDd.mT
    sigma_NX = torch.einsum("ndx,nde,nex->nx", left_NDX, whole_NDD, right_NDX)
    torch.testing.assert_close(sigma_NX, singular_values(factors)[:, :4])
    np.testing.assert_allclose(share_NX, sigma_NX**2 / whole_NDD.square().sum((1, 2))[:, None], atol=1e-12)
    for side in (left_NDX, right_NDX):
        torch.testing.assert_close(side.mT @ side, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))


@torch.no_grad()
def planted(reads: int, writes: int) -> Decoder:
    """Head 2 of layer 0 reads one token's embedding and writes another's unembedding; it scores query on key alike."""
    decoder = small_models.drawn(UNTIED)
    attention, d = decoder.blocks[0].attention, UNTIED.head_dim
    for table in (decoder.embed.weight, decoder.unembed.weight):
        table.copy_(torch.eye(32, dtype=torch.float64)[: len(table)] + 0.01 * table)
    decoder.norm.weight.fill_(1)
    decoder.blocks[0].norm1.weight.fill_(1)
    for gains in (attention.q_norm.weight, attention.k_norm.weight):
        gains.fill_(1)
    head = slice(2 * d, 3 * d)
    for linear, token in ((attention.q, reads), (attention.k, writes), (attention.v, reads)):
        linear.weight[head] = 0.01 * linear.weight[head]
        linear.weight[2 * d, token] = 1.0
    attention.o.weight[:, head] = 0.01 * attention.o.weight[:, head]
    attention.o.weight[writes, 2 * d] = 1.0
    return decoder


def readouts(decoder: Decoder, circuit: str, factors: Factors | None = None):
    factors = factors or folded(decoder, 0)[circuit]
    return token_readouts(circuit, factors, decoder, directions=2, tokens=5, text=str)


@pytest.mark.parametrize("circuit", ["qk", "ov"])
def test_a_planted_pair_of_tokens_is_read_on_the_right_sides(circuit):
    first, second = ("query", "key") if circuit == "qk" else ("reads", "writes")
    decoder = planted(7, 11)
    head = by_head(readouts(decoder, circuit))[0, 2]
    assert (head[first]["texts"][0], head[second]["texts"][0]) == ("7", "11")
    assert head[first]["share"] > 0.9 and min(head[side]["deviations"][0] for side in head) > 4
    factors = folded(decoder, 0)[circuit]
    mutant = by_head(readouts(decoder, circuit, Factors(factors.right_NDd, factors.left_NDd)))[0, 2]
    assert (mutant[first]["texts"][0], mutant[second]["texts"][0]) == ("11", "7")  # sides exchanged


def test_readouts_do_not_depend_on_gauge_nor_sign():
    decoder = planted(7, 11)
    factors = folded(decoder, 0)["ov"]
    mix = torch.randn((6, 6), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turned = Factors(-factors.left_NDd @ mix, -factors.right_NDd @ torch.linalg.inv(mix).T)
    ours, theirs = (readouts(decoder, "ov", each).to_pylist() for each in (factors, turned))
    assert [(row["token"], row["side"]) for row in ours] == [(row["token"], row["side"]) for row in theirs]
    assert max(abs(a["deviations"] - b["deviations"]) for a, b in zip(ours, theirs, strict=True)) < 1e-3


def test_random_heads_reach_no_further_than_a_normal_vocabulary():
    decoder = small_models.drawn(UNTIED)
    found = readouts(decoder, "ov", drawn(heads=40))
    assert 1.5 < furthest(found) < 2.8  # the largest of 29 standard normal values averages 2.0, of the sign's side 2.3
    assert furthest(readouts(planted(7, 11), "ov", folded(planted(7, 11), 0)["ov"])) > furthest(found)


def test_tokens_are_written_as_text_where_there_is_any():
    assert token_names(tiny.corpus())(12) == "12"
    prompts = small_tokenizer.prompts(bug_pairs=2, control_pairs=2)
    assert token_names(prompts)(small_tokenizer.byte_level().encode("a")[0]) == "a"


def test_a_corpus_of_text_names_its_tokens(tmp_path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"one": 0, "two": 1}, unk_token="one"))
    save_tokenizer(tokenizer, tmp_path / "tokenizer", 8)
    corpus = dataclasses.replace(tiny.corpus(), tokenizer=tmp_path / "tokenizer")
    assert token_names(corpus)(1) == "two"


def test_tokens_the_font_cannot_draw_are_shown_by_their_code():
    decoder = planted(7, 11)
    table = token_readouts("ov", folded(decoder, 0)["ov"], decoder, directions=1, tokens=3, text=lambda _: "中 $\n")
    figure = readouts_figure({"ov": table, "qk": table.slice(0, 0)}, {"qk": 2.0, "ov": 2.0})
    assert any("U+4E2D␣$↵" in row["text"] for row in rows(figure, "text"))


def test_heads_that_are_alike_stand_side_by_side_below_chance():
    factors = drawn(heads=8)
    left, right = factors.left_NDd.clone(), factors.right_NDd.clone()
    left[6], right[6] = 2 * left[1], right[1]  # heads 1 and 6 are one circuit
    matrix = cosines(Factors(left, right)).numpy()
    null = cosines(drawn(heads=8)).numpy()
    figure = similarity_figures({"qk": matrix, "ov": matrix}, [{"qk": null, "ov": null}], heads=4)["clusters"]
    label = next(unit["encoding"]["y"]["axis"] for unit in charts(figure.spec()) if unit["mark"]["type"] == "image")
    names = json.loads(label["labelExpr"].partition("[datum")[0])
    assert abs(names.index("0.1") - names.index("1.2")) == 1 and len(set(names)) == 8
    (chance,) = [row["height"] for row in rows(figure, "height") if "join" not in row]
    joins = sorted(row["height"] for row in rows(figure, "join") if row["corner"] == 1)
    assert joins[0] < 1e-6 < chance < joins[1] + 0.2


def test_a_zero_circuit_is_like_nothing_and_draws():
    matrix = np.full((4, 4), np.nan)
    figures = similarity_figures({"qk": matrix, "ov": matrix}, [{"qk": matrix, "ov": matrix}], heads=4)
    assert all(rendered(figure.spec(), "svg") for figure in figures.values())
    empty = readouts(
        small_models.drawn(UNTIED), "ov", Factors(torch.zeros(4, 32, 6).double(), torch.zeros(4, 32, 6).double())
    )
    assert empty.num_rows == 0 and "deviations" in empty.column_names
    tables = {"ov": empty, "qk": readouts(small_models.drawn(UNTIED), "qk")}
    assert rendered(readouts_figure(tables, {"qk": 2.0, "ov": 2.0}).spec(), "svg")
