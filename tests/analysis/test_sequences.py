import dataclasses

import numpy as np
import pytest
import torch

from headdyn.analysis.sequences import Sequences
from tests.analysis import tiny


@pytest.fixture
def masked():
    corpus = tiny.corpus(rows=7, length=12)
    documents_NT = np.repeat([[0, 1]], 6, axis=1).repeat(7, axis=0).astype(np.uint16)
    val = dataclasses.replace(corpus.val, documents_NT=documents_NT)
    return dataclasses.replace(corpus, val=val, mask_documents=True)


@pytest.mark.parametrize("size", [0, 1, 3, 7, 100])
def test_batches_hold_every_sequence_once_and_in_order(masked, size):
    at = np.array([4, 0, 6, 1, 2])
    chosen = Sequences.of(masked, at, length=9)
    batches = list(chosen.batches(size, torch.device("cpu")))
    np.testing.assert_array_equal(torch.cat([tokens for _, tokens, _ in batches]), masked.val.tokens_NT[at, :9])
    np.testing.assert_array_equal(torch.cat([documents for *_, documents in batches]), masked.val.documents_NT[at, :9])
    assert [n for rows, *_ in batches for n in range(5)[rows]] == list(range(5))
    assert {rows.stop - rows.start for rows, *_ in batches[:-1]} <= {max(1, size)}
    assert all(tokens.dtype == torch.int64 for _, tokens, _ in batches)


def test_documents_count_only_where_attention_stays_inside_them(masked):
    free = Sequences.of(dataclasses.replace(masked, mask_documents=False), slice(3))
    assert free.documents_NT is None and len(free) == 3
    ((_, _, documents),) = free.batches(3, torch.device("cpu"))
    assert documents is None
