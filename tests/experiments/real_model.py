"""SmolLM2-135M read by headdyn, Hugging Face and TransformerLens."""

from __future__ import annotations

from pathlib import Path

from headdyn.core.numbers import number
from tests.experiments.records import fixed, read, spelled

SETTINGS = (
    "to 4 bits change?",
    "that rounding to 4 bits leaves",
    "to 1e-4;",
    "q < 0.05 and at least 0.2 of their attention",
    "attention on position 0",
    "95 % over",
)


def fragments(folder: Path) -> list[str]:
    record = read(folder / "results.json")
    heads, loss, second = record["induction"], record["loss"], record["a_second_rounding"]
    strongest, weakest = max(heads, key=heads.get), min(heads, key=heads.get)
    mine, theirs = record["induction_heads"], record["induction_heads_of_transformer_lens"]
    assert set(mine) == set(theirs) == set(heads)
    rounded = second["induction_of_the_same_heads"]
    repeats = loss["repeated_pairs_nats"]
    sequences = repeats["n"]
    return [
        f"{sequences} sequences of random tokens",
        f"the {sequences} sequences",
        f"from Hugging Face | {number(max(record['largest_difference_from_hugging_face'].values()))} |",
        f"pairs, nats | {spelled(repeats)}; {fixed(repeats['null'], 2)} at the pairs' first time",
        f"score, nats | {spelled(loss['in_context_nats'])} |",
        f"heads | {len(mine)}, from {strongest} ({fixed(heads[strongest], 2)} of its attention) to {weakest} "
        f"({fixed(heads[weakest], 2)}); the largest q is {number(record['largest_q_of_an_induction_head'])} |",
        f"same {len(mine)} heads; correlation over all heads {fixed(record['correlation_with_transformer_lens'], 3)}",
        f"keeps {fixed(rounded[strongest], 2)} of its attention, all {len(mine)} stay above "
        f"{fixed(int(100 * min(rounded.values())) / 100, 2)}, no head's",
        f"by more than {fixed(second['largest_change_of_any_heads_induction'], 2)}, and",
        f"rises to {fixed(second['loss']['repeated_pairs_nats'], 2)} nats",
    ]
