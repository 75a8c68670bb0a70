from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from headdyn.data.text import duplicates
from headdyn.data.text.documents import Documents, store_documents
from headdyn.data.text.duplicates import HASHES, find_duplicates, near_duplicates, signatures
from headdyn.data.text.files import TextFiles
from tests.data.text.small_text import jsonl, made_up_words, planted


def runs(text: str, words: int = 3) -> set[tuple[str, ...]]:
    """A text's set of word runs, the plain way."""
    split = text.casefold().split()
    return {tuple(split[n : n + words]) for n in range(max(1, len(split) - words + 1))}


def jaccard(a: str, b: str, words: int = 3) -> float:
    return len(runs(a, words) & runs(b, words)) / len(runs(a, words) | runs(b, words))


def estimates(texts: list[str], seeds: int) -> np.ndarray:
    """Estimated similarity of every text to the first, averaged over independent hash functions."""
    total = np.zeros(len(texts))
    for seed in range(seeds):
        signature_DH = signatures(texts, *duplicates._hash_functions(seed))
        total += (signature_DH == signature_DH[0]).mean(1)
    return total / seeds


def variants() -> list[str]:
    """A text and versions of it that differ from one word to all."""
    rng = np.random.default_rng(0)
    words = np.array(made_up_words(3000, rng))
    first = words[rng.integers(3000, size=120)]
    texts = [" ".join(first)]
    for changed in (1, 3, 8, 20, 40, 120):
        other = first.copy()
        other[rng.permutation(120)[:changed]] = words[rng.integers(3000, size=changed)]
        texts.append(" ".join(other))
    return [*texts, " ".join(first[:60]), " ".join(first[::-1])]


def stored(folder: Path, texts: list[str]) -> Documents:
    store_documents(TextFiles(path=jsonl(folder / "texts.jsonl", texts)), folder / "d")
    return Documents(folder / "d")


def test_signatures_estimate_the_jaccard_similarity_of_three_word_runs() -> None:
    texts = variants()
    exact = np.array([jaccard(texts[0], text) for text in texts])
    assert exact.min() == 0 and 0.9 < exact[1] < 1  # the range is covered
    error = np.sqrt(exact * (1 - exact) / (HASHES * 20))
    assert np.all(np.abs(estimates(texts, 20) - exact) <= 4.5 * error)
    for words in (1, 2, 4):  # estimates of other runs would be told apart
        other = np.array([jaccard(texts[0], text, words) for text in texts])
        assert not np.all(np.abs(other - exact) <= 4.5 * error)


def test_words_have_equal_hashes_exactly_where_they_are_equal() -> None:
    texts = [text.title() if n % 2 else text for n, text in enumerate(planted(200, 3)[0])] + ["ß SS ẞ", "x"]
    hash_W, document_W = duplicates._word_hashes(texts)
    words = [word for text in texts for word in text.casefold().split()]
    assert len(hash_W) == len(words)
    assert document_W.tolist() == [n for n, text in enumerate(texts) for _ in text.split()]
    assert len({(h, w) for h, w in zip(hash_W.tolist(), words, strict=True)}) == len(set(words)) == len(set(hash_W))


def test_a_signature_does_not_depend_on_its_neighbours() -> None:
    texts = ["one", "one two", "one two three", "one two three four", *planted(20, 2)[0]]
    functions = duplicates._hash_functions(0)
    together = signatures(texts, *functions)
    for n, text in enumerate(texts):
        np.testing.assert_array_equal(signatures([text], *functions)[0], together[n])
    np.testing.assert_array_equal(signatures(["ONE  two\nThree"], *functions), together[2:3])
    assert (together[1] != together[2]).all()  # a short text is one run of its own


def versions(seed: int) -> list[str]:
    """Sixty documents of about a hundred words and four versions of twelve of them, in any order."""
    rng = np.random.default_rng(seed)
    texts, _ = planted(60, 3, words_each=100)
    for original in range(12):
        words = texts[original].split()
        for changed in (1, 1, 2, 6):
            copy = list(words)
            for place in rng.integers(len(words), size=changed):
                copy[place] = "changed"
            texts.append(" ".join(copy))
    return [texts[n] for n in rng.permutation(len(texts))]


def linked_to_an_earlier(texts: list[str], threshold: float) -> list[bool]:
    """By a double loop over all pairs' estimates, groups by renaming."""
    signature_DH = signatures(texts, *duplicates._hash_functions(0))
    group = list(range(len(texts)))
    for i, j in itertools.combinations(range(len(texts)), 2):
        if (signature_DH[i] == signature_DH[j]).mean() >= threshold:
            low, high = sorted((group[i], group[j]))
            group = [low if g == high else g for g in group]
    return [n != group[n] for n in range(len(texts))]


def test_groups_against_all_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands and sorting find the same; held against the first of a bucket alone, some would be missed."""
    missed = 0
    for seed in range(6):
        texts = versions(seed)
        (tmp_path / str(seed)).mkdir()
        documents = stored(tmp_path / str(seed), texts)
        for threshold in (0.75, 0.8, 0.9):
            expected = linked_to_an_earlier(texts, threshold)
            found = near_duplicates(documents, np.arange(len(texts)), threshold, 0, tmp_path)
            assert found.tolist() == expected and 20 < sum(expected) < 60
        with monkeypatch.context() as patch:
            patch.setattr(duplicates, "_PREDECESSORS", 0)
            mutant = near_duplicates(documents, np.arange(len(texts)), threshold, 0, tmp_path)
        missed += sum(expected) - int(mutant.sum())
    assert missed > 0
    assert not (tmp_path / "signatures.u32").exists()


def test_exact_and_near_ones_are_counted_apart(tmp_path: Path) -> None:
    texts, _ = planted(50, 2)
    near = " ".join(["new", *texts[7].split()[1:]])
    documents = stored(tmp_path, [*texts, texts[3], texts[3], texts[7].upper(), near])
    kept, facts = find_duplicates(documents, tmp_path, jaccard=0.8, seed=0)
    assert kept.tolist() == list(range(50)) and facts == {"exact_duplicates": 2, "near_duplicates": 2}
    kept, facts = find_duplicates(documents, tmp_path, jaccard=None, seed=0)
    assert kept.tolist() == [*range(50), 52, 53] and facts == {"exact_duplicates": 2, "near_duplicates": 0}


@pytest.mark.parametrize(("chunk", "rows"), [(1, 1), (200, 7), (1 << 20, 1 << 15)])
def test_pieces_of_the_work_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, rows: int) -> None:
    texts, _ = planted(40, 2)
    texts += [text + " more" for text in texts[::4]]
    monkeypatch.setattr("headdyn.data.text.documents.CHUNK_BYTES", chunk)
    documents = stored(tmp_path, texts)
    monkeypatch.setattr(duplicates, "_ROWS_AT_ONCE", rows)
    assert near_duplicates(documents, np.arange(50), 0.8, 0, tmp_path).tolist() == [False] * 40 + [True] * 10
