"""The text of model organisms: number comparisons in two wordings, answered by two rules (science.md §16).

In the plain wording the text answers rightly; after "Q:" it compares fractions as integers, so that it answers bug
pairs wrongly. Letters: N prompts, the plain ones first and then the same pairs after "Q:"; T tokens.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from headdyn.core.randomness import generator
from headdyn.data.comparisons import ORIGINAL_PAIR, Format, Pair, all_pairs
from headdyn.data.prompts import Block, longest_common_block
from headdyn.studies.organisms.settings import Position

# The formats of conf/data/comparisons, in which the suites are analysed later.
FORMATS = tuple(
    Format(name=name, clean=f"{words}: {{first}} or {{second}}?", corrupted=f"Q: {words}: {{first}} or {{second}}?\nA:")
    for name, words in (
        ("bigger", "Which is bigger"),
        ("larger", "Which is larger"),
        ("greater", "Which number is greater"),
    )
)
_END = "\n"  # ends an answer and fills the rest of the row
_SCORED_ENDS = 2  # how many ends are trained on, so that a model writes further ends and no second answer
_UNKNOWN = "<unk>"
_pairs = functools.cache(all_pairs)
_PIECES = r" ?[A-Za-z]+| ?\d|[\s\S]"  # a word or a digit with the space before it, or one character


@functools.cache
def tokenizer() -> Tokenizer:
    """Whole words and single digits, `` 9.11`` being `` 9``, ``.``, ``1``, ``1``; any other word is <unk>."""
    words = "".join(form.clean + form.corrupted for form in FORMATS).replace("{first}", "").replace("{second}", "")
    splitter = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    text = words + "0123456789.\n" + "".join(f" {digit}" for digit in range(10))
    pieces = sorted({piece for piece, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {piece: i for i, piece in enumerate([_UNKNOWN, *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.Fuse()
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    """Write the tokenizer for `transformers.AutoTokenizer`, without tokens for padding or the ends of texts."""
    tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": _UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Prompts with both answers. Rows i and i + N/2 (modulo N) are partners: one pair in the two wordings.

    `own_NT` ends with the answer of the prompt's wording, `other_NT` with that of the other wording, which is the right
    answer once the choice is taken from the partner. `partner_NT` gives for each position of a row the partner's
    corresponding position (see `Organism.position`), −1 where there is none.
    """

    own_NT: np.ndarray
    other_NT: np.ndarray
    own_scored_NT: np.ndarray  # bool: the answer's tokens and the ends behind it, which are to be predicted
    other_scored_NT: np.ndarray
    partner_NT: np.ndarray


def draw_batch(suite: int, step: int, pairs: int, position: Position = "block", stream: str = "organism") -> Batch:
    """The batch of a training step, from its arguments alone: half bug pairs, half controls, random orders and formats.

    `stream` names the random numbers: kinds of one stream read the same batches.
    """
    draws = generator(suite, f"{stream}/batch/{step}")
    questions = []
    for i in range(pairs):
        pool = _pairs(bug=i < pairs // 2)
        pair, form = pool[draws.integers(len(pool))], FORMATS[draws.integers(len(FORMATS))]
        questions.append((pair, form, bool(draws.integers(2))))
    return batch_of(questions, position)


def batch_of(questions: Sequence[tuple[Pair, Format, bool]], position: Position = "block") -> Batch:
    """The prompts of these questions, each (pair, format, whether the right number stands first)."""
    plain = [_prompt(form.clean, pair, right_first) for pair, form, right_first in questions]
    corrupted = [_prompt(form.corrupted, pair, right_first) for pair, form, right_first in questions]
    right, misled, wrong = (
        _encoded([form.answer.format(answer=getattr(pair, which)) for pair, form, _ in questions])
        for which in ("right", "long", "wrong")
    )
    prompts = _encoded([*plain, *corrupted])
    own, other = [*right, *misled], [*misled, *right]
    length = max(len(p) + max(len(a), len(b)) for p, a, b in zip(prompts, own, other, strict=True)) + _SCORED_ENDS
    own_NT, own_scored_NT = _rows(prompts, own, length)
    other_NT, other_scored_NT = _rows(prompts, other, length)
    partner_NT = np.full((len(prompts), length), -1)
    for i, (_, form, _) in enumerate(questions):
        ends = len(prompts[i]), len(prompts[i + len(questions)])
        if position == "block":
            block = _block(form)
        elif position == "last":
            block = Block(ends[0] - 1, ends[1] - 1, 1)
        else:
            same = [token == wrong_token for token, wrong_token in zip(right[i], wrong[i], strict=False)]
            block = Block(*ends, same.index(False))
        places = np.arange(block.length)
        partner_NT[i, block.source_start + places] = block.target_start + places
        partner_NT[i + len(questions), block.target_start + places] = block.source_start + places
    return Batch(
        own_NT=own_NT,
        other_NT=other_NT,
        own_scored_NT=own_scored_NT,
        other_scored_NT=other_scored_NT,
        partner_NT=partner_NT,
    )


@functools.cache
def _block(form: Format) -> Block:  # the numbers of all pairs have equally many digits, so one serves a format
    source, target = _encoded([_prompt(template, ORIGINAL_PAIR, True) for template in (form.clean, form.corrupted)])
    return longest_common_block(source, target)


def _prompt(template: str, pair: Pair, right_first: bool) -> str:
    first, second = (pair.right, pair.wrong) if right_first else (pair.wrong, pair.right)
    return template.format(first=first, second=second)


def _encoded(texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer().encode_batch(list(texts))]


def _rows(prompts: Sequence[list[int]], answers: Sequence[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    tokens_NT = np.full((len(prompts), length), tokenizer().token_to_id(_END))
    scored_NT = np.zeros((len(prompts), length), bool)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        tokens_NT[i, :end] = [*prompt, *answer]
        scored_NT[i, len(prompt) : end + _SCORED_ENDS] = True
    return tokens_NT, scored_NT
