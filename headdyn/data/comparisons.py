"""Number comparison: which is bigger, 9.8 or 9.11? Prompts in a clean and a corrupted format, with both answers.

The task of the checkpoint studies (science.md §10). No torch and no tokenizer library here: any tokenizer with
Hugging Face's `encode` and `decode` serves, and rows of equal length stand together, so nothing is ever padded.

Letters: N rows of a group, T tokens of a prompt, C answer tokens that both answers share, A answer tokens compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from headdyn.core.randomness import generator

Alignment = Literal["left", "right", "span"]


class Tokenizer(Protocol):
    """What is asked of a tokenizer; it needs no padding token."""

    def encode(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the model is used to."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""
        ...


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to ask, twice: templates with {first} and {second}, and the answer's with {answer}.

    The corrupted wording is the one a model is expected to get wrong.
    """

    name: str
    clean: str
    corrupted: str
    answer: str = " {answer}"

    def __post_init__(self) -> None:
        for field, needed in (
            ("clean", ("first", "second")),
            ("corrupted", ("first", "second")),
            ("answer", ("answer",)),
        ):
            for name in needed:
                if getattr(self, field).count(f"{{{name}}}") != 1:
                    raise ValueError(
                        f"data.formats: {field}={getattr(self, field)!r} must hold {{{name}}} exactly once"
                    )


@dataclass(frozen=True, kw_only=True, order=True)
class Pair:
    """a.b against a.cd, the independent unit of every statistic. A bug pair has 10·b > cd: 8 < 11 misleads."""

    whole: int
    tenths: int  # b, 1..9
    hundredths: int  # cd, 10..99

    @property
    def short(self) -> str:
        """The number with one decimal."""
        return f"{self.whole}.{self.tenths}"

    @property
    def long(self) -> str:
        """The number with two decimals: the bigger one when fractions are compared as integers."""
        return f"{self.whole}.{self.hundredths}"

    @property
    def is_bug(self) -> bool:
        """Whether comparing the fractions as integers gives the wrong answer."""
        return 10 * self.tenths > self.hundredths

    @property
    def right(self) -> str:
        """The bigger number."""
        return self.short if self.is_bug else self.long

    @property
    def wrong(self) -> str:
        """The smaller number."""
        return self.long if self.is_bug else self.short


SEED_PAIR = Pair(whole=9, tenths=8, hundredths=11)


def all_pairs(*, bug: bool) -> list[Pair]:
    """Every bug pair, or every control pair, in order; 3,240 of each.

    Pairs where one number begins the other (9.1 and 9.11) are left out: no token would tell the answers apart.
    """
    pairs = [
        Pair(whole=whole, tenths=tenths, hundredths=hundredths)
        for whole in range(1, 10)
        for tenths in range(1, 10)
        for hundredths in range(10, 100)
        if hundredths // 10 != tenths
    ]
    return [pair for pair in pairs if pair.is_bug == bug]


@dataclass(frozen=True)
class Block:
    """`length` positions of the source prompt and of the target prompt that stand for each other."""

    source_start: int
    target_start: int
    length: int

    def reversed(self) -> Block:
        """The same with source and target exchanged."""
        return Block(self.target_start, self.source_start, self.length)


@dataclass(frozen=True, kw_only=True)
class PromptGroup:
    """Rows of one format with equal token counts and the same common block. Token ids are int64, no answer included.

    Δ = log p(right) − log p(wrong) is read after prompt and `shared_NC`: over `right_NA` against `wrong_NA`, which
    differ at their first token. Answers of different token length are cut there, so A = 1 (science.md §10).
    """

    format: str
    units_N: np.ndarray  # index into Prompts.pairs
    clean_NT: np.ndarray
    corrupted_NT: np.ndarray
    shared_NC: np.ndarray
    right_NA: np.ndarray
    wrong_NA: np.ndarray
    span: Block  # the longest common token block, clean as the source

    def __len__(self) -> int:
        return len(self.units_N)

    def rows(self, chosen: np.ndarray) -> PromptGroup:
        """Only the chosen rows (a mask or indices)."""
        arrays = {name: value[chosen] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return dataclasses.replace(self, **arrays)

    def block(self, alignment: Alignment) -> Block:
        """Which corrupted positions (target) the clean ones (source) stand for.

        Raises ValueError for an unknown alignment.
        """
        clean, corrupted = self.clean_NT.shape[1], self.corrupted_NT.shape[1]
        length = min(clean, corrupted)
        if alignment == "left":
            return Block(0, 0, length)
        if alignment == "right":
            return Block(clean - length, corrupted - length, length)
        if alignment == "span":
            return self.span
        raise ValueError(f"alignment={alignment!r} is unknown; it is one of left, right and span")


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What an analysis that `needs` "prompts" is called with in place of a corpus.

    A statistic averages a pair's rows (its variants in `groups`) and then takes pairs as units. `seed_prompt` is the
    seed study's own, one row whose unit is no index into `pairs`; only it is judged by generated strings.
    """

    name: str
    pairs: tuple[Pair, ...]
    groups: tuple[PromptGroup, ...]
    seed_prompt: PromptGroup
    decode: Callable[[Sequence[int]], str]
    facts: Mapping[str, Any]

    @property
    def is_bug_P(self) -> np.ndarray:
        """Which pairs are bug pairs; the others are controls."""
        return np.array([pair.is_bug for pair in self.pairs])

    def where(self, keep_P: np.ndarray) -> Prompts:
        """Only the pairs marked true, renumbered, with their rows."""
        number_P = np.cumsum(keep_P) - 1
        kept = [group.rows(keep_P[group.units_N]) for group in self.groups]
        groups = [dataclasses.replace(group, units_N=number_P[group.units_N]) for group in kept if len(group)]
        pairs = tuple(pair for pair, keep in zip(self.pairs, keep_P, strict=True) if keep)
        return dataclasses.replace(self, pairs=pairs, groups=tuple(groups))

    def by_pair(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Average rows into pairs: one array a group, rows on the last axis [..., N], becomes [..., P]."""
        values = np.concatenate([np.asarray(part, dtype=float) for part in rows], axis=-1)
        units = np.concatenate([group.units_N for group in self.groups])
        share_NP = (units[:, None] == np.arange(len(self.pairs))) / np.bincount(units, minlength=len(self.pairs))
        return values @ share_NP


def judged_right(text: str, pair: Pair = SEED_PAIR) -> bool:
    """The seed's verdict on a continuation: it names the right number and not the wrong one."""
    return pair.right in text.lower() and pair.wrong not in text.lower()


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """A family of number comparisons; a conf/data option. `prompts(tokenizer)` puts it into tokens.

    `variants_per_pair` of the 2 × len(formats) wordings (order of the numbers × format) are asked of each pair, in
    turn, so that all are equally frequent. The seed's prompt is 9.8 against 9.11 in the first format.
    Raises ValueError for settings that no family can have; nothing is drawn before `prompts`.
    """

    formats: tuple[Format, ...]
    bug_pairs: int = 32
    control_pairs: int = 16
    variants_per_pair: int = 1
    allow_chat_template: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        names = [form.name for form in self.formats]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"data.formats has the names {names}; give at least one, each once")
        for field, least, most in (
            ("bug_pairs", 1, 3240),
            ("control_pairs", 0, 3240),
            ("variants_per_pair", 1, 2 * len(names)),
        ):
            if not least <= getattr(self, field) <= most:
                raise ValueError(f"data.{field}={getattr(self, field)} must lie in {least}..{most}")
        if self.seed < 0:
            raise ValueError(f"data.seed={self.seed} must be 0 or more")

    def pairs(self) -> tuple[Pair, ...]:
        """The pairs drawn, bug pairs first; a longer family of the same seed begins with a shorter one's pairs."""
        drawn: list[Pair] = []
        for bug, count in ((True, self.bug_pairs), (False, self.control_pairs)):
            pool = all_pairs(bug=bug)
            order = generator(self.seed, f"comparisons/{'bug' if bug else 'control'}").permutation(len(pool))
            drawn += [pool[i] for i in order[:count]]
        return tuple(drawn)

    def prompts(self, tokenizer: Tokenizer) -> Prompts:
        """The family in this tokenizer's tokens.

        Raises ValueError for a chat model's tokenizer (unless allowed), an answer that is no token continuation of its
        prompt, or a clean and a corrupted prompt without a common token block that holds both numbers.
        """
        if getattr(tokenizer, "chat_template", None) and not self.allow_chat_template:
            raise ValueError(
                f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has a chat template, so its model is a chat "
                "model, but these prompts are plain text; choose a base model, or set data.allow_chat_template=true"
            )
        pairs = self.pairs()
        rows = [_Row.of(tokenizer, pairs[unit], unit, form, right_first) for unit, form, right_first in self._turns()]
        return Prompts(
            name="comparisons",
            pairs=pairs,
            groups=_grouped(rows),
            seed_prompt=_grouped([_Row.of(tokenizer, SEED_PAIR, -1, self.formats[0], True)])[0],
            decode=tokenizer.decode,
            facts={"bug_pairs": self.bug_pairs, "control_pairs": self.control_pairs, "rows": len(rows)},
        )

    def _turns(self) -> Iterator[tuple[int, Format, bool]]:
        variants = [(form, right_first) for form in self.formats for right_first in (True, False)]
        for unit in range(self.bug_pairs + self.control_pairs):
            turn = unit if unit < self.bug_pairs else unit - self.bug_pairs
            for i in range(self.variants_per_pair):
                yield unit, *variants[(turn * self.variants_per_pair + i) % len(variants)]


@dataclass(frozen=True)
class _Row:
    """One prompt pair in tokens."""

    unit: int
    format: str
    clean: list[int]
    corrupted: list[int]
    shared: list[int]
    right: list[int]
    wrong: list[int]
    span: Block

    @classmethod
    def of(cls, tokenizer: Tokenizer, pair: Pair, unit: int, form: Format, right_first: bool) -> _Row:
        first, second = (pair.right, pair.wrong) if right_first else (pair.wrong, pair.right)
        texts = [template.format(first=first, second=second) for template in (form.clean, form.corrupted)]
        clean, corrupted = (tokenizer.encode(text) for text in texts)
        answers = [
            [_continuation(tokenizer, text, form.answer.format(answer=number)) for text in texts]
            for number in (pair.right, pair.wrong)
        ]
        for after_clean, after_corrupted in answers:
            if after_clean != after_corrupted:
                raise ValueError(
                    f"the answer's tokens are {after_clean} after {texts[0]!r} but {after_corrupted} after "
                    f"{texts[1]!r}; end both wordings of the format alike"
                )
        right, wrong = answers[0][0], answers[1][0]
        differ = next((i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b), None)
        if differ is None:
            raise ValueError(
                f"the answers {pair.right} and {pair.wrong} share all tokens of the shorter one: {right}, {wrong}"
            )
        end = len(right) if len(right) == len(wrong) else differ + 1
        span = longest_common_block(clean, corrupted)
        common = tokenizer.decode(clean[span.source_start : span.source_start + span.length])
        if not (pair.right in common and pair.wrong in common):
            raise ValueError(
                f"{texts[0]!r} and {texts[1]!r} do not align: their longest common token block is {common!r}, which "
                "lacks the numbers; ask with the same words in both wordings of the format"
            )
        return cls(unit, form.name, clean, corrupted, right[:differ], right[differ:end], wrong[differ:end], span)


def _continuation(tokenizer: Tokenizer, prompt: str, answer: str) -> list[int]:
    """The answer's tokens behind the prompt's. Raises ValueError where the two merge."""
    before, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + answer)
    if whole[: len(before)] != before or len(whole) == len(before):
        raise ValueError(
            f"the answer {answer!r} is no token continuation of {prompt!r}: the prompt's tokens {before} do not begin "
            f"{whole}; change the spaces where format and answer meet"
        )
    return whole[len(before) :]


def longest_common_block(source: Sequence[int], target: Sequence[int]) -> Block:
    """The longest run of tokens that both sequences hold, the first of several; length 0 where they share none."""
    best = Block(0, 0, 0)
    ends = [0] * (len(target) + 1)  # length of the common run that ends at the previous source token, per target place
    for i, token in enumerate(source):
        row = [0] * (len(target) + 1)
        for j, other in enumerate(target):
            if token == other:
                row[j + 1] = ends[j] + 1
                if row[j + 1] > best.length:
                    best = Block(i + 1 - row[j + 1], j + 1 - row[j + 1], row[j + 1])
        ends = row
    return best


def _grouped(rows: Sequence[_Row]) -> tuple[PromptGroup, ...]:
    groups: dict[tuple[object, ...], list[_Row]] = {}
    for row in rows:
        lengths = tuple(len(part) for part in (row.clean, row.corrupted, row.shared, row.right))
        groups.setdefault((row.format, lengths, row.span), []).append(row)
    return tuple(
        PromptGroup(
            format=members[0].format,
            units_N=np.array([row.unit for row in members]),
            clean_NT=_ids([row.clean for row in members]),
            corrupted_NT=_ids([row.corrupted for row in members]),
            shared_NC=_ids([row.shared for row in members]),
            right_NA=_ids([row.right for row in members]),
            wrong_NA=_ids([row.wrong for row in members]),
            span=members[0].span,
        )
        for members in groups.values()
    )


def _ids(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array(rows, dtype=np.int64).reshape(len(rows), -1)
