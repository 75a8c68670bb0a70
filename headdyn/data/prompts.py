"""Prompts in pairs of a clean and a corrupted wording, with the right and the wrong answer, in a model's tokens.

They suit any task with two answers; comparisons.py and prompt_pairs.py make them. Imports neither torch nor a tokenizer
library: any tokenizer with Hugging Face's `encode` and `decode` will do. Prompts of equal length form a group, so that
none is padded.

Letters: N rows of a group, T tokens of a prompt, C answer tokens that both answers share, A answer tokens compared,
P pairs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal, Protocol

import numpy as np

Alignment = Literal["left", "right", "span"]

log = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """What a tokenizer must offer; it needs no padding token."""

    def encode(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the model is used to."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids."""


class AnyPair(Protocol):
    """A unit of prompts: the two answers that are compared, and whether its corrupted wording misleads."""

    @property
    def right(self) -> str: ...

    @property
    def wrong(self) -> str: ...

    @property
    def is_bug(self) -> bool: ...


@dataclass(frozen=True)
class Block:
    """`length` positions of the source prompt, and the positions of the target prompt that they correspond to."""

    source_start: int
    target_start: int
    length: int

    def reversed(self) -> Block:
        """The same with source and target exchanged."""
        return Block(self.target_start, self.source_start, self.length)


def longest_common_block(source: Sequence[int], target: Sequence[int]) -> Block:
    """The longest run of tokens in both sequences, the first of several; its length is 0 if they share no token."""
    match = SequenceMatcher(None, source, target, autojunk=False).find_longest_match()
    return Block(match.a, match.b, match.size)


@dataclass(frozen=True, kw_only=True)
class PromptGroup:
    """Rows of one format with equal token counts and the same `span`. Token ids are int64.

    Δ = log p(right) − log p(wrong) compares `right_NA` with `wrong_NA`, after a prompt (`clean_NT` or `corrupted_NT`)
    and the tokens `shared_NC` with which both answers begin. Behind these the answers differ; if they also differ in
    length, only their first differing tokens are compared (A = 1).
    """

    format: str
    units_N: np.ndarray  # index into Prompts.pairs
    clean_NT: np.ndarray
    corrupted_NT: np.ndarray
    shared_NC: np.ndarray
    right_NA: np.ndarray
    wrong_NA: np.ndarray
    span: Block  # clean positions (source) and corrupted ones (target) with corresponding tokens; see `prompt_row`

    def __len__(self) -> int:
        return len(self.units_N)

    def rows(self, chosen: np.ndarray) -> PromptGroup:
        """Only the chosen rows (a mask or indices)."""
        return dataclasses.replace(self, **{name: array[chosen] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, Any]:
        """The fields that are arrays, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def block(self, alignment: Alignment) -> Block:
        """The clean positions (source) and the corrupted ones (target) that correspond to them.

        "left" aligns the prompts' first tokens and "right" their last ones, as far as the shorter prompt reaches;
        "span" is the group's `span`. Raises ValueError for an unknown alignment.
        """
        clean, corrupted = self.clean_NT.shape[1], self.corrupted_NT.shape[1]
        length = min(clean, corrupted)
        blocks = {
            "left": Block(0, 0, length),
            "right": Block(clean - length, corrupted - length, length),
            "span": self.span,
        }
        if alignment not in blocks:
            raise ValueError(f"alignment={alignment!r} is unknown; it is one of {', '.join(blocks)}")
        return blocks[alignment]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts with which an analysis is called in place of a corpus, if it `needs` "prompts".

    A statistic first averages the rows of a pair (its variants in `groups`); its units are pairs. `original_prompt` is
    the original studies' prompt, a single row that belongs to none of `pairs`; only its generated text is judged.
    """

    name: str
    pairs: tuple[AnyPair, ...]
    groups: tuple[PromptGroup, ...]
    original_prompt: PromptGroup
    decode: Callable[[Sequence[int]], str]
    facts: Mapping[str, Any]

    def digest(self) -> str:
        """SHA-256, in hex, of name, pairs and groups: all token ids and how they are used."""
        digest = hashlib.sha256(repr((self.name, self.pairs)).encode())
        for group in (*self.groups, self.original_prompt):
            for name, value in vars(group).items():
                is_array = isinstance(value, np.ndarray)
                digest.update(f"{name}{value.dtype}{value.shape}".encode() if is_array else f"{name}{value}".encode())
                digest.update(value.tobytes() if is_array else b"")
        return digest.hexdigest()

    @property
    def is_bug_P(self) -> np.ndarray:
        """Which pairs are bug pairs; the others are controls."""
        return np.array([pair.is_bug for pair in self.pairs])

    def where(self, chosen_P: np.ndarray) -> Prompts:
        """Only the pairs marked true, renumbered, with their rows."""
        number_P = np.cumsum(chosen_P) - 1
        chosen = [group.rows(chosen_P[group.units_N]) for group in self.groups]
        groups = [dataclasses.replace(group, units_N=number_P[group.units_N]) for group in chosen if len(group)]
        pairs = tuple(self.pairs[unit] for unit in np.flatnonzero(chosen_P))
        return dataclasses.replace(self, pairs=pairs, groups=tuple(groups))

    def in_company(self) -> Prompts:
        """The prompts without the pairs of which a row is alone in its group.

        A mean over prompts, or a value from another prompt, needs two prompts of equal length. Logs how many pairs are
        left out. Raises ValueError if none remains.
        """
        prompts = self
        while alone := [group.units_N for group in prompts.groups if len(group) < 2]:
            prompts = prompts.where(~np.isin(np.arange(len(prompts.pairs)), np.concatenate(alone)))
        if not prompts.pairs:
            raise ValueError(
                f"of {len(self.pairs)} pairs none has a prompt as long as another's, so that there is no mean over "
                "prompts; ask for more pairs (data.bug_pairs, or lines of data.path)"
            )
        if left_out := len(self.pairs) - len(prompts.pairs):
            log.warning(
                "%d of %d pairs are left out where heads are ablated: no other prompt is as long as theirs",
                left_out,
                len(self.pairs),
            )
        return prompts

    def by_pair(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """Average rows into pairs: from one array [..., N] for each group, an array [..., P]."""
        values = np.concatenate([np.asarray(part, dtype=float) for part in rows], axis=-1)
        units = np.concatenate([group.units_N for group in self.groups])
        share_NP = (units[:, None] == np.arange(len(self.pairs))) / np.bincount(units, minlength=len(self.pairs))
        return values @ share_NP


def require_plain(tokenizer: Tokenizer, allow_chat_template: bool) -> None:
    """Raise ValueError for a chat model's tokenizer, unless it is allowed."""
    if getattr(tokenizer, "chat_template", None) and not allow_chat_template:
        raise ValueError(
            f"the tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has a chat template, so its model is a chat "
            "model, but these prompts are plain text; choose a base model, or set data.allow_chat_template=true"
        )


def prompt_row(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    answer_texts: Sequence[str],
    *,
    unit: int,
    group: str,
    numbers: Sequence[str] | None = None,
) -> PromptGroup:
    """A clean and a corrupted prompt (`texts`) with the right and the wrong answer, as a group of one row.

    `unit` is the pair's index, `group` the format. With `numbers` the span is the longest token block that both prompts
    share, and must contain the numbers. Without, prompts of equal length correspond position by position, and for
    others the span is the longest common block behind their first difference: before it the model's values are the
    same, and a patch would do nothing.

    Raises ValueError if an answer's tokens do not simply follow the prompt's or differ between the prompts, if the
    answers do not differ within the shorter one, and if there is no such span.
    """
    clean, corrupted = (tokenizer.encode(text) for text in texts)
    answers = []
    for answer in answer_texts:
        after_clean, after_corrupted = (_continuation(tokenizer, text, answer) for text in texts)
        if after_clean != after_corrupted:
            raise ValueError(
                f"the answer's tokens are {after_clean} after {texts[0]!r} but {after_corrupted} after "
                f"{texts[1]!r}; let both prompts end in the same words"
            )
        answers.append(after_clean)
    right, wrong = answers
    shared = _shared_tokens(right, wrong)
    if shared == min(len(right), len(wrong)):
        raise ValueError(
            f"the answers {answer_texts[0]!r} and {answer_texts[1]!r} share all tokens of the shorter one: "
            f"{right}, {wrong}"
        )
    end = len(right) if len(right) == len(wrong) else shared + 1
    begin = 0 if numbers else _shared_tokens(clean, corrupted)
    block = longest_common_block(clean[begin:], corrupted[begin:])
    span = Block(begin + block.source_start, begin + block.target_start, block.length)
    common = tokenizer.decode(clean[span.source_start : span.source_start + span.length])
    if numbers is None and len(clean) == len(corrupted):
        span = Block(0, 0, len(clean))
    elif not (span.length and all(number in common for number in numbers or ())):
        lacks = (
            f"their longest common token block is {common!r}, which lacks the numbers"
            if numbers
            else "they share no token behind their first difference"
        )
        raise ValueError(
            f"{texts[0]!r} and {texts[1]!r} do not align: {lacks}; ask with the same words in both prompts"
        )
    tokens = {"clean_NT": clean, "corrupted_NT": corrupted, "shared_NC": right[:shared]}
    tokens |= {"right_NA": right[shared:end], "wrong_NA": wrong[shared:end]}
    arrays = {name: np.array([ids], np.int64) for name, ids in tokens.items()}
    return PromptGroup(format=group, units_N=np.array([unit]), span=span, **arrays)


def _shared_tokens(tokens: Sequence[int], others: Sequence[int]) -> int:
    """With how many equal tokens both sequences begin."""
    differences = (i for i, (a, b) in enumerate(zip(tokens, others, strict=False)) if a != b)
    return next(differences, min(len(tokens), len(others)))


def _continuation(tokenizer: Tokenizer, prompt: str, answer: str) -> list[int]:
    """The answer's tokens after the prompt's. Raises ValueError where a token spans both."""
    before, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + answer)
    if whole[: len(before)] != before or len(whole) == len(before):
        raise ValueError(
            f"the tokens of the answer {answer!r} do not simply follow those of {prompt!r}: the prompt alone is "
            f"{before}, with the answer {whole}; change the spaces where the two meet"
        )
    return whole[len(before) :]


def grouped(rows: Sequence[PromptGroup]) -> tuple[PromptGroup, ...]:
    """The rows joined into groups of one format, equal token counts and one span, in order of first appearance."""
    groups: dict[tuple[object, ...], list[PromptGroup]] = {}
    for row in rows:
        shapes = tuple(array.shape for array in row.arrays().values())
        groups.setdefault((row.format, shapes, row.span), []).append(row)
    joined = []
    for members in groups.values():
        first = members[0]
        arrays: dict[str, Any] = {name: np.concatenate([vars(row)[name] for row in members]) for name in first.arrays()}
        joined.append(dataclasses.replace(first, **arrays))
    return tuple(joined)
