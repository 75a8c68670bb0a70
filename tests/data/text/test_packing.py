from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headdyn.data.text import packing
from headdyn.data.text.packing import cut, pack

LENGTHS = np.random.default_rng(0).integers(3, 400, size=150)
ENDS = np.cumsum(LENGTHS)
TOPICS = (np.arange(150) % 5).astype(np.uint8)


class Packed:
    """A packed split whose tokens are their own places in the documents laid end to end."""

    def __init__(self, folder: Path, *, length: int = 48, pieces: int = 3, at_most: int | None = None, seed: int = 0):
        np.arange(ENDS[-1], dtype=np.uint16).tofile(folder / "tokens")
        self.facts: Mapping[str, Any] = pack(
            folder / "tokens",
            ENDS,
            TOPICS,
            folder,
            "train",
            sequence_length=length,
            pieces_per_sequence=pieces,
            at_most=at_most,
            rng=np.random.default_rng(seed),
        )
        self.tokens_NT, self.topics_NT, self.documents_NT = (
            np.load(folder / f"train_{name}.npy") for name in ("tokens", "topics", "documents")
        )
        self.source_NT = np.searchsorted(ENDS, self.tokens_NT, side="right")  # the document each token is from


def test_every_token_keeps_its_document_and_topic_and_comes_once(tmp_path: Path) -> None:
    assert ENDS[-1] < 65536
    packed = Packed(tmp_path)
    assert packed.tokens_NT.dtype == packed.documents_NT.dtype == np.uint16 and packed.topics_NT.dtype == np.uint8
    assert packed.tokens_NT.shape == (ENDS[-1] // 48, 48)
    assert len(np.unique(packed.tokens_NT)) == packed.tokens_NT.size  # so all but the last few tokens are there
    np.testing.assert_array_equal(packed.topics_NT, TOPICS[packed.source_NT])
    for source_T, number_T in zip(packed.source_NT, packed.documents_NT, strict=True):
        seen: dict[int, int] = {}
        assert [seen.setdefault(int(source), len(seen)) for source in source_T] == number_T.tolist()


def test_sequences_hold_runs_of_several_documents(tmp_path: Path) -> None:
    packed = Packed(tmp_path)
    breaks_NT = np.diff(packed.tokens_NT.astype(int), axis=1) != 1
    longest = max(np.diff(np.flatnonzero(np.r_[True, row, True])).max() for row in breaks_NT)
    assert longest <= 1.75 * 16 + 1 and breaks_NT.any(1).all()
    documents_N = np.array([len(set(row)) for row in packed.source_NT.tolist()])
    assert (documents_N >= 2).mean() > 0.98 and 3 <= documents_N.mean() <= 5
    # Cuts are at no special position.
    at_T = breaks_NT.mean(0)
    assert at_T.max() < 2 * at_T.mean() and at_T.min() > 0.3 * at_T.mean()
    # Without cuts, long documents fill whole sequences: the check above can fail.
    (tmp_path / "uncut").mkdir()
    packing_of_whole = pytest.MonkeyPatch()
    packing_of_whole.setattr(packing, "cut", lambda lengths, _, rng: cut(lengths, 1e9, rng))
    uncut = Packed(tmp_path / "uncut")
    packing_of_whole.undo()
    assert (uncut.documents_NT.max(1) == 0).mean() > 0.5


def test_facts_against_counting(tmp_path: Path) -> None:
    packed = Packed(tmp_path)
    rows = list(zip(packed.source_NT.tolist(), packed.topics_NT.tolist(), strict=True))
    pairs = [set(zip(source, topic, strict=True)) for source, topic in rows]
    topics = [[topic for _, topic in row] for row in pairs]
    expected = {
        "documents": 150,
        "sequences": len(rows),
        "tokens": 48 * len(rows),
        "tokens_available": int(ENDS[-1]),
        "documents_per_sequence": np.mean([len(row) for row in pairs]),
        "topics_per_sequence": np.mean([len(set(row)) for row in topics]),
        "dominant_topic_share": np.mean([max(map(topic.count, set(topic))) / 48 for _, topic in rows]),
        "share_of_several_topics": np.mean([len(set(row)) > 1 for row in topics]),
        "share_of_two_documents_of_a_topic": np.mean([len(set(row)) < len(row) for row in topics]),
    }
    assert packed.facts == pytest.approx({f"train_{name}": value for name, value in expected.items()})


def test_pieces_of_the_work_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Packed(tmp_path)
    for tokens in (1, 200, 5000):
        monkeypatch.setattr(packing, "_SEQUENCES_AT_ONCE_TOKENS", tokens)
        parts = Packed(tmp_path)
        assert parts.facts == pytest.approx(whole.facts)
        for name in ("tokens_NT", "topics_NT", "documents_NT"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))
    assert not np.array_equal(Packed(tmp_path, seed=1).tokens_NT, whole.tokens_NT)
    few = Packed(tmp_path, at_most=10)
    np.testing.assert_array_equal(few.tokens_NT, whole.tokens_NT[:10])


def test_cuts() -> None:
    rng = np.random.default_rng(0)
    lengths_D = np.array([1, 2, 15, 23, 25, 40, 41, 1000, 16, 57])
    for piece_tokens in (4.0, 16.0, 16.7, 1e6):
        document_P, end_P = cut(lengths_D, piece_tokens, rng)
        assert end_P[-1] == lengths_D.sum() and (np.diff(end_P) > 0).all()
        assert np.isin(np.cumsum(lengths_D), end_P).all()  # no piece has two documents
        size_P = np.diff(end_P, prepend=0)
        np.testing.assert_array_equal(np.bincount(document_P, size_P), lengths_D)
        np.testing.assert_array_equal(np.bincount(document_P), np.maximum(1, np.rint(lengths_D / piece_tokens)))
        assert size_P.max() <= 1.75 * piece_tokens + 1
        assert size_P[document_P == 7].min() >= 0.5 * min(piece_tokens, 1000) - 1.5
    first = {int(cut(lengths_D, 16.0, rng)[1][6]) for _ in range(200)}
    assert len(first) > 5  # the cut of the sixth document moves


def test_too_little_for_one_sequence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"train documents have {ENDS[-1]} tokens, less than one .*=50000"):
        Packed(tmp_path, length=50_000)
