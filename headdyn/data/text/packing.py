"""Documents packed into sequences of T tokens that hold pieces of several documents, every token with its labels.

What attention does within and across topics can only be seen in sequences with several topics, so long documents are
cut. Every document is cut into consecutive pieces of about T / pieces_per_sequence tokens, as even as its length allows
(a shorter document is one piece), at places drawn at random so that no position is special. All pieces of a split are
shuffled and laid end to end, and every T tokens are a sequence. Neighbouring pieces are then independent, as the
segments of micro-languages are, and nothing marks a cut: the model has to notice where the text goes over to another
document. The end-of-text token stands only where a document ends. No sequence is a single piece, since a piece has at
most 1.75 times the intended tokens: the middle one where 3.5 intended lengths are cut into three.

Letters: D documents, P pieces, N sequences, T tokens, G spans (a piece's part in one sequence).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from headdyn.data.text.stages import Progress

_SEQUENCES_AT_ONCE_TOKENS = 1 << 20


def cut(lengths_D: np.ndarray, piece_tokens: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of documents laid end to end: each piece's document [P], and where it ends [P], in tokens of all.

    A document of n tokens has max(1, round(n / piece_tokens)) pieces; each cut is moved by up to a quarter of a piece.
    """
    count_D = np.maximum(1, np.rint(lengths_D / piece_tokens)).astype(np.int64)
    document_P = np.repeat(np.arange(len(lengths_D)), count_D)
    last_D = np.cumsum(count_D) - 1
    number_P = np.arange(len(document_P)) - np.repeat(last_D - count_D + 1, count_D)
    size_P = (lengths_D / count_D)[document_P]
    offset_P = np.rint((number_P + 1 + rng.uniform(-0.25, 0.25, len(document_P))) * size_P).astype(np.int64)
    offset_P[last_D] = lengths_D
    return document_P, offset_P + (np.cumsum(lengths_D) - lengths_D)[document_P]


def pack(
    tokens_file: Path,
    ends_D: np.ndarray,
    topics_D: np.ndarray,
    folder: Path,
    split: str,
    *,
    sequence_length: int,
    pieces_per_sequence: int,
    at_most: int | None,
    rng: np.random.Generator,
) -> Mapping[str, Any]:
    """Write {split}_tokens.npy (uint16), _topics.npy (uint8) and _documents.npy (uint16), each [N, T].

    `tokens_file` holds the documents' tokens end to end, `ends_D` where each ends, `topics_D` the topic of each.
    Documents are numbered within their sequence, in order of first appearance. The tokens behind the last full sequence
    are left out; `at_most` leaves out further sequences. Returns facts for the record.
    Raises ValueError where the tokens do not fill one sequence.
    """
    length = sequence_length
    document_P, end_P = cut(np.diff(ends_D, prepend=0), length / pieces_per_sequence, rng)
    order_P = rng.permutation(len(end_P))
    start_P = np.concatenate([[0], end_P[:-1]])[order_P]
    laid_P = np.cumsum(end_P[order_P] - start_P)  # where each piece ends in the stream of shuffled pieces
    document_P = document_P[order_P]
    count = int(laid_P[-1]) // length
    if count == 0:
        raise ValueError(
            f"the {split} documents have {laid_P[-1]} tokens, less than one sequence of data.sequence_length={length}; "
            "bring more text or lower it"
        )
    count = count if at_most is None else min(count, at_most)
    files = {"tokens": np.uint16, "topics": np.uint8, "documents": np.uint16}
    opened = {name: _npy(folder / f"{split}_{name}.npy", (count, length), dtype) for name, dtype in files.items()}
    totals: dict[str, int] = {}
    progress = Progress(f"packing {split}", "sequences", count)
    step = max(1, _SEQUENCES_AT_ONCE_TOKENS // length)
    for first in range(0, count, step):
        last = min(first + step, count)
        spans = _Spans(laid_P, start_P, first * length, last * length, length)
        stream = np.memmap(tokens_file, np.uint16, "r")  # opened anew, so that pages used before are released
        document_G, topic_G = document_P[spans.piece_G], topics_D[document_P[spans.piece_G]]
        local_G = _numbered(spans.sequence_G, document_G)
        for name, values in (
            ("tokens", stream[spans.sources()]),
            ("topics", np.repeat(topic_G, spans.length_G)),
            ("documents", np.repeat(local_G, spans.length_G)),
        ):
            values.astype(files[name]).tofile(opened[name])
        for key, value in _composition(spans, document_G, topic_G, local_G, last - first).items():
            totals[key] = totals.get(key, 0) + value
        progress.add(last - first)
    for file in opened.values():
        file.close()
    return {
        f"{split}_documents": len(ends_D),
        f"{split}_sequences": count,
        f"{split}_tokens": count * length,
        f"{split}_tokens_available": int(laid_P[-1]),
        f"{split}_documents_per_sequence": totals["documents"] / count,
        f"{split}_topics_per_sequence": totals["topics"] / count,
        f"{split}_dominant_topic_share": totals["dominant_tokens"] / (count * length),
        f"{split}_share_of_several_topics": totals["several_topics"] / count,
        f"{split}_share_of_two_documents_of_a_topic": totals["topic_twice"] / count,
    }


class _Spans:
    """The parts of pieces that fill tokens `first` to `last` of the shuffled stream; none crosses into a new sequence.

    `piece_G` is the piece of each, `length_G` its number of tokens, `sequence_G` its sequence, counted from `first`.
    """

    def __init__(self, laid_P: np.ndarray, start_P: np.ndarray, first: int, last: int, length: int) -> None:
        inside = laid_P[np.searchsorted(laid_P, first, side="right") : np.searchsorted(laid_P, last)]
        edges = np.union1d(np.arange(first, last + 1, length), inside)
        begin_G, end_G = edges[:-1], edges[1:]
        self.piece_G = np.searchsorted(laid_P, begin_G, side="right")
        self.length_G = end_G - begin_G
        self.sequence_G = (begin_G - first) // length
        piece_begin_G = np.where(self.piece_G > 0, laid_P[self.piece_G - 1], 0)
        self._source_G = start_P[self.piece_G] + begin_G - piece_begin_G

    def sources(self) -> np.ndarray:
        """The place of every token in the token file."""
        before_G = np.cumsum(self.length_G) - self.length_G
        return np.repeat(self._source_G - before_G, self.length_G) + np.arange(self.length_G.sum())


def _numbered(sequence_G: np.ndarray, document_G: np.ndarray) -> np.ndarray:
    """Documents numbered from 0 within their sequence, in order of first appearance [G]."""
    pair_G = sequence_G * (document_G.max() + 1) + document_G
    _, first, which_G = np.unique(pair_G, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    number_G = rank[which_G]
    first_of_sequence = np.searchsorted(sequence_G, sequence_G)
    return number_G - number_G[first_of_sequence]


def _composition(
    spans: _Spans, document_G: np.ndarray, topic_G: np.ndarray, local_G: np.ndarray, count: int
) -> Mapping[str, int]:
    """How documents and topics mix in `count` sequences, as sums over these."""
    topics = int(topic_G.max()) + 1
    cell_G = spans.sequence_G * topics + topic_G
    tokens_NS = np.bincount(cell_G, spans.length_G, count * topics).reshape(count, topics)
    _, first = np.unique(spans.sequence_G * (local_G.max() + 1) + local_G, return_index=True)
    documents_NS = np.bincount(cell_G[first], minlength=count * topics).reshape(count, topics)
    return {
        "documents": int(documents_NS.sum()),
        "topics": int((documents_NS > 0).sum()),
        "dominant_tokens": int(tokens_NS.max(1).sum()),
        "several_topics": int(((documents_NS > 0).sum(1) > 1).sum()),
        "topic_twice": int((documents_NS > 1).any(1).sum()),
    }


def _npy(path: Path, shape: tuple[int, ...], dtype: type) -> BinaryIO:
    """A .npy file of known shape, opened for appending its values: unlike a memory map, it keeps no pages in memory."""
    file = path.open("wb")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file
