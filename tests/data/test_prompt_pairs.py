"""Prompt pairs from a file: what is read, what is refused with its line, and the recipes against their definitions."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headdyn.data.pair_recipes import CENTURIES, MOST, NAMES, OBJECTS, PLACES, STORIES, main, make
from headdyn.data.prompt_pairs import PromptPairs, read_pairs
from headdyn.data.prompts import Block
from tests.small_tokenizer import Pieces, byte_level

PAIRS = [
    {"clean": "a b c", "corrupted": "a d c", "right": " x", "wrong": " y", "group": "one"},
    {"clean": "a d c", "corrupted": "a e c", "right": " x", "wrong": " yz", "group": None},
    {"clean": "Q: a b c", "corrupted": "a b c", "right": " x", "wrong": " y", "group": "control"},
]


def jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_three_kinds_of_files_hold_the_same(tmp_path: Path) -> None:
    jsonl(tmp_path / "pairs.jsonl", PAIRS)
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "pairs.parquet")
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(PAIRS[0]))
        writer.writeheader()
        writer.writerows(PAIRS)
    read = [read_pairs(tmp_path / f"pairs.{kind}") for kind in ("jsonl", "csv", "parquet")]
    for pairs in read:
        assert [(p.clean, p.corrupted, p.right, p.wrong) for p in pairs] == [
            tuple(pair[name] for name in ("clean", "corrupted", "right", "wrong")) for pair in PAIRS
        ]
        assert [p.group for p in pairs] == ["one", "pairs", "control"] and [p.is_bug for p in pairs] == [1, 1, 0]
    assert [pairs[1].place.removeprefix(str(tmp_path)) for pairs in read] == [
        "/pairs.jsonl:2",
        "/pairs.csv:3",
        "/pairs.parquet, row 2",
    ]


def test_pairs_in_tokens(tmp_path: Path) -> None:
    tokenizer = Pieces(" x", " yz", " y", "Q:", " a", " b", " c", " d", " e")
    prompts = PromptPairs(path=str(jsonl(tmp_path / "p.jsonl", PAIRS))).prompts(tokenizer)
    one, other, control = prompts.groups
    assert (one.format, other.format, control.format) == ("one", "pairs", "control")
    assert tokenizer.decode(one.clean_NT[0]) == "a b c" and tokenizer.decode(one.corrupted_NT[0]) == "a d c"
    # Prompts of one length correspond position by position, others by their longest common block.
    assert (one.span.source_start, one.span.target_start, one.span.length) == (0, 0, 3)
    assert (control.span.source_start, control.span.target_start, control.span.length) == (2, 1, 2)
    assert tokenizer.decode(other.wrong_NA[0]) == " yz" and prompts.is_bug_P.tolist() == [True, True, False]


def test_prompts_of_unequal_length_correspond_behind_their_first_difference(tmp_path: Path) -> None:
    """What they begin with in common is longer here, but a causal model has the same values there."""
    tokenizer = Pieces(" x", " y", " a", " b", " c", " d", " e")
    pair = {"clean": "a b c d", "corrupted": "a b c e b d", "right": " x", "wrong": " y"}
    (group,) = PromptPairs(path=str(jsonl(tmp_path / "p.jsonl", [pair]))).prompts(tokenizer).groups
    assert group.span == Block(3, 5, 1)
    with pytest.raises(ValueError, match="'a b' and 'a b c' do not align: they share no token behind their first"):
        PromptPairs(path=str(jsonl(tmp_path / "q.jsonl", [{**pair, "clean": "a b", "corrupted": "a b c"}]))).prompts(
            tokenizer
        )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**PAIRS[0], "wrong": ""}, r"p.jsonl:2 has wrong=''; give text for each of clean, corrupted, right, wrong"),
        ({"clean": "a"}, r"p.jsonl:2 has corrupted=None"),
        ([1], r"p.jsonl:2 has clean=None"),
        ({**PAIRS[0], "wrong": " x"}, r"p.jsonl:2: right and wrong are both ' x'"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PromptPairs(path=str(jsonl(tmp_path / "p.jsonl", [PAIRS[0], row])))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"clean": \n')
    (tmp_path / "p.txt").write_text("a")
    columns = "clean,corrupted,right,wrong\n"
    (tmp_path / "empty.csv").write_text(columns)
    (tmp_path / "comma.csv").write_text(f"{columns}a,b, x, y\nWell, a,b, x, y\n")
    for name in ("latin.csv", "latin.jsonl"):
        (tmp_path / name).write_bytes("clean,corrupted,right,wrong\ncafé,b, x, y\n".encode("latin-1"))
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-20])
    for name, words in (
        ("p.jsonl", "p.jsonl:1 is not JSON"),
        ("p.txt", "is of no known type"),
        ("q.csv", "does not exist"),
        ("empty.csv", "holds no pair"),
        ("comma.csv", "comma.csv:3 has more cells than columns; quote values that hold commas"),
        ("latin.csv", "data.path=.*latin.csv is not UTF-8 text .*; save it as UTF-8"),
        ("latin.jsonl", "data.path=.*latin.jsonl is not UTF-8 text .*; save it as UTF-8"),
        ("cut.parquet", "data.path=.*cut.parquet is no whole Parquet file .*; write it again"),
    ):
        with pytest.raises(ValueError, match=words):
            PromptPairs(path=str(tmp_path / name))
    with pytest.raises(ValueError, match="of the group 'control' alone"):
        PromptPairs(path=str(jsonl(tmp_path / "c.jsonl", PAIRS[2:])))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {**PAIRS[0], "right": "bb", "wrong": "zz"},
            r"p.jsonl:2: the tokens of the answer 'bb' do not simply follow those of 'a b c'",
        ),
        ({**PAIRS[0], "wrong": " xx"}, r"p.jsonl:2: the answers ' x' and ' xx' share all tokens of the shorter one"),
        ({**PAIRS[0], "corrupted": "Q:"}, r"p.jsonl:2: 'a b c' and 'Q:' do not align: they share no token"),
    ],
)
def test_a_line_that_the_tokens_refuse_is_named(tmp_path: Path, row: Mapping[str, str], words: str) -> None:
    tokenizer = Pieces(" x", " y", "Q:", "cbb", "c", "b", "a", " ")
    with pytest.raises(ValueError, match=words):
        PromptPairs(path=str(jsonl(tmp_path / "p.jsonl", [PAIRS[0], row]))).prompts(tokenizer)


def test_indirect_objects_are_those_of_their_definition() -> None:
    pairs = make("ioi", 60)
    assert pairs == make("ioi", 60) and len({pair["clean"] for pair in pairs}) == 60
    for pair in pairs:
        named, other = ([w for w in re.findall(r"\w+", pair[key]) if w in NAMES] for key in ("clean", "corrupted"))
        right, wrong = pair["right"][1:], pair["wrong"][1:]
        assert len(named) == 3 and set(named) == {right, wrong}
        assert named.count(wrong) == 2 and named[2] == wrong  # the giver, named twice, is not whom it is given to
        assert other[:2] == named[:2] and other[2] == right
        assert pair["corrupted"].split() == [
            right if i == _third(pair["clean"]) else w for i, w in enumerate(pair["clean"].split())
        ]
    assert {pair["right"][1:] == re.findall("|".join(NAMES), pair["clean"])[0] for pair in pairs} == {True, False}


def _third(text: str) -> int:
    """The place of the third name among the words."""
    return [i for i, word in enumerate(text.split()) if word.strip(",.") in NAMES][2]


def test_years_are_those_of_their_definition() -> None:
    for pair in make("greater_than", 60):
        (century, year, again) = re.fullmatch(
            r"The \w+ lasted from the year (\d\d)(\d\d) to the year (\d\d)", pair["clean"]
        ).groups()
        assert century == again and int(century) in CENTURIES
        assert int(pair["wrong"]) < int(year) < int(pair["right"]) < 100 and len(pair["wrong"]) == 2
        assert pair["corrupted"] == pair["clean"].replace(century + year, century + "01")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: task, count"),
        (["ioi"], "the following arguments are required: count"),
        (["ioi", "x"], "argument count: invalid int value: 'x'"),
        (["ioi", "0"], "count=0 is no number of pairs; ask for 1 or more"),
        (["greater_than", "3081"], "count=3081, but greater_than has 3080 different pairs; ask for at most that many"),
        (["ioi", "1000000"], "but ioi has 69888 different pairs"),
        (["nonsense", "3"], "argument task: invalid choice: 'nonsense'"),
    ],
)
def test_a_recipe_that_cannot_be_made_is_refused_in_a_line(
    arguments: Sequence[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_as_many_pairs_as_a_recipe_can_make_are_to_be_had() -> None:
    assert len({pair["clean"] for pair in make("greater_than", MOST["greater_than"])}) == 8 * 5 * 77
    clean = {
        story.format(a=a, b=b, giver=giver, place=place, object=thing)
        for story, place, thing in itertools.product(STORIES, PLACES, OBJECTS)
        for a, b in itertools.permutations(NAMES, 2)
        for giver in (a, b)
    }
    assert len(clean) == MOST["ioi"]


def test_the_command_prints_its_pairs_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    main(["ioi", "3"])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == make("ioi", 3)


@pytest.mark.parametrize("task", ["ioi", "greater_than"])
def test_recipes_are_read_as_prompt_pairs(tmp_path: Path, task: str) -> None:
    prompts = PromptPairs(path=str(jsonl(tmp_path / "p.jsonl", make(task, 8)))).prompts(byte_level())
    assert len(prompts.pairs) == 8 and prompts.is_bug_P.all()
