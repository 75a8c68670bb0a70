"""What every number in a report means: common words, the pipeline's numbers, and the metrics of the runs' analyses."""

import re
from typing import Any

from markupsafe import Markup, escape

from headdyn.core.numbers import number
from headdyn.report.blocks import Heading, Section, Table, fold
from headdyn.sweep.record import SweepRecord

_WORDS = {
    "interval": "95 %, in square brackets: bootstrap (BCa) over the units named, Student's over seeds",
    "null": "what chance gives for the same data; in italics, or a hollow diamond",
    "p, q": "p-value, and the same after Benjamini–Hochberg over its family of tests",
    "unit": "what was drawn independently: sequences within a run, trainings (seeds) for a factor",
    "effect": "mean at a factor's second level less mean at its first, within a seed; of two factors (×) half the "
    "difference between the effects of one at the two levels of the other",
    "detectable": "beside an effect that was not found, the smallest one whose q would be below 0.05 in four of five "
    "repetitions, with as many seeds, the same spread between them, and as many other effects found",
    "matched loss": "two arms compared where their held-out losses are equal, not where their steps are",
    "RoPE": "rotary positions",
    "DroPE": "the RoPE model after rotation was taken out of every layer, and a short second training",
    "RoPE-control": "the RoPE model after the same second training, rotation kept",
    "NoPE": "trained without positions from the start",
    "MHA, GQA": "a key/value head for each query head; one shared by several",
    "topic, shuffled": "training meets its sequences sorted by their main topic; or in random order",
}
# The same for runs on comparison prompts, whose models were trained elsewhere.
_PROMPT_WORDS = {
    "interval": "95 %, in square brackets, over pairs: Clopper–Pearson for shares, bootstrap (BCa) otherwise",
    **{name: _WORDS[name] for name in ("null", "p, q")},
    "unit": "what was drawn independently: a number pair, a split, a head; never a repeated greedy text",
    "Δ": "log-odds of the right answer against the wrong one, in nats, averaged over a pair's prompts",
    "right": "Δ above 0",
    "bug pair, control pair": "two numbers that compare wrongly if their fractions are read as integers, such as 9.8 "
    "and 9.11; two numbers that do not",
    "patched": "heads' outputs before W_O replaced by those of the clean prompt, at the tokens that both prompts share",
    "strength": "share of right answers with even heads patched less that with odd heads patched; strength of Δ is the "
    "same difference of Δ, in nats",
    "exact null": "the strength of every split of the heads into two halves; p is the rank of even/odd among them",
    "emergence": "(last checkpoint below, first above] it; early up to 25 % of training, late from 75 %",
    "sudden, gradual": "the rise from 10 to 90 % surely took at most 10 % of training; surely more than 25 %",
}
# Numbers that the pipeline itself records: meaning, range, unit.
_RUN = {
    "random_nats": ("loss of guessing uniformly among possible tokens; ln V where every token may come", "0 …", "nats"),
    "mixture_nats": ("loss of the best topic-blind bigram; models stay near it until they infer topics", "0 …", "nats"),
    "position_only_nats": ("loss of the best predictor that weighs evidence by distance alone", "0 …", "nats"),
    "speaker_blind_nats": ("loss of the exact filter that does not know who speaks", "0 …", "nats"),
    "floor_nats": ("loss of the exact Bayes filter of the generating law: no model can do better", "0 …", "nats"),
    "train_passes": ("how often training went through its corpus", "0 …", "passes"),
    "ended_in_pass": ("share of the last pass through the corpus that was done when training ended", "0 … 1", ""),
    "ended_in_topic": ("main topic of the last sequence shown, under an ordering that follows topics", "", ""),
    "tokens_per_second": ("training speed, evaluations and saving left out", "0 …", "tokens/s"),
    "seconds": ("time of the training's updates alone", "0 …", "s"),
    "compiled": ("whether the training step was compiled", "yes, no", ""),
    "recovered": ("whether a recalibrated arm came back to its parent's loss, within a set distance", "yes, no", ""),
}


def section(sweep: SweepRecord) -> Section:
    """The words that all reports use, then each analysis of the runs with its metrics, from the runs' manifests."""
    manifests = [job.run.manifest for job in sweep.complete]
    about = {name: part for manifest in manifests for name, part in manifest.get("glossary", {}).items()}
    stages = [manifest.get("stages") for manifest in manifests]
    trained = not stages or any(stage is None or "training" in stage for stage in stages)
    words = _WORDS if trained else _PROMPT_WORDS
    blocks: list[Any] = [Table(columns=["word", "meaning"], rows=[*words.items()])]
    columns = ["name", "label", "meaning", "range", "unit"]
    if trained:
        rows = [[name, "", *entry] for name, entry in _RUN.items()]
        blocks += [Heading("training"), Table(columns=columns, rows=rows)]
    for name, part in about.items():
        rows = [
            [metric, m.get("label") or "", m["meaning"], _range(m["low"], m["high"]), m["unit"]]
            for metric, m in part["metrics"].items()
        ]
        how = fold("how it is measured, and what its null is", prose(part["about"])) if part["about"] else None
        blocks += [Heading(name.replace("_", " ")), how, Table(columns=columns, rows=rows)]
    return Section("glossary", "Glossary", blocks, "what every number means")


def prose(docstring: str) -> Markup:
    """An analysis's docstring as paragraphs, text in backquotes as code, without the sentences on what it raises."""
    paragraphs = []
    for text in docstring.split("\n\n"):
        text = re.sub(r"\s*Raises \w+Error.*", "", " ".join(text.split()))
        if text:
            coded = Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
            paragraphs.append(Markup("<p>{}</p>").format(coded))
    return Markup("").join(paragraphs)


def _range(low: float | None, high: float | None) -> str:
    ends = ["" if end is None else number(end) for end in (low, high)]
    return " … ".join(ends).strip() if any(ends) else ""
