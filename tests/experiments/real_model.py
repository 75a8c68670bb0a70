"""SmolLM2-135M read by headdyn, Hugging Face and TransformerLens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headdyn.core.numbers import number
from tests.experiments.records import at_most, fixed, read, spelled

SETTINGS = (
    "to 4 bits change?",
    "weights are rounded to 4 bits",
    "that rounding to 4 bits leaves",
    "to 1e-4;",
    "q < 0.05 and at least 0.2 of their attention",
    "attention on position 0",
    "95 % over",
    "of 64 pairs such as 9.8 and 9.11",
    "to Δ to 1e-4 of its size",
    "other pairs' answers (q < 0.05)",
    "shares correlate above 0.5)",
    "of 64 pairs, 95 %",
    "pairs' answers (q < 0.05)",
)
PARTS = ("answer", "answer_embedding", "answer_heads", "answer_mlps")

LEAST = 0.2  # of its attention, for a head to be an induction head
ANALYSES = ("loss", "attention", "tensorlens")
OF_TOPICS = {
    "selectivity": "topic selectivity of attention, points",
    "raw_selectivity_no_self": "of attention, on TensorLens's sequences, self left out, points",
    "tensorlens_selectivity_no_self": "of TensorLens, self left out, points",
}


def fragments(folder: Path) -> list[str]:
    record = read(folder / "results.json")
    heads, loss, second = record["induction"], record["loss"], record["a_second_rounding"]
    strongest, weakest = max(heads, key=heads.get), min(heads, key=heads.get)
    mine, theirs = record["induction_heads"], record["induction_heads_of_transformer_lens"]
    assert set(mine) == set(theirs) == set(heads)
    rounded = second["induction_of_the_same_heads"]
    repeats = loss["repeated_pairs_nats"]
    still = sum(value > LEAST for value in rounded.values())
    assert all(rounded[head] < heads[head] for head in heads), "less strongly"
    sequences = repeats["n"]
    text = read(folder / "wikipedia.json")
    measured, corpus, took = text["summary"], text["corpus"], sum(text["seconds"][name] for name in ANALYSES)
    points = {name: {part: 100 * measured[name][part] for part in ("value", "ci_low", "ci_high")} for name in OF_TOPICS}
    top = measured["selectivity_top"]
    assert top["q"] > 0.05
    assert not any(min(measured[name]["p"], measured[name]["q"]) < 0.05 for name in OF_TOPICS)
    return [
        *comparisons(read(folder / "comparisons.json")),
        f"{corpus['documents_read']} articles, {corpus['val_documents']} of them held out",
        f"The three analyses took {fixed(took / 60, 0)} minutes",
        f"loss, nats | {spelled(measured['loss_nats'])}; {fixed(measured['bigram_nats'], 2)} by a bigram model |",
        f"in-context score, nats, on text | {spelled(measured['in_context_nats'])} |",
        f"saved on a pair's repeat, nats | {spelled(measured['repeat_gain_nats'])} |",
        f"strongest previous-token head | {spelled(measured['previous_token_top'])} |",
        f"strongest sink head | {spelled(measured['sink_rate_top'])} |",
        f"strongest induction head | {spelled(measured['induction_top'])} |",
        *(f"{label} | {spelled(points[name])} |" for name, label in OF_TOPICS.items()),
        f"smallest p of the three is {fixed(min(measured[name]['p'] for name in OF_TOPICS), 2)}",
        f"model's output to {number(measured['tensorlens_error']['value'])} of its size",
        f"{measured['loss_nats']['n']} sequences, {measured['tensorlens_error']['n']} for TensorLens",
        f"logits are Hugging Face's to {number(max(record['largest_difference_from_hugging_face'].values()))}",
        f"the {len(mine)} heads that it names induction heads are the {len(theirs)} that TransformerLens ranks first",
        f"after a second such rounding {still} of the {len(mine)} still attend so by the same measure ({LEAST:g} of attention)",
        f"{sequences} sequences of random tokens",
        f"the {sequences} sequences",
        f"from Hugging Face | {number(max(record['largest_difference_from_hugging_face'].values()))} |",
        f"pairs, nats | {spelled(repeats)}; {fixed(repeats['null'], 2)} at the pairs' first time",
        f"score, nats | {spelled(loss['in_context_nats'])} |",
        f"heads | {len(mine)}, from {strongest} ({fixed(heads[strongest], 2)} of its attention) to {weakest} "
        f"({fixed(heads[weakest], 2)}); the largest q is {number(record['largest_q_of_an_induction_head'])} |",
        f"same {len(mine)} heads; correlation over all heads {fixed(record['correlation_with_transformer_lens'], 3)}",
        f"has {fixed(rounded[strongest], 2)} of its attention in place of {fixed(heads[strongest], 2)}, {still} of the {len(mine)} "
        f"stay above {LEAST:g} and all above {fixed(int(100 * min(rounded.values())) / 100, 2)}, no head's",
        f"by more than {at_most(second['largest_change_of_any_heads_induction'], 2)}, and",
        f"the strongest head's {spelled(top, scale=100, signed=True)} points have q = {fixed(top['q'], 2)}",
        f"rises to {fixed(second['loss']['repeated_pairs_nats'], 2)} nats",
    ]


def comparisons(record: dict[str, Any]) -> list[str]:
    """A row of the sums for each wording, and what the predictions are judged by."""
    wordings = {name: record[name] for name in ("corrupted", "clean")}
    lines, errors = [], []
    for name, wording in wordings.items():
        sums = wording["sums"]
        cells = [f"{spelled(sums[f'{part}_nats'])}; {fixed(sums[f'{part}_nats']['null'], 2)}" for part in PARTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        errors.append(sums["answer_lens_error"]["value"])
    most = {
        name: max(wording["significant"], key=lambda head: abs(float(head["nats"])))
        for name, wording in wordings.items()
    }
    assert max(errors) < 1e-4 and record["correlation_of_wordings"] > 0.5
    assert any(head["nats"] > 0 for head in record["corrupted"]["significant"])
    answered = {name: wording["sums"]["answer_nats"] for name, wording in wordings.items()}
    assert answered["corrupted"]["ci_low"] < 0 < answered["corrupted"]["ci_high"] and answered["clean"]["ci_low"] > 0
    return [
        *lines,
        f"add up to Δ to {number(max(errors))} of its size",
        f"{len(record['corrupted']['significant'])} of {record['corrupted']['heads']} heads",
        f"{len(record['clean']['significant'])} in the other wording",
        *(f"{head['head']} with {fixed(head['nats'], 3, signed=True)} nats" for head in most.values()),
        f"correlate by {fixed(record['correlation_of_wordings'], 2)}",
    ]
