"""Documents packed into sequences of T tokens that hold pieces of several documents, every token with its labels.

What attention does within and across topics can only be seen in sequences with several topics, so long documents are
cut. Every document is cut into consecutive pieces of about T / pieces_per_sequence tokens, as even as its length allows
(a shorter document is one piece), at places drawn at random so that no position is special. All pieces of a split are
shuffled and laid end to end, and every T tokens are a sequence. Neighbouring pieces are then independent, as the
segments of micro-languages are, and nothing marks a cut: the model has to notice where the text goes over to another
document. The end-of-text token stands only where a document ends. No sequence is a single piece, since a piece has at
most 1.75 times the intended tokens: the middle one where 3.5 intended lengths are cut into three.

Letters: D documents, P pieces, N sequences, T tokens, S topics.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from headdyn.core.progress import Progress

_SEQUENCES_AT_ONCE_TOKENS = 1 << 20


def cut(lengths_D: np.ndarray, piece_tokens: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cut documents, laid end to end, into pieces: each piece's document [P], and the index after its last token [P].

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
    begin: int | None = None,
    dtype: type[np.unsignedinteger] = np.uint16,
) -> Mapping[str, Any]:
    """Write {split}_tokens.npy (`dtype`), _topics.npy (uint8) and _documents.npy (uint16), each [N, T].

    `tokens_file` holds the documents' tokens end to end, `ends_D` where each ends, `topics_D` the topic of each.
    `begin` is a token to put before every sequence, for models that expect one; it has the labels of what follows.
    Documents are numbered within their sequence, in order of first appearance. The tokens behind the last full sequence
    are left out, and all sequences beyond `at_most`. Returns facts for the record. Raises ValueError if the tokens do
    not fill one sequence.
    """
    length = sequence_length - (begin is not None)
    document_P, end_P = cut(np.diff(ends_D, prepend=0), length / pieces_per_sequence, rng)
    order_P = rng.permutation(len(end_P))
    size_P = np.diff(end_P, prepend=0)[order_P]
    start_P = end_P[order_P] - size_P
    laid_P = np.cumsum(size_P)  # where each piece ends in the stream of shuffled pieces
    document_P = document_P[order_P]
    count = full_sequences(split, int(laid_P[-1]), sequence_length, begin)
    count = count if at_most is None else min(count, at_most)
    dtypes = {"tokens": dtype, "topics": np.uint8, "documents": np.uint16}
    shape = (count, sequence_length)
    files = {name: _npy(folder / f"{split}_{name}.npy", shape, kind) for name, kind in dtypes.items()}
    totals: Counter[str] = Counter()
    progress = Progress(f"packing {split}", "sequences", count)
    step = max(1, _SEQUENCES_AT_ONCE_TOKENS // length)
    for first in range(0, count, step):
        place_NT = np.arange(first * length, min(first + step, count) * length).reshape(-1, length)
        piece_NT = np.searchsorted(laid_P, place_NT, side="right")
        stream = np.memmap(tokens_file, dtype, "r")  # opened anew, so that pages used before are released
        tokens_NT = stream[place_NT + (start_P - laid_P + size_P)[piece_NT]]
        number_NT, topics_NT, sums = _labels(document_P[piece_NT], topics_D)
        for name, values in (("tokens", tokens_NT), ("topics", topics_NT), ("documents", number_NT)):
            if begin is not None:
                values = np.insert(values, 0, begin if name == "tokens" else values[:, 0], axis=1)
            values.astype(dtypes[name]).tofile(files[name])
        totals.update(sums)
        progress.add(len(place_NT))
    for file in files.values():
        file.close()
    return {
        f"{split}_documents": len(ends_D),
        f"{split}_sequences": count,
        f"{split}_tokens": count * sequence_length,
        f"{split}_tokens_available": int(laid_P[-1]),
        f"{split}_documents_per_sequence": totals["documents"] / count,
        f"{split}_topics_per_sequence": totals["topics"] / count,
        f"{split}_dominant_topic_share": totals["dominant_tokens"] / (count * length),
        f"{split}_share_of_several_topics": totals["several_topics"] / count,
        f"{split}_share_of_two_documents_of_a_topic": totals["topic_twice"] / count,
    }


def full_sequences(split: str, tokens: int, sequence_length: int, begin: int | None) -> int:
    """How many sequences the tokens of a split fill. Raises ValueError where it is none."""
    count = tokens // (sequence_length - (begin is not None))
    if count == 0:
        raise ValueError(
            f"the {split} documents have {tokens} tokens, less than one sequence of data.sequence_length="
            f"{sequence_length}; bring more text or lower the length"
        )
    return count


def _labels(document_NT: np.ndarray, topics_D: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, int]]:
    """Every token's document, numbered from 0 within its sequence in order of first appearance, and its topic.

    The third value holds sums over the sequences, which tell how documents and topics mix in them.
    """
    count, topics = len(document_NT), int(topics_D.max()) + 1
    sequence_N1 = np.arange(count)[:, None]
    pair_NT = sequence_N1 * len(topics_D) + document_NT
    _, first, pair_index_NT = np.unique(pair_NT, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    number_NT = rank[pair_index_NT] - rank[pair_index_NT[:, :1]]
    topics_NT = topics_D[document_NT]
    cell_NT = sequence_N1 * topics + topics_NT
    tokens_NS = np.bincount(cell_NT.ravel(), minlength=count * topics).reshape(count, topics)
    documents_NS = np.bincount(cell_NT.ravel()[first], minlength=count * topics).reshape(count, topics)
    sums = {
        "documents": int(documents_NS.sum()),
        "topics": int((documents_NS > 0).sum()),
        "dominant_tokens": int(tokens_NS.max(1).sum()),
        "several_topics": int(((documents_NS > 0).sum(1) > 1).sum()),
        "topic_twice": int((documents_NS > 1).any(1).sum()),
    }
    return number_NT, topics_NT, sums


def _npy(path: Path, shape: tuple[int, ...], dtype: type) -> BinaryIO:
    """A .npy file of known shape, opened for appending its values: unlike a memory map, it keeps no pages in memory."""
    file = path.open("wb")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file
