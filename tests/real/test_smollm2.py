"""SmolLM2-135M-Instruct, read from a GGUF file: `make test-real` fetches it and runs this."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FILE = os.environ.get("HEADDYN_REAL_MODEL")


@pytest.mark.skipif(FILE is None, reason="needs HEADDYN_REAL_MODEL, a GGUF file of SmolLM2-135M: make test-real")
def test_a_real_model_is_what_others_read(tmp_path: Path) -> None:
    from tests.real.smollm2 import measure

    results = measure(Path(str(FILE)), tmp_path)
    differences = results["largest_difference_from_hugging_face"]
    statistics = ("pattern", "sink_rate", "previous_token", "entropy_nats")
    assert all(differences[name] < 1e-4 for name in statistics) and differences["logits"] < 1e-3
    assert results["largest_difference_after_a_second_rounding"]["pattern"] > 0.01  # other weights are told apart
    assert results["induction_heads"] == results["induction_heads_of_transformer_lens"]
    assert len(results["induction_heads"]) > 5 and results["largest_q_of_an_induction_head"] < 0.05
    assert results["correlation_with_transformer_lens"] > 0.99
    loss = results["loss"]
    assert loss["repeated_pairs_nats"]["ci_high"] < loss["repeated_pairs_nats"]["null"] / 2
    assert loss["repeat_gain_nats"]["ci_low"] > 5
