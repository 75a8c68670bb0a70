"""What the seed studies did and why it misleads, for a reader of protocol=seed, with the runs' own numbers beside.

Only what the runs recorded is explained: patching where a model was patched the study's way, weights where they were
read its way, virtual permutation where heads were relabelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq

from headdyn.core.numbers import count, fixed, listed, p_value
from headdyn.sweep.jobs import Job

ORDERS = ("identity", "swap", "within_parity", "random", "reverse")
_PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class Point:
    """One thing the studies did: what it was, why it says nothing about heads, and what these runs measured of it."""

    did: str
    misleads: str
    here: str = ""


def explanation(jobs: Sequence[Job]) -> list[Point]:
    """Every point that concerns complete runs under protocol=seed; none where there are none."""
    told = [job for job in jobs if job.complete and job.factors.get("protocol") == "original"]
    points = []
    if any("seed_strength" in job.run.scalars for job in told):
        points += _patching(told)
    if any(f"seed_{part}_silhouette" in job.run.scalars for job in told for part in _PARTS):
        points += _weights(told)
    if any("seed_identity_success" in job.run.scalars for job in told):
        points += _permutation(told)
    return points


def responses(job: Job) -> list[dict[str, object]]:
    """What the model wrote when it was patched the study's way: name, heads, text, success, agreeing; [] where not."""
    path = job.run.folder / "seed_responses.parquet"
    return pq.read_table(path).to_pylist() if path.exists() else []


def answers(jobs: Sequence[Job]) -> tuple[list[str], list[tuple[Job, list[tuple[str, bool]]]]]:
    """(cells, rows): what each model wrote in each cell and whether the study called it right; a row a job."""
    told = [(job, responses(job)) for job in jobs if job.complete]
    names = list(dict.fromkeys(str(row["name"]) for _, rows in told for row in rows))
    found = []
    for job, rows in told:
        by_name = {str(row["name"]): (str(row["text"]), bool(row["success"])) for row in rows}
        if by_name:
            found.append((job, [by_name.get(name, ("", False)) for name in names]))
    return names, found


def _patching(jobs: Sequence[Job]) -> list[Point]:
    there = [job for job in jobs if job.run.value("seed_strength") is not None]
    values = [job.run.value("seed_strength") or 0.0 for job in there]
    ours = [v for job in there if (v := job.run.value("strength")) is not None]
    of_three = ", ".join(
        f"{word} at {sum(v == level for v in values)}" for word, level in (("+1", 1), ("0", 0), ("−1", -1))
    )
    here = f"Over {count(len(values), 'checkpoint')} the study's strength is {of_three}"
    if ours:
        pairs = there[0].scalar("strength").get("n")
        here += (
            f"; real heads patched at the prompt, over {pairs} pairs, give strengths from {fixed(min(ours), 2)} to "
            f"{fixed(max(ours), 2)}"
        )
        both = [(job.run.value("seed_strength") or 0.0, job.run.value("strength")) for job in there]
        apart = sum((theirs > 0.5) != (mine > 0.5) for theirs, mine in both if mine is not None)
        here += f", and the two disagree on “above 0.5” at {apart} of {len(ours)}"
    agreeing = [bool(row["agreeing"] == 1) for job in there for row in responses(job)]
    trials = "" if not agreeing else f"Repeated trials wrote the same text in {sum(agreeing)} of {len(agreeing)} cells."
    null = _null(there)
    return [
        Point(
            "It cut the output of the attention layer, behind W_O, into as many pieces as there are heads and called "
            "piece i head i.",
            "W_O mixes all heads into every number. A piece is a slice of the residual stream's axes, no head: “even "
            "heads” were every other slice.",
            f"{here}.",
        ),
        Point(
            "Its hook stayed on while the model generated with a cache.",
            "Each new token's activation was overwritten, in the patched pieces, with that of the clean prompt's first "
            "token. The answer is in part what that does to decoding.",
        ),
        Point(
            "It aligned the two prompts from the left.",
            "They differ in their first tokens (“Which …” against “Q: Which …”), so that every token took the values "
            "of another word, and each number those of a word that is none.",
        ),
        Point(
            "It judged one prompt, 15 times, by whether 20 greedy tokens contain “9.8” and lack “9.11”.",
            "Greedy decoding repeats itself: 15 trials are one, so that a success rate can only be 0 or 1 and a "
            "strength only −1, 0 or 1, and every change is a jump. A model that writes both numbers fails.",
            trials,
        ),
        Point(
            "It compared even with odd and with no other split.",
            "There are as many balanced splits as ways to choose half the heads; some split is always the strongest.",
            null,
        ),
    ]


def _null(jobs: Sequence[Job]) -> str:
    p = [found for job in jobs if (found := job.scalar("strength_nats").get("p")) is not None]
    if not p:
        return ""
    splits = jobs[-1].scalar("strength_rank").get("n")
    return (
        f"Among {splits} splits, even/odd's Δ has p from {p_value(min(p))} to {p_value(max(p))} checkpoint by "
        f"checkpoint, below 0.05 at {sum(v < 0.05 for v in p)} of {len(p)}."
    )


def _weights(jobs: Sequence[Job]) -> list[Point]:
    last = [job for job in jobs if f"seed_{_PARTS[0]}_silhouette" in job.run.scalars][-1]
    parts = []
    for part in _PARTS:
        found = last.scalar(f"seed_{part}_silhouette")
        if found.get("value") is not None:
            null = "" if found.get("null") is None else f" (random pieces {fixed(found['null'], 3)})"
            parts.append(f"{part} {fixed(found['value'], 3)}{null}")
    here = f"{last.label}: silhouettes of the pieces, {listed(parts)}" if parts else ""
    own = [
        f"{kind.upper()} circuits {fixed(found['value'], 3)} (null {fixed(found.get('null'), 3)})"
        for kind in ("qk", "ov")
        if (found := last.scalar(f"{kind}_silhouette")).get("value") is not None
    ]
    if own:
        here += f"; of heads rightly unpacked, {listed(own)}"
    sizes = [v for part in _PARTS if (v := last.run.value(f"seed_{part}_smallest_cluster")) is not None]
    if sizes:
        here += f". The smaller of two clusters holds {listed([fixed(v, 0) for v in sizes])} pieces"
    return [
        Point(
            "It read the packed query_key_value matrix as [3, heads, …].",
            "GPT-NeoX packs [heads, 3, …]: its “query head 6” is rows of queries, keys and values of several heads.",
            f"{here}." if here else "",
        ),
        Point(
            "It took a high silhouette for two kinds of heads.",
            "One outlying piece against all others gives a high silhouette too: a cluster of one is an outlier. And a "
            "silhouette needs a null, as random points have one above 0.",
        ),
    ]


def _permutation(jobs: Sequence[Job]) -> list[Point]:
    job = next(job for job in jobs if "seed_identity_success" in job.run.scalars)
    verdicts = [
        f"{order.replace('_', ' ')} {'right' if value else 'wrong'}"
        for order in ORDERS
        if (value := job.run.value(f"seed_{order}_success")) is not None
    ]
    changes = [v for order in ORDERS[1:] if (v := job.run.value(f"{order}_float64_logit_change")) is not None]
    here = f"Its verdicts here: {', '.join(verdicts)}"
    if changes:
        here += f". Heads really reordered, weights and all, change no logit by more than {max(changes):.0e} in float64"
    return [
        Point(
            "Its “virtual permutation” patched the heads that would sit at even places after a reordering.",
            "That relabels groups: another set of heads is patched, and judged by the same rule. No outcome of it can "
            "show that a function depends on indices, for the model never changed.",
            f"{here}.",
        )
    ]
