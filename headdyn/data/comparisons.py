"""Number comparison: which is bigger, 9.8 or 9.11? The task of the checkpoint studies (science.md §10)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from headdyn.core.randomness import generator
from headdyn.core.settings import Count, settings
from headdyn.data.corpus import Seed
from headdyn.data.prompts import PromptGroup, Prompts, Tokenizer, grouped, prompt_row, require_plain


@settings
class Format:
    """One way to ask, in two wordings: templates with {first} and {second}, and a template of the answer with {answer}.

    Models are expected to answer the corrupted wording wrongly.
    """

    name: str
    clean: str
    corrupted: str
    answer: str = " {answer}"

    def __post_init__(self) -> None:
        numbers = ("{first}", "{second}")
        for field, placeholders in (("clean", numbers), ("corrupted", numbers), ("answer", ("{answer}",))):
            for placeholder in placeholders:
                if (template := getattr(self, field)).count(placeholder) != 1:
                    raise ValueError(f"data.formats: {field}={template!r} must hold {placeholder} exactly once")


@dataclass(frozen=True, kw_only=True, order=True)
class Pair:
    """The numbers a.b and a.cd; pairs are the independent units of every statistic.

    In a bug pair 10·b > cd, and comparing the fractions as integers gives the wrong answer: 9.8 > 9.11, but 8 < 11.
    """

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


ORIGINAL_PAIR = Pair(whole=9, tenths=8, hundredths=11)


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


@settings
class Comparisons:
    """Comparisons of two numbers; a conf/data option. `prompts(tokenizer)` gives them in tokens.

    Each pair is asked in `variants_per_pair` of the 2 × len(formats) variants (order of the numbers × format), in turn,
    so that all variants are equally frequent. The original studies' prompt is 9.8 against 9.11 in the first format.
    """

    formats: tuple[Format, ...]
    bug_pairs: Annotated[int, Field(ge=1, le=3240)] = 32
    control_pairs: Annotated[int, Field(ge=0, le=3240)] = 16
    variants_per_pair: Count = 1
    allow_chat_template: bool = False
    seed: Seed = 0

    def __post_init__(self) -> None:
        names = [form.name for form in self.formats]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"data.formats has the names {names}; give at least one, each once")
        if self.variants_per_pair > 2 * len(names):
            raise ValueError(f"data.variants_per_pair={self.variants_per_pair} must lie in 1..{2 * len(names)}")

    def pairs(self) -> tuple[Pair, ...]:
        """The random pairs, bug pairs first. More pairs of the same seed begin with the same ones."""
        pairs: list[Pair] = []
        for bug, count in ((True, self.bug_pairs), (False, self.control_pairs)):
            pool = all_pairs(bug=bug)
            order = generator(self.seed, f"comparisons/{'bug' if bug else 'control'}").permutation(len(pool))
            pairs += [pool[i] for i in order[:count]]
        return tuple(pairs)

    def prompts(self, tokenizer: Tokenizer) -> Prompts:
        """The prompts in this tokenizer's tokens.

        Raises ValueError for a chat model's tokenizer (unless allowed), an answer whose tokens do not simply follow the
        prompt's, or a clean and a corrupted prompt without a common token block that holds both numbers.
        """
        require_plain(tokenizer, self.allow_chat_template)
        pairs = self.pairs()
        rows = [_row(tokenizer, pairs[unit], unit, form, right_first) for unit, form, right_first in self._variants()]
        return Prompts(
            name="comparisons",
            pairs=pairs,
            groups=grouped(rows),
            original_prompt=_row(tokenizer, ORIGINAL_PAIR, -1, self.formats[0], True),
            decode=tokenizer.decode,
            facts={"bug_pairs": self.bug_pairs, "control_pairs": self.control_pairs, "rows": len(rows)},
        )

    def _variants(self) -> Iterator[tuple[int, Format, bool]]:
        """Every row's pair, format, and whether the right number stands first."""
        variants = [(form, right_first) for form in self.formats for right_first in (True, False)]
        for unit in range(self.bug_pairs + self.control_pairs):
            number = unit if unit < self.bug_pairs else unit - self.bug_pairs  # among the bug pairs, or the controls
            for i in range(self.variants_per_pair):
                yield unit, *variants[(number * self.variants_per_pair + i) % len(variants)]


def _row(tokenizer: Tokenizer, pair: Pair, unit: int, form: Format, right_first: bool) -> PromptGroup:
    """One pair asked in one format and order, as a group of one row."""
    first, second = (pair.right, pair.wrong) if right_first else (pair.wrong, pair.right)
    texts = [template.format(first=first, second=second) for template in (form.clean, form.corrupted)]
    answers = [form.answer.format(answer=number) for number in (pair.right, pair.wrong)]
    return prompt_row(tokenizer, texts, answers, unit=unit, group=form.name, numbers=(pair.right, pair.wrong))
