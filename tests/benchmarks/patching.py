"""Head patching against TransformerLens' own loop, and the price of a split of the exact null; run as

    python -m tests.benchmarks.patching

Both sides patch every head of every layer, clean into corrupted at all 17 positions, on one random model of
Pythia-160m's shape in float32, and read the log-odds of two tokens at the last position; a repetition includes each
side's pass over the clean prompts. That they agree is checked. Sides take turns; ratios come from the same repetition.

The null's price is that of a split of the middle layer's heads on 32 comparison prompts (two token lengths, their
common block written, two shared answer tokens behind), in plain forward passes of that batch that compute the last
logits only, the cheaper kind. It is linear in the number of splits, so some stand for all 924.

The budget: 6 times TransformerLens' speed at batch 1, 3 times at batch 8, and 0.6 plain forwards a split.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformer_lens import patching as theirs
from transformer_lens.model_bridge import TransformerBridge
from transformers.utils import logging

from headdyn.analysis.interventions.patch import Patch
from headdyn.analysis.interventions.patching import GroupPatching
from headdyn.analysis.interventions.splits import balanced_splits
from headdyn.data.prompts import Block, PromptGroup
from headdyn.models.decoder import Decoder
from headdyn.models.families import export_pretrained
from tests.parity import hugging_face
from tests.small_models import NEOX
from tests.small_tokenizer import byte_level

PYTHIA_160M = replace(
    NEOX,
    vocab_size=50_304,
    num_layers=12,
    d_model=768,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
    d_ff=3072,
    norm_eps=1e-5,
    rotary_fraction=0.25,
    rotary_theta=1e4,
)
T = TypeVar("T")
LAYERS, HEADS = range(PYTHIA_160M.num_layers), PYTHIA_160M.num_heads


def group(rows: int, clean: int, corrupted: int, shared: int, span: Block) -> PromptGroup:
    rng = np.random.default_rng(rows)
    parts = {"clean_NT": clean, "corrupted_NT": corrupted, "shared_NC": shared, "right_NA": 1, "wrong_NA": 1}
    tokens = {name: rng.integers(50_000, size=(rows, width)) for name, width in parts.items()}
    return PromptGroup(format="random", units_N=np.arange(rows), span=span, **tokens)


def by_transformer_lens(bridge: TransformerBridge, prompts: PromptGroup) -> np.ndarray:
    answers = np.concatenate((prompts.right_NA, prompts.wrong_NA), axis=1)
    device = next(bridge.parameters()).device
    clean_NT, corrupted_NT, answers_N2 = (
        torch.from_numpy(array).to(device) for array in (prompts.clean_NT, prompts.corrupted_NT, answers)
    )

    def log_odds(logits_NTV: Tensor) -> Tensor:
        picked_N2 = logits_NTV[:, -1].gather(1, answers_N2)
        return picked_N2[:, 0] - picked_N2[:, 1]

    with torch.no_grad(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        _, cache = bridge.run_with_cache(clean_NT)
        effects = theirs.get_act_patch_attn_head_out_all_pos(bridge, corrupted_NT, cache, log_odds, reduce="none")
        return effects.values.cpu().numpy()  # type: ignore[attr-defined]  # what it returns is annotated as a tensor


def bridge_of(decoder: Decoder, device: str) -> TransformerBridge:
    """TransformerLens' form of a GPT-NeoX decoder."""
    with tempfile.TemporaryDirectory() as folder:
        export_pretrained(decoder, Path(folder), family="gpt_neox")
        byte_level().save_pretrained(folder)
        model = hugging_face.load(Path(folder), "eager").to(device)
        return TransformerBridge.boot_transformers(folder, hf_model=model, device=device).eval()


def by_headdyn(decoder: Decoder, prompts: PromptGroup) -> np.ndarray:
    layers = range(decoder.config.num_layers)
    delta = GroupPatching(decoder, prompts, Patch(), layers).deltas(dict.fromkeys(layers, np.eye(HEADS)))
    return np.stack([delta[layer] for layer in layers])


def timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def spread(values: Sequence[float]) -> str:
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


LEAST_RATIO = {1: 6, 8: 3}  # by batch
MOST_FORWARDS = 0.6  # a split


def grid(decoder: Decoder, bridge: TransformerBridge, rows: int, repetitions: int) -> None:
    prompts = group(rows, 17, 17, 0, Block(0, 0, 17))
    seconds: dict[str, list[float]] = {"TransformerLens": [], "headdyn": []}
    for _ in range(repetitions):
        took, expected = timed(lambda: by_transformer_lens(bridge, prompts))
        seconds["TransformerLens"].append(took)
        took, found = timed(lambda: by_headdyn(decoder, prompts))
        seconds["headdyn"].append(took)
        difference = np.abs(found - expected).max()
        assert difference < 1e-4, f"the two sides differ by {difference:.1e}"
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    print(f"grid of {len(LAYERS)} x {HEADS} heads, batch {rows}, 17 tokens, s (min / median / max of {repetitions})")
    for name, values in seconds.items():
        print(f"  {name:18}{spread(values)}")
    print(
        f"  ratio             {spread(ratios)}   (at least {LEAST_RATIO[rows]}); largest difference {difference:.1e}",
        flush=True,
    )


@torch.no_grad()
def null(decoder: Decoder, splits: int, repetitions: int) -> None:
    prompts, layer = group(32, 13, 17, 2, Block(1, 3, 12)), PYTHIA_160M.num_layers // 2
    halves_SH = balanced_splits(HEADS, np.random.default_rng(0)).half_SH[:splits].astype(float)
    tokens = torch.from_numpy(np.concatenate((prompts.corrupted_NT, prompts.shared_NC), axis=1))
    engine = GroupPatching(decoder, prompts, Patch(), [layer])
    price: dict[Literal["last", "all"], list[float]] = {"last": [], "all": []}
    for _ in range(repetitions):
        took, _ = timed(lambda: engine.deltas({layer: halves_SH})[layer])
        for logits, prices in price.items():
            plain = statistics.median(timed(partial(decoder.trace, tokens, logits=logits))[0] for _ in range(5))
            prices.append(took / splits / plain)
    print(f"one split of layer {layer}'s heads on 32 prompts, in plain forwards ({splits} of 924 timed)")
    print(f"  with the last logits only   {spread(price['last'])}   (at most {MOST_FORWARDS})")
    print(f"  with all logits             {spread(price['all'])}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--splits", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    print(f"{arguments.threads} threads of {os.cpu_count()} cores, torch {torch.__version__}", flush=True)
    decoder = Decoder(PYTHIA_160M).initialise(torch.Generator().manual_seed(0), std=PYTHIA_160M.d_model**-0.5)
    null(decoder, arguments.splits, arguments.repetitions)
    bridge = bridge_of(decoder, "cpu")
    for rows in LEAST_RATIO:
        grid(decoder, bridge, rows, arguments.repetitions)


if __name__ == "__main__":
    main()
