"""Exact and near duplicates among documents: hashes of whole texts, then MinHash with banding (Broder 1997).

Letters: D documents, K documents without duplicates, W words of a chunk, H hash functions. Some tens of bytes for each
document are in memory; its signature (480 bytes) is on disk. Numpy suffices: each band needs only a sort and no index.
"""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from headdyn.core.progress import Progress
from headdyn.core.randomness import generator
from headdyn.core.threads import in_threads
from headdyn.data.text.documents import Documents

log = logging.getLogger(__name__)

SHINGLE_WORDS = 3
# A pair of Jaccard similarity s shares a band with probability 1 − (1 − s^6)^20: 0.998 at 0.8, 0.92 at 0.7.
BANDS, BAND_HASHES = 20, 6
HASHES = BANDS * BAND_HASHES
_ROWS_AT_ONCE = 1 << 15
_PREDECESSORS = 8  # a document is compared with so many documents before it in its bucket

_BASE = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2^64
_BASE_INVERSE = pow(_BASE, -1, 1 << 64)


def exact_duplicates(documents: Documents) -> np.ndarray:
    """True [D] for every document with the same cleaned text, letter for letter, as an earlier one."""
    hash_D = np.empty(len(documents), np.uint64)
    for rows, texts in documents.chunks():
        digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts]
        hash_D[rows] = np.frombuffer(b"".join(digests), np.uint64)
    _, first = np.unique(hash_D, return_index=True)
    duplicate_D = np.ones(len(documents), bool)
    duplicate_D[first] = False
    return duplicate_D


def near_duplicates(documents: Documents, rows: np.ndarray, jaccard: float, seed: int, folder: Path) -> np.ndarray:
    """True for those of `rows` that resemble an earlier one: all but the first of each linked group.

    Two documents are linked if the estimated Jaccard similarity of their sets of three-word runs (ignoring case) is at
    least `jaccard`; the estimate's standard error is at most 0.046. Text without spaces between words has few runs, so
    only copies of long stretches are found there. The signatures are in `folder` while this function runs.
    """
    file = folder / "signatures.u32"
    multiplier_H, offset_H = _hash_functions(seed)
    progress = Progress("near duplicates", "documents", len(rows))
    with file.open("wb") as out:
        chunks = (texts for _, texts in documents.chunks(rows))
        for signature_DH in in_threads(lambda texts: signatures(texts, multiplier_H, offset_H), chunks):
            signature_DH.tofile(out)
            progress.add(len(signature_DH))
    group_D = np.arange(len(rows))  # for each document, the first document that it is linked to
    for band in range(BANDS):
        group_D = _linked(group_D, file, band, jaccard)
    file.unlink()
    return group_D < np.arange(len(rows))


def signatures(texts: list[str], multiplier_H: np.ndarray, offset_H: np.ndarray) -> np.ndarray:
    """MinHash signatures [D, H] uint32: the smallest value of each hash function over a text's three-word runs.

    The share of equal entries of two signatures is an unbiased estimate of the Jaccard similarity of the two sets.
    A text of fewer than three words is one run.
    """
    hash_W, document_W = _word_hashes(texts)
    shingle = hash_W.copy()
    whole = np.ones(len(hash_W), bool)
    for ahead in range(1, SHINGLE_WORDS):
        same = np.zeros(len(hash_W), bool)
        same[:-ahead] = document_W[ahead:] == document_W[:-ahead]
        shifted = np.zeros_like(hash_W)
        shifted[:-ahead] = hash_W[ahead:]
        shingle = _mixed(shingle) + np.where(same, shifted, 0)
        whole &= same
    first_word = np.diff(document_W, prepend=-1) > 0  # so that a text of fewer words has a run too
    run = whole | first_word
    shingle, document = _mixed(shingle[run]), document_W[run]
    begins = np.searchsorted(document, np.arange(len(texts)))
    signature_DH = np.empty((len(texts), len(multiplier_H)), np.uint32)
    value = np.empty_like(shingle)
    for h, (multiplier, offset) in enumerate(zip(multiplier_H, offset_H, strict=True)):
        np.multiply(shingle, multiplier, out=value)
        value += offset
        value >>= np.uint64(32)
        signature_DH[:, h] = np.minimum.reduceat(value, begins)
    return signature_DH


def _hash_functions(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Multiply-shift hash functions x → (a x + b mod 2^64) >> 32 with odd a (Dietzfelbinger et al. 1997)."""
    rng = generator(seed, "text/minhash")
    multiplier_H, offset_H = rng.integers(2**64, size=(2, HASHES), dtype=np.uint64)
    return multiplier_H | np.uint64(1), offset_H


def _word_hashes(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """A hash of every word [W] uint64 and the number of its text [W]; every text must have a word.

    A word is a run of non-space bytes of the casefolded text. Its hash is the polynomial Σ byte_j B^(j − start) modulo
    2^64, computed as the difference of two running sums, at the word's end and its start, times B^(−start).
    """
    data = np.frombuffer("\0".join(text.casefold() for text in texts).encode() + b"\0", np.uint8)
    space = data <= 0x20
    edge = np.flatnonzero(np.diff(space, prepend=True))  # the last byte is a space, so edges come in pairs
    start, stop = edge[::2], edge[1::2]
    power = _powers(_BASE, len(data))
    running = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(data * power, out=running[1:])
    hash_W = (running[stop] - running[start]) * _powers(_BASE_INVERSE, len(data))[start]
    document_W = np.cumsum(data == 0)[start]
    return _mixed(hash_W), document_W


def _powers(base: int, count: int) -> np.ndarray:
    power = np.full(count, base, np.uint64)
    power[0] = 1
    return np.cumprod(power)


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _linked(group_D: np.ndarray, file: Path, band: int, jaccard: float) -> np.ndarray:
    """The groups after linking similar documents that agree on a band's hashes.

    In a bucket of equal hashes each document is compared with the first one and the few before it, not with all, so
    that the time stays linear even if thousands of documents share a boilerplate text.
    """
    count = len(group_D)
    key_D = _band_keys(file, band, count)
    order = np.argsort(key_D, kind="stable")
    sorted_D = key_D[order]
    place = np.arange(count)
    first = np.maximum.accumulate(np.where(np.diff(sorted_D, prepend=~sorted_D[:1]) != 0, place, 0))
    signature_DH = np.memmap(file, np.uint32, "r", shape=(count, HASHES))
    links = [np.stack([np.arange(count), group_D])]
    for before in (first, *(place - lag for lag in range(1, _PREDECESSORS + 1))):
        compared = np.flatnonzero((before >= first) & (before < place))
        pairs = np.stack([order[before[compared]], order[compared]])
        pairs = pairs[:, group_D[pairs[0]] != group_D[pairs[1]]]
        for begin in range(0, pairs.shape[1], _ROWS_AT_ONCE):
            i, j = pairs[:, begin : begin + _ROWS_AT_ONCE]
            similar = (signature_DH[i] == signature_DH[j]).mean(1) >= jaccard
            links.append(np.stack([i, j])[:, similar])
    i, j = np.concatenate(links, axis=1)
    _, label_D = connected_components(coo_array((np.ones(len(i), bool), (i, j)), shape=(count, count)), directed=False)
    _, first_of_label = np.unique(label_D, return_index=True)
    return first_of_label[label_D]


def _band_keys(file: Path, band: int, count: int) -> np.ndarray:
    """One hash [D] of each document's hashes in a band."""
    key_D = np.zeros(count, np.uint64)
    for first in range(0, count, _ROWS_AT_ONCE):
        # Read and not mapped, since mapped pages would count as this process's memory.
        rows_DH = np.fromfile(file, np.uint32, _ROWS_AT_ONCE * HASHES, offset=first * HASHES * 4).reshape(-1, HASHES)
        key = key_D[first : first + len(rows_DH)]
        for h in range(band * BAND_HASHES, (band + 1) * BAND_HASHES):
            key[:] = _mixed(key + rows_DH[:, h])
    return key_D


def find_duplicates(
    documents: Documents, folder: Path, *, jaccard: float | None, seed: int
) -> tuple[np.ndarray, Mapping[str, Any]]:
    """The documents left without duplicates [K], ascending, and how many duplicates of each kind there were.

    With `jaccard=None` only exact copies are duplicates.
    """
    exact_D = exact_duplicates(documents)
    rows = np.flatnonzero(~exact_D)
    near = np.zeros(len(rows), bool) if jaccard is None else near_duplicates(documents, rows, jaccard, seed, folder)
    facts = {"exact_duplicates": int(exact_D.sum()), "near_duplicates": int(near.sum())}
    log.info("duplicates: %(exact_duplicates)d exact and %(near_duplicates)d near ones removed", facts)
    return rows[~near], facts
