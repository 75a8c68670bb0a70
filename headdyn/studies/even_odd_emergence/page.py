"""H1 to H5, the study's figures beside ours, and what misleads in how it patched heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq
from markupsafe import Markup

from headdyn.core.figures import Curve, curves
from headdyn.core.numbers import count, fixed, number, p_value, spelled
from headdyn.report.cells import Cell
from headdyn.report.markup import gallery, heading, soft, table
from headdyn.report.page import drawn
from headdyn.report.quality import Check
from headdyn.report.section import Section
from headdyn.report.series.curves import curve
from headdyn.report.series.record import Series, read_series
from headdyn.report.series.words import interval, share
from headdyn.studies.pages import Point, figures, first_cell, is_of, jobs_by_step, misleading
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import Statement

OWN = "original_strength"  # the study's own strength, of one prompt
_FINAL_STEP = 143_000


def sections(sweep: SweepRecord) -> list[Section]:
    """What these runs say of the study's hypotheses, its figures beside ours, and what misleads."""
    series = read_series(sweep)
    parts = [_hypotheses(series), _beside(series), _heads_alone(series), _misleads(sweep)]
    return [section for section in parts if section is not None]


def headlines(sweep: SweepRecord) -> list[Statement]:
    """What becomes of the hypotheses, and what the study's own measure says."""
    statements = []
    series = read_series(sweep)
    for each in series:
        alone = sum(other.group == each.group for other in series) == 1
        which = f" ({each.title})" if each.title and not (alone and each.group) else ""
        if sentences := hypotheses(each):
            question = f"What becomes of the study's hypotheses H1 to H5?{which}"
            statements.append(Statement(question, sentences, each.group))
    return statements


def checks(sweep: SweepRecord) -> list[Check]:
    """The last checkpoint against the study's figure for its own model; whether repeated trials repeat themselves."""
    return [*(_final(each) for each in read_series(sweep) if not each.truth), *_trials(sweep.complete)]


def hypotheses(series: Series) -> list[str]:
    """H1 to H5 by every measure; the details say on what evidence."""
    judged = {name: j["hypotheses"] for name, j in series.measures.items() if "hypotheses" in j}
    own = judged.pop(OWN, None)
    if not judged:
        return []
    lead = "; ".join(f"by {series.metric(name).label}: {_verdicts(each)}" for name, each in judged.items())
    details = [
        f"By {series.metric(name).label}: {'; '.join(dict.fromkeys(one['evidence'] for one in each.values()))}."
        for name, each in judged.items()
    ]
    if own is not None:
        judgement = series.measures[OWN]
        where = "never exceeds 0.5" if judgement["emerges_at_step"] is None else f"exceeds 0.5 in {interval(judgement)}"
        details.append(
            f"Judged as the study did it, on one prompt and without a null, strength {where}; that decides nothing: "
            f"{_verdicts(own)}."
        )
    return [f"{lead[0].upper()}{lead[1:]}.", *details]


def _verdicts(judged: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{name} {one['verdict']}" for name, one in judged.items())


def _hypotheses(series: Sequence[Series]) -> Section | None:
    """Each hypothesis with the study's claim, and verdict, probability and evidence by measure."""
    reported, parts = figures("even_odd_emergence")["timeline"], []
    for each in series:
        judged = {name: j["hypotheses"] for name, j in each.measures.items() if "hypotheses" in j}
        if not judged:
            continue
        claims = {"the study's claim": reported["hypotheses"]} if each.split_measures else {}
        rows = []
        for name, one in next(iter(judged.values())).items():
            said = [f"{claim[name]['claim']}\n{claim[name]['evidence']}" for claim in claims.values()]
            rows.append([f"{name} {one['statement']}", *said, *(_verdict(by[name]) for by in judged.values())])
        headings = ["hypothesis", *claims, *(each.metric(name).label for name in judged)]
        parts.append(heading(each.title) + table(headings, rows))
    about = (
        f"The study's claims are of {reported['model']}, on one prompt. Undecided: the checkpoints lie too far apart, "
        "or nothing emerged that could have a pace."
    )
    if not parts:
        return None
    lead = next((sentences[0] for each in series if (sentences := hypotheses(each))), "")
    return Section("hypotheses", "The hypotheses H1 to H5", soft(about) + Markup("").join(parts), lead)


def _verdict(judged: Mapping[str, Any]) -> str:
    odds = f"\nprobability {share(judged['probability'])}" if "probability" in judged else ""
    return f"{judged['verdict']}{odds}\n{judged['evidence']}"


def _beside(series: Sequence[Series]) -> Section | None:
    """The study's timeline | ours as it judged it | ours over pairs, a row a step, for each model."""
    reported, parts = figures("even_odd_emergence")["timeline"], []
    measured = [each for each in series if each.points("strength") is not None]
    for model in dict.fromkeys(each.model for each in measured):
        same = [each for each in measured if each.model == model]
        if not is_of(model, reported):
            known = any(each.truth for each in same)
            known_text = " What is known of it by construction is checked under quality control." if known else ""
            parts.append(soft(f"The study's figures are of {reported['model']} alone, not of {model}.{known_text}"))
            continue
        theirs, ours = {row[0]: row[1:] for row in reported["rows"]}, jobs_by_step(same)
        rows = []
        for step in sorted(theirs.keys() | ours.keys()):
            even, odd, strength = theirs.get(step, (None, None, None))
            cells = [Cell(f"{_right(even)}, {_right(odd)}"), Cell(fixed(strength, 0, signed=True))]
            rows.append([Cell(f"step {number(step)}"), *cells, *_our_cells(ours.get(step, []))])
        headings = [
            *("", "the study\neven, odd: right", "the study\nstrength", "ours, as the study did it\neven, odd: right"),
            *(
                "ours, as the study did it\nstrength, one prompt",
                "ours\nstrength over pairs",
                "ours\nstrength of Δ (nats)",
            ),
        ]
        more = [Curve(label="the study's figure", x=list(theirs), y=[row[2] for row in theirs.values()])]
        drawings = [figure for each in same if (figure := curve(each, ["strength"], more=[*_own(each), *more]))]
        source = soft(f"Source: {reported['source']}. {reported['note']}.")
        parts.append(source + table(headings, rows) + gallery(map(drawn, drawings)))
    return Section("beside", "The study's figures beside ours", Markup("").join(parts)) if parts else None


def _own(series: Series) -> list[Curve]:
    points = series.points(OWN)
    return (
        [] if points is None else [Curve(label="as the study judged it (one prompt)", x=points.steps, y=points.value)]
    )


def _our_cells(jobs: Sequence[Job]) -> list[Cell]:
    job = next((job for job in jobs if OWN in job.run.scalars), None)
    if job is None:
        cells = [Cell(reason="not run under protocol=original" if jobs else "not run")] * 2
    else:
        halves = (job.run.value(f"original_{half}_success") for half in ("even", "odd"))
        cells = [Cell(", ".join(map(_right, halves))), first_cell([job], OWN)]
    return [*cells, *(first_cell(jobs, name) for name in ("strength", "strength_nats"))]


def _right(success: float | None) -> str:
    return "–" if success is None else "yes" if success else "no"


def _heads_alone(series: Sequence[Series]) -> Section | None:
    """Δ with one head patched alone, over training, where one layer's heads were."""
    drawings = []
    for each in series:
        rows = [(row["step"], each.jobs[row["revision"]]) for row in each.counted if row["revision"] in each.jobs]
        cells = [(step, cell) for step, job in rows for cell in job.heads.where(metric="head_effect_nats").rows()]
        cells = [(step, cell) for step, cell in cells if cell["head"] is not None and cell["value"] is not None]
        if len({cell["layer"] for _, cell in cells}) != 1 or len({step for step, _ in cells}) < 2:
            continue
        heads = sorted({cell["head"] for _, cell in cells})
        lines = [
            Curve(
                label=f"head {head}",
                x=[step for step, cell in cells if cell["head"] == head],
                y=[cell["value"] for _, cell in cells if cell["head"] == head],
            )
            for head in heads
        ]
        title = f"Each head of layer {cells[0][1]['layer']} patched alone{': ' if each.title else ''}{each.title}"
        caption = "Change of Δ. Many numbers without a correction: one head that stands out is no finding."
        drawings.append(
            curves(lines, xlabel="training step", ylabel="change of Δ (nats)", title=title, log_x=True, caption=caption)
        )
    return Section("heads_alone", "Heads patched alone", gallery(map(drawn, drawings))) if drawings else None


def _misleads(sweep: SweepRecord) -> Section | None:
    jobs = [job for job in sweep.complete if job.run.value(OWN) is not None]
    if not jobs:
        return None
    return Section("misleads", "What the study did, and why it misleads", misleading(points(jobs)) + answers(jobs))


def points(jobs: Sequence[Job]) -> list[Point]:
    """How the study patched, for runs that repeat it."""
    own = [job.run.value(OWN) or 0.0 for job in jobs]
    ours = [job.run.value("strength") for job in jobs]
    levels = ", ".join(f"{word} at {own.count(level)}" for word, level in (("+1", 1), ("0", 0), ("−1", -1)))
    here = f"Over {count(len(own), 'checkpoint')} the study's strength is {levels}"
    pairs = [(theirs, value) for theirs, value in zip(own, ours, strict=True) if value is not None]
    if pairs:
        low, high = (extreme(value for _, value in pairs) for extreme in (min, max))
        apart = sum((theirs > 0.5) != (value > 0.5) for theirs, value in pairs)
        here += (
            f"; real heads patched at the prompt, over {jobs[0].scalar('strength').get('n')} pairs, give strengths "
            f"from {fixed(low, 2)} to {fixed(high, 2)}, and the two disagree on “above 0.5” at {apart} of {len(pairs)}"
        )
    agreeing = [row["agreeing"] == 1 for job in jobs for row in responses(job)]
    trials = f"Repeated trials wrote the same text in {sum(agreeing)} of {len(agreeing)} cells." if agreeing else ""
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
            _null(jobs),
        ),
    ]


def _null(jobs: Sequence[Job]) -> str:
    p = [value for job in jobs if (value := job.scalar("strength_nats").get("p")) is not None]
    if not p:
        return ""
    return (
        f"Among {jobs[-1].scalar('strength_rank').get('n')} splits, even/odd's Δ has p from {p_value(min(p))} to "
        f"{p_value(max(p))} checkpoint by checkpoint, below 0.05 at {sum(v < 0.05 for v in p)} of {len(p)}."
    )


def responses(job: Job) -> list[dict[str, Any]]:
    """What the model wrote when it was patched the study's way: name, heads, text, success, agreeing; [] where not."""
    path = job.run.folder / "original_responses.parquet"
    return pq.read_table(path).to_pylist() if path.exists() else []


def answers(jobs: Sequence[Job]) -> Markup:
    """What each model wrote under each patch, and whether the study called it right; the study's own answers last."""
    reported = figures("even_odd_emergence")["answers"]
    written = {job.label: {row["name"]: row for row in responses(job)} for job in jobs}
    written[f"the study, {reported['model']}"] = {row["name"]: row for row in reported["rows"]}
    names = list(dict.fromkeys(name for rows in written.values() for name in rows))
    rows = [[label, *(_answer(rows.get(name)) for name in names)] for label, rows in written.items() if rows]
    headings = ["run", *(name if name == "plain" else f"{name} heads" for name in names)]
    summary = Markup("<summary>what the models wrote, and the study's verdict on it</summary>\n")
    return Markup("<details>{}{}</details>").format(summary, table(headings, rows))


def _answer(row: Mapping[str, Any] | None) -> Markup:
    if row is None:
        return Markup("–")
    text = Markup('<code>{}</code> <small class="soft">{}</small>')
    return text.format(row["text"], "right" if row["success"] else "not right")


def _final(series: Series) -> Check:
    question = f"Does the final checkpoint show the known result?{f' ({series.title})' if series.title else ''}"
    reported = figures("even_odd_emergence")["timeline"]
    if not series.counted or not series.complete:
        return Check(question, "note", "no checkpoint counts")
    last, job = series.counted[-1], series.complete[-1]
    end = [row for row in series.rows if row["step"] is not None][-1]
    if end is not last:
        return Check(question, "note", f"the last checkpoint, {end['revision']}, does not count: {end['reason']}")
    if not is_of(series.model, reported):
        return Check(question, "note", f"no known result for {series.model}, so the end cannot be checked against one")
    if last["step"] != _FINAL_STEP:
        facts = f"the study's is of step {_FINAL_STEP}; the last that counts here is {last['revision']}"
        return Check(question, "note", facts)
    known, own = float(reported["rows"][-1][3]), job.run.value(OWN)
    ours = f"over pairs, strength is {spelled(job.scalar('strength'), signed=True)}"
    theirs = f"the study reports strength {fixed(known, 0, signed=True)} on one prompt"
    if own is None:
        return Check(question, "note", f"{theirs}; not run under protocol=original; {ours}")
    facts = f"{theirs}; as it judged it, {fixed(own, 0, signed=True)} here; {ours}"
    return Check(question, "ok" if own == known else "fails", facts)


def _trials(jobs: Sequence[Job]) -> list[Check]:
    agreeing = [row["agreeing"] == 1 for job in jobs for row in responses(job)]
    if not agreeing:
        return []
    facts = f"repeated greedy trials wrote the same text in {sum(agreeing)} of {len(agreeing)} cells"
    return [Check("Are the study's trials repeatable?", "ok" if all(agreeing) else "note", facts)]
