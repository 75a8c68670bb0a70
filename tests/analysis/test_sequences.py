import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from headdyn.analysis.attention import AttentionStatistics
from headdyn.analysis.sequences import OnBatch, Sequences, within_memory
from headdyn.core.kept_parts import Part
from headdyn.core.records import HeadTable
from tests.analysis import tiny
from tests.small_models import MHA, drawn


@pytest.fixture
def masked():
    corpus = tiny.corpus(rows=7, length=12)
    documents_NT = np.repeat([[0, 1]], 6, axis=1).repeat(7, axis=0).astype(np.uint16)
    val = dataclasses.replace(corpus.val, documents_NT=documents_NT)
    return dataclasses.replace(corpus, val=val, mask_documents=True)


def read(sequences: Sequences, size: int) -> list[tuple[slice, torch.Tensor, torch.Tensor | None]]:
    """What every batch is given."""
    batches = []

    def batch(rows, tokens_BT, documents_BT):
        batches.append((rows, tokens_BT, documents_BT))
        return {}

    assert [rows for rows, _ in sequences.parts(size, torch.device("cpu"), batch)] == [rows for rows, *_ in batches]
    return batches


@pytest.mark.parametrize("size", [0, 1, 3, 7, 100])
def test_batches_hold_every_sequence_once_and_in_order(masked, size):
    at = np.array([4, 0, 6, 1, 2])
    chosen = Sequences.of(masked, at, length=9)
    batches = read(chosen, size)
    np.testing.assert_array_equal(torch.cat([tokens for _, tokens, _ in batches]), masked.val.tokens_NT[at, :9])
    np.testing.assert_array_equal(torch.cat([documents for *_, documents in batches]), masked.val.documents_NT[at, :9])
    assert [n for rows, *_ in batches for n in range(5)[rows]] == list(range(5))
    assert {rows.stop - rows.start for rows, *_ in batches[:-1]} <= {max(1, size)}
    assert all(tokens.dtype == torch.int64 for _, tokens, _ in batches)


def test_documents_count_only_where_attention_stays_inside_them(masked):
    free = Sequences.of(dataclasses.replace(masked, mask_documents=False), slice(3))
    assert free.documents_NT is None and len(free) == 3
    ((_, _, documents),) = read(free, 3)
    assert documents is None


# -- out of memory -----------------------------------------------------------------------------------------------------


def scarce(limit: int, error: Exception) -> Iterator[None]:
    """Batches of more than `limit` sequences do not fit."""
    with pytest.MonkeyPatch.context() as patch:
        parts = Sequences.parts

        def checked(self: Sequences, size: int, device: torch.device, compute: OnBatch) -> Iterator[Any]:
            def batch(rows: slice, *given: Any) -> Part:
                if rows.stop - rows.start > limit:
                    raise error
                return compute(rows, *given)

            return parts(self, size, device, batch)

        patch.setattr(Sequences, "parts", checked)
        yield


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_halves_the_batch_and_gives_the_same_numbers(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    corpus, decoder = tiny.corpus(rows=24, length=12, count=3), drawn(MHA)
    analysis = AttentionStatistics(sequences=24, label_swaps=20, bootstrap_draws=100)

    def table() -> HeadTable:
        return analysis(decoder, corpus, np.random.default_rng(0)).table

    whole = table()
    with contextmanager(scarce)(3, error):
        halved = within_memory(table, "analysis attention")
    assert [int(line.split("with ")[1].split()[0]) for line in caplog.messages] == [24, 12, 6]
    for name in ("value", "null", "ci_low"):
        numbers = (np.array([row[name] for row in each.rows()], float) for each in (halved, whole))
        np.testing.assert_allclose(*numbers, rtol=1e-4, atol=1e-6)


def test_one_sequence_that_does_not_fit_and_other_errors_are_raised() -> None:
    sequences = Sequences(np.zeros((4, 3), int), np.zeros((4, 3), int))
    for limit, error in ((0, MemoryError("none left")), (3, RuntimeError("another reason"))):
        with contextmanager(scarce)(limit, error), pytest.raises(type(error), match=str(error)):
            within_memory(lambda: read(sequences, 4), "reading")
