from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._inductor.config as inductor
from torch._dynamo.utils import counters

from headdyn.data.corpus import Split
from headdyn.models.decoder import Decoder
from headdyn.training import objective
from headdyn.training.objective import Batches, autocast, compiled_loss, evaluate, next_token_loss, reproducible
from tests import forked
from tests.small_models import MHA, drawn, tokens

ROOT = Path(__file__).parents[2]
DOCUMENTS_BT = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 3, 3, 4, 4, 5]])


def split(rows: int = 10, length: int = 9, documents: bool = False) -> Split:
    tokens_NT = tokens(rows, length, seed=3).numpy().astype(np.uint16)
    numbers_NT = np.resize(DOCUMENTS_BT.numpy(), (rows, length)).astype(np.uint16) if documents else None
    return Split(tokens_NT=tokens_NT, topics_NT=np.zeros((rows, length), np.uint8), documents_NT=numbers_NT)


def by_hand(decoder: Decoder, tokens_BT: torch.Tensor, documents_BT: torch.Tensor | None) -> list[float]:
    """The loss of every scored prediction, one token at a time, each document read as a sequence of its own."""
    losses = []
    for row, sequence_T in enumerate(tokens_BT):
        numbers_T = torch.zeros(len(sequence_T)) if documents_BT is None else documents_BT[row]
        for t in range(1, len(sequence_T)):
            if numbers_T[t] == numbers_T[t - 1]:
                logits_V = decoder(sequence_T[None, :t], numbers_T[None, :t].long())[0, -1]
                losses.append(-logits_V.double().log_softmax(-1)[sequence_T[t]].item())
    return losses


@pytest.mark.parametrize("documents_BT", [None, DOCUMENTS_BT], ids=["plain", "documents"])
@torch.no_grad()
def test_the_loss_is_the_mean_over_scored_tokens(documents_BT: torch.Tensor | None) -> None:
    decoder, tokens_BT = drawn(MHA, dtype=torch.float32), tokens(3, 9)
    losses = by_hand(decoder, tokens_BT, documents_BT)
    assert len(losses) == (24 if documents_BT is None else 6 + 8 + 3)
    assert next_token_loss(decoder, tokens_BT, documents_BT).item() == pytest.approx(np.mean(losses), abs=1e-5)
    shifted = next_token_loss(decoder, tokens_BT.roll(1, dims=1), documents_BT).item()
    assert abs(shifted - np.mean(losses)) > 1e-2


@torch.no_grad()
def test_evaluation_weighs_tokens_not_batches() -> None:
    decoder = drawn(MHA, dtype=torch.float32)
    for documents in (False, True):
        data = split(documents=documents)
        batches = Batches(data, "cpu", mask_documents=documents)
        numbers_NT = None if data.documents_NT is None else torch.from_numpy(data.documents_NT.astype(np.int64))
        losses = by_hand(decoder, torch.from_numpy(data.tokens_NT.astype(np.int64)), numbers_NT)
        assert batches.num_targets(np.arange(10)) == len(losses)
        for batch_size in (3, 4, 10, 64):  # the last batch is smaller than the others, or all there is
            mean = evaluate(decoder, batches, batch_size=batch_size, precision="fp32")
            assert mean == pytest.approx(np.mean(losses), abs=1e-5)


def test_batches_are_the_rows_asked_for() -> None:
    data = split(documents=True)
    masked, plain = (Batches(data, "cpu", mask_documents=masked) for masked in (True, False))
    tokens_BT, documents_BT = masked(np.array([7, 2, 2]))
    assert tokens_BT.dtype == torch.int64 and np.array_equal(tokens_BT, data.tokens_NT[[7, 2, 2]])
    assert data.documents_NT is not None and documents_BT is not None
    assert np.array_equal(documents_BT, data.documents_NT[[7, 2, 2]])
    assert plain(np.array([1]))[1] is None and plain.shape == (10, 9)
    assert Batches.prefix(data, 4, "cpu", mask_documents=True).shape == (4, 9)
    with pytest.raises(ValueError, match=r"no document numbers; set data\.mask_documents=false"):
        Batches(split(), "cpu", mask_documents=True)


def test_tokens_above_32767_survive_the_way_to_a_gpu() -> None:
    """A GPU's copy is int16, there being no indexing of uint16; 65535 is the largest token."""
    tokens_NT = np.array([[0, 32767, 32768, 65535]], np.uint16)
    resident = torch.from_numpy(tokens_NT.view(np.int16))
    assert (resident[torch.tensor([0])].long() & 0xFFFF).tolist() == tokens_NT.tolist()


def test_autocast_narrows_products_only_in_bf16() -> None:
    x = torch.ones(2, 2)
    with autocast("bf16", "cpu"):
        assert (x @ x).dtype == torch.bfloat16
    with autocast("fp32", "cpu"):
        assert (x @ x).dtype == torch.float32


@pytest.mark.slow
def test_the_compiled_loss_is_the_loss_and_always_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real compilation, forward and backward, of a one-layer model for two threads."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    small = dataclasses.replace(MHA.without_positions(), num_layers=1, qk_norm=False)  # fewer kernels to compile
    decoder = drawn(small, dtype=torch.float32)
    batches, rows = Batches(split(rows=64, length=64), "cpu", mask_documents=False), np.arange(64)

    def gradients(function: objective.LossFunction) -> list[torch.Tensor]:
        with reproducible("cpu"):
            with autocast("bf16", "cpu"):
                loss = function(decoder, *batches(rows))
            loss.backward()
        found = [loss.detach(), *(p.grad.clone() for p in decoder.parameters() if p.grad is not None)]
        decoder.zero_grad()
        return found

    torch.set_num_threads(2)
    try:
        counters.clear()
        function = compiled_loss(decoder, batches, rows, "bf16")
        assert counters["aot_autograd"]["autograd_cache_saved"] == 1  # another process need not compile it again
        assert function is not next_token_loss and all(p.grad is None for p in decoder.parameters())
        compiled = gradients(function)
        # Without `reproducible` the embedding's gradient was another one in 11 of 12 repetitions.
        assert all(torch.equal(a, b) for _ in range(10) for a, b in zip(gradients(function), compiled, strict=True))
    finally:
        torch.set_num_threads(1)
    # The compiler fuses, so that sums round elsewhere: 5e-4 measured, in gradients up to 3.8.
    apart = max((a - b).abs().max().item() for a, b in zip(compiled, gradients(next_token_loss), strict=True))
    assert 0 < apart < 5e-3


def test_without_a_compiler_it_says_so_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    decoder, batches = drawn(MHA, dtype=torch.float32), Batches(split(), "cpu", mask_documents=False)
    torch.compiler.reset()
    with inductor.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True}):
        function = compiled_loss(decoder, batches, np.arange(4), "fp32")
    assert function is next_token_loss
    assert "torch.compile does not work here" in caplog.text and "compiler" in caplog.text
    assert all(parameter.grad is None for parameter in decoder.parameters())


def test_the_compiled_graph_takes_no_cosine() -> None:
    """In a process without the tests' checks of array shapes, which wrap every function."""
    seen = """
import torch, torch._dynamo
from headdyn.training import objective
from tests.small_models import MHA, drawn, tokens

objective._compiled()
found = torch._dynamo.explain(objective.next_token_loss)(drawn(MHA, dtype=torch.float32), tokens(2, 8), None)
used = {str(node.target) for graph in found.graphs for node in graph.graph.nodes}
assert "cos" not in used and any("embedding" in name for name in used), used
"""
    run = forked.run([sys.executable, "-c", seen], env=os.environ, cwd=ROOT, timeout=120)
    assert run.returncode == 0, run.stderr


def test_the_compiler_is_imported_when_it_is_needed(tmp_path: Path) -> None:
    """A training that compiles nothing does without: torch.optim's classes and torch's own setting would load it."""
    seen = """
import pathlib, sys
import headdyn.pipeline, headdyn.analysis.probes
from tests.training.tiny import trained

trained(pathlib.Path(sys.argv[1]))
sys.exit("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", seen, str(tmp_path)], check=False, cwd=ROOT).returncode == 0


def test_the_compiler_learns_that_sums_have_a_fixed_order() -> None:
    """Its own setting follows PyTorch's, and both are put back."""
    for mode in (0, 1, 2):
        torch.set_deterministic_debug_mode(mode)
        with reproducible("cpu"):
            assert torch.get_deterministic_debug_mode() == 2 and inductor.deterministic
        assert torch.get_deterministic_debug_mode() == mode and inductor.deterministic == (mode > 0)
    torch.use_deterministic_algorithms(False)


def test_the_compiler_is_reset_before_it_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond eight variants of a function torch.compile would quietly run it uncompiled."""
    resets = []
    monkeypatch.setattr(objective, "_compiled", lambda: next_token_loss)
    monkeypatch.setattr(objective, "_compiled_for", set())
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(1))
    decoder, batches = drawn(MHA, dtype=torch.float32), Batches(split(), "cpu", mask_documents=False)
    for _ in range(2):
        for rows in range(1, 9):
            compiled_loss(decoder, batches, np.arange(rows), "fp32")
    assert not resets
    compiled_loss(decoder, batches, np.arange(9), "fp32")
    assert resets == [1]


def test_an_untrained_model_is_at_chance() -> None:
    decoder = Decoder(MHA).initialise(torch.Generator().manual_seed(0))
    loss = evaluate(decoder, Batches(split(), "cpu", mask_documents=False), batch_size=5, precision="fp32")
    assert loss == pytest.approx(math.log(MHA.vocab_size), abs=0.05)
