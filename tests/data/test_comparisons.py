from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import yaml

from headdyn.core.settings import ConfigError, build
from headdyn.data.comparisons import ORIGINAL_PAIR, Comparisons, Format, Pair, all_pairs
from headdyn.data.prompts import Block, longest_common_block
from tests.small_tokenizer import BIGGER, LARGER, Pieces, byte_level, prompts


def test_every_pair_is_classed_by_exact_arithmetic() -> None:
    for bug in (True, False):
        pairs = all_pairs(bug=bug)
        assert len(pairs) == len(set(pairs)) == 3240
        for pair in pairs:
            assert Decimal(pair.right) > Decimal(pair.wrong)
            integers_mislead = int(pair.right.split(".")[1]) < int(pair.wrong.split(".")[1])
            assert integers_mislead == bug
            assert not pair.right.startswith(pair.wrong) and not pair.wrong.startswith(pair.right)


def test_the_original_pair() -> None:
    assert (ORIGINAL_PAIR.right, ORIGINAL_PAIR.wrong, ORIGINAL_PAIR.is_bug) == ("9.8", "9.11", True)
    control = Pair(whole=9, tenths=2, hundredths=35)
    assert (control.right, control.wrong, control.is_bug) == ("9.35", "9.2", False)


def test_tokens_spell_the_prompts_and_their_answers() -> None:
    family, tokenizer = prompts(bug_pairs=6, control_pairs=4, variants_per_pair=4), byte_level()
    assert sum(map(len, family.groups)) == 40
    templates = {form.name: form for form in (BIGGER, LARGER)}
    for group in family.groups:
        form = templates[group.format]
        for row in range(len(group)):
            pair = family.pairs[group.units_N[row]]
            clean, corrupted = (tokenizer.decode(ids[row]) for ids in (group.clean_NT, group.corrupted_NT))
            wordings = [
                (form.clean.format(first=a, second=b), form.corrupted.format(first=a, second=b))
                for a, b in ((pair.right, pair.wrong), (pair.wrong, pair.right))
            ]
            assert (clean, corrupted) in wordings
            for answer, tail in ((pair.right, group.right_NA), (pair.wrong, group.wrong_NA)):
                assert tokenizer.decode([*group.shared_NC[row], *tail[row]]) == f" {answer}"
            assert group.right_NA[row, 0] != group.wrong_NA[row, 0]


def test_answers_agree_up_to_the_last_token_as_in_pythia() -> None:
    group, tokenizer = prompts().original_prompt, byte_level()
    assert tokenizer.convert_ids_to_tokens(group.shared_NC[0].tolist()) == ["Ġ9", "."]
    assert tokenizer.convert_ids_to_tokens([*group.right_NA[0], *group.wrong_NA[0]]) == ["8", "11"]
    assert len(group) == 1 and tokenizer.decode(group.corrupted_NT[0]) == "Q: Which is bigger: 9.8 or 9.11?\nA:"


def test_answers_of_different_length_are_compared_at_the_first_differing_token() -> None:
    tokenizer = Pieces(" 9")  # digits apart: 9.8 is " 9" "." "8", 9.11 is " 9" "." "1" "1"
    group = Comparisons(formats=(BIGGER,)).prompts(tokenizer).original_prompt
    assert [tokenizer.decode(part[0]) for part in (group.shared_NC, group.right_NA, group.wrong_NA)] == [
        " 9.",
        "8",
        "1",
    ]


def test_answers_of_equal_length_keep_every_token_from_the_first_that_differs() -> None:
    tokenizer = Pieces(r" \d", r"\.1", "1", r"\.", "8")
    group = Comparisons(formats=(BIGGER,), bug_pairs=1).prompts(tokenizer).original_prompt
    tails = [tokenizer.decode(part[0]) for part in (group.shared_NC, group.right_NA, group.wrong_NA)]
    assert tails == [" 9", ".8", ".11"] and group.right_NA.shape == (1, 2)


def test_orders_and_formats_take_turns() -> None:
    family = prompts(bug_pairs=8, control_pairs=4)
    seen: Counter[tuple[str, bool]] = Counter()
    for group in family.groups:
        for unit, clean in zip(group.units_N, group.clean_NT, strict=True):
            text, pair = byte_level().decode(clean), family.pairs[unit]
            seen[group.format, text.index(pair.right) < text.index(pair.wrong)] += 1
    assert len(seen) == 4 and set(seen.values()) == {3}


def test_more_pairs_of_one_seed_begin_with_the_fewer() -> None:
    few, many = (Comparisons(formats=(BIGGER,), bug_pairs=n, control_pairs=0, seed=3).pairs() for n in (4, 40))
    assert many[:4] == few and len(set(many)) == 40
    assert Comparisons(formats=(BIGGER,), bug_pairs=4, control_pairs=0, seed=4).pairs() != few


def test_groups_need_no_padding_and_cover_every_pair() -> None:
    family = prompts(bug_pairs=9, control_pairs=5)
    assert sorted(np.concatenate([group.units_N for group in family.groups])) == list(range(14))
    for group in family.groups:
        arrays = (group.clean_NT, group.corrupted_NT, group.shared_NC, group.right_NA, group.wrong_NA)
        assert {len(array) for array in arrays} == {len(group)} and {array.dtype for array in arrays} == {
            np.dtype("int64")
        }


def test_span_is_the_question_that_both_wordings_share() -> None:
    for group in prompts().groups:
        block = group.block("span")
        theirs = group.clean_NT[:, block.source_start : block.source_start + block.length]
        ours = group.corrupted_NT[:, block.target_start : block.target_start + block.length]
        assert (theirs == ours).all()
        # " is bigger: … ?": behind "Q:" the first word has a space before it and is another token.
        assert block.length == group.clean_NT.shape[1] - 1
        assert group.block("left") == Block(0, 0, group.clean_NT.shape[1])
        assert group.block("right").target_start == group.corrupted_NT.shape[1] - group.clean_NT.shape[1]
    with pytest.raises(ValueError, match="alignment='middle' is unknown"):
        group.block("middle")  # type: ignore[arg-type]


def test_longest_common_block_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = rng.integers(3, size=rng.integers(1, 12)).tolist(), rng.integers(3, size=rng.integers(1, 12)).tolist()
        runs = [
            (n, -i, -j)
            for i in range(len(a))
            for j in range(len(b))
            for n in range(1, min(len(a) - i, len(b) - j) + 1)
            if a[i : i + n] == b[j : j + n]
        ]
        block = longest_common_block(a, b)
        assert block.length == max(runs, default=(0, 0, 0))[0]
        assert a[block.source_start :][: block.length] == b[block.target_start :][: block.length]


def test_by_pair_averages_a_pairs_rows() -> None:
    family = prompts(bug_pairs=3, control_pairs=2, variants_per_pair=3)
    rows = [np.stack([group.units_N * 10.0 + i, np.ones(len(group))]) for i, group in enumerate(family.groups)]
    expected = np.zeros((2, 5))
    for unit in range(5):
        own = [value[:, group.units_N == unit] for value, group in zip(rows, family.groups, strict=True)]
        expected[:, unit] = np.concatenate(own, axis=1).mean(1)
    np.testing.assert_allclose(family.by_pair(rows), expected)


def test_where_keeps_pairs_with_their_rows() -> None:
    family = prompts(bug_pairs=5, control_pairs=4, variants_per_pair=2)
    controls = family.where(~family.is_bug_P)
    assert [pair.is_bug for pair in controls.pairs] == [False] * 4
    text = byte_level().decode
    for group in controls.groups:
        for unit, clean in zip(group.units_N, group.clean_NT, strict=True):
            assert controls.pairs[unit].right in text(clean) and controls.pairs[unit].wrong in text(clean)
    assert sum(map(len, controls.groups)) == 8


def test_a_chat_tokenizer_is_refused_unless_allowed() -> None:
    tokenizer = Pieces(r" ?\d")
    tokenizer.chat_template = "{{ messages }}"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"chat template.*allow_chat_template"):
        Comparisons(formats=(BIGGER,)).prompts(tokenizer)
    assert Comparisons(formats=(BIGGER,), allow_chat_template=True).prompts(tokenizer).groups


def test_an_answer_that_is_no_continuation_is_refused() -> None:
    open_ended = Format(
        name="bigger", clean=BIGGER.clean, corrupted="Q: Which is bigger: {first} or {second}?\nA: ", answer="{answer}"
    )
    with pytest.raises(ValueError, match=r"the answer '\d.\d+' do not simply follow those of 'Q: .*change the spaces"):
        Comparisons(formats=(open_ended,)).prompts(byte_level())


def test_prompts_that_do_not_align_are_refused() -> None:
    apart = Format(name="apart", clean="{first} or {second}?", corrupted="Of {second}, {first} which is bigger?")
    with pytest.raises(ValueError, match=r"do not align.*lacks the numbers"):
        Comparisons(formats=(apart,)).prompts(byte_level())


def test_a_tokenizer_without_padding_token_serves() -> None:
    assert byte_level().pad_token is None and prompts().groups


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"formats": ()}, "data.formats has the names"),
        ({"formats": (BIGGER, BIGGER)}, "each once"),
        ({"bug_pairs": 0}, "data.bug_pairs=0 must be at least 1"),
        ({"bug_pairs": 3241}, "data.bug_pairs=3241 must be at most 3240"),
        ({"control_pairs": 4000}, "data.control_pairs=4000 must be at most 3240"),
        ({"variants_per_pair": 0}, "data.variants_per_pair=0 must be at least 1"),
        ({"variants_per_pair": 3}, r"data.variants_per_pair=3 must lie in 1..2"),
        ({"seed": -1}, "data.seed=-1 must be at least 0"),
    ],
)
def test_impossible_settings(settings: dict, message: str) -> None:
    node = {"formats": [asdict(BIGGER)], **settings}
    node["formats"] = [form if isinstance(form, dict) else asdict(form) for form in node["formats"]]
    with pytest.raises(ConfigError, match=message):
        build(Comparisons, node, "data")
    with pytest.raises(ValueError):
        Comparisons(**{"formats": (BIGGER,), **settings})


def test_a_template_must_name_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"corrupted='Q: \{first\}' must hold \{second\} exactly once"):
        Format(name="x", clean="{first} {second}", corrupted="Q: {first}")


def test_the_default_family_and_no_torch() -> None:
    node = yaml.safe_load(
        (Path(__file__).parents[2] / "conf/data/comparisons.yaml").read_text().replace("${seed}", "0")
    )
    assert node.pop("_target_") == f"{Comparisons.__module__}.Comparisons"
    formats = tuple(Format(**form) for form in node.pop("formats"))
    family = Comparisons(formats=formats, **node).prompts(byte_level())
    assert byte_level().decode(family.original_prompt.clean_NT[0]) == "Which is bigger: 9.8 or 9.11?"
    check = "import sys, headdyn.data.comparisons; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
