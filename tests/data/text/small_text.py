"""Small text that tests make themselves: documents of planted topics in made-up words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def made_up_words(count: int, rng: np.random.Generator) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < count:
        syllables = rng.integers(2, 4)
        words["".join(CONSONANTS[rng.integers(14)] + VOWELS[rng.integers(5)] for _ in range(syllables))] = None
    return list(words)


def planted(count: int, num_topics: int, seed: int = 0, words_each: int = 30) -> tuple[list[str], list[int]]:
    """Documents of about `words_each` words, half from their topic's own forty words and half from forty common ones."""
    rng = np.random.default_rng(seed)
    words = np.array(made_up_words(40 * (num_topics + 1), rng))
    texts, topics = [], []
    for number in range(count):
        topic = number % num_topics
        length = int(rng.integers(words_each // 2, words_each * 3 // 2 + 1))
        own = words[40 * (topic + 1) + rng.integers(40, size=length)]
        common = words[rng.integers(40, size=length)]
        chosen = np.where(rng.random(length) < 0.5, own, common)
        texts.append(" ".join(chosen).capitalize() + ".")
        topics.append(topic)
    return texts, topics


def own_words(topic: int, num_topics: int, seed: int = 0) -> set[str]:
    """The words that only documents of this topic of `planted` have."""
    rng = np.random.default_rng(seed)
    return set(made_up_words(40 * (num_topics + 1), rng)[40 * (topic + 1) : 40 * (topic + 2)])


def jsonl(path: Path, texts: list[str], topics: list[int] | None = None) -> Path:
    rows = [{"text": text} for text in texts]
    if topics is not None:
        rows = [{**row, "topic": f"planted {topic}"} for row, topic in zip(rows, topics, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
