from __future__ import annotations

import dataclasses

import numpy as np

from headdyn.analysis.interventions.permutation_measure import head_orders
from headdyn.studies.head_swapping.permutation import NOTE, VirtualPermutation
from tests.small_models import NEOX, drawn
from tests.small_tokenizer import byte_level, prompts


def test_the_virtual_permutation_patches_other_heads() -> None:
    decoder = drawn(dataclasses.replace(NEOX, vocab_size=len(byte_level())))
    analysis = VirtualPermutation(tokens=4)
    findings = analysis(decoder, prompts(bug_pairs=6, control_pairs=2), np.random.default_rng(0))
    table, summary = findings.tables["virtual_permutation"], findings.table.summary()
    assert table.schema.metadata[b"note"].decode() == NOTE and "another group of heads" in NOTE
    orders = head_orders(4, 4, np.random.default_rng(0))
    assert set(summary) == set(analysis.metrics) and table.num_rows == len(orders) == 5
    for row in table.to_pylist():
        assert row["heads"] == list(orders[row["name"]][::2])
        assert summary[f"original_{row['name']}_success"]["value"] == row["success"]
