"""H1 to H5, the study's figures beside ours, and why the study's patching of heads misleads."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq
from markupsafe import Markup

from headdyn.core.figures import Curve, curves
from headdyn.core.numbers import capital, count, fixed, number, p_value, spelled
from headdyn.report.blocks import Cell, Heading, Section, Table, fold
from headdyn.report.sections.quality import Check
from headdyn.report.sections.series import curve
from headdyn.studies.pages import facts, first_cell, is_of, jobs_by_step, misleading
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.series_record import Series, read_series
from headdyn.sweep.series_words import interval, share, statement
from headdyn.sweep.words import Statement

OWN = "original_strength"  # the strength by the study's own rule, on one prompt
_FINAL_STEP = 143_000


def sections(sweep: SweepRecord) -> list[Section]:
    """The study's hypotheses judged by these runs, its figures beside ours, and why it misleads."""
    series = read_series(sweep)
    parts = [_hypotheses(series), _beside(series), _heads_alone(series), _misleads(sweep)]
    return [section for section in parts if section is not None]


def headlines(sweep: SweepRecord) -> list[Statement]:
    """The verdicts on the study's hypotheses, series by series."""
    series = read_series(sweep)
    question = "What becomes of the study's hypotheses H1 to H5?"
    return [statement(each, series, question, sentences) for each in series if (sentences := hypotheses(each))]


def checks(sweep: SweepRecord) -> list[Check]:
    """The last checkpoint against the study's figure for its own model, and whether repeated trials agree."""
    return [*(_final(each) for each in read_series(sweep) if not each.truth), *_trials(sweep.complete)]


def hypotheses(series: Series) -> list[str]:
    """The verdicts on H1 to H5 by every measure in one sentence, then the evidence."""
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
    return [f"{capital(lead)}.", *details]


def _verdicts(judged: Mapping[str, Mapping[str, Any]]) -> str:
    return ", ".join(f"{name} {one['verdict']}" for name, one in judged.items())


def _hypotheses(series: Sequence[Series]) -> Section | None:
    """A table for each series: every hypothesis with the study's claim, and the verdict by each measure."""
    reported, blocks = facts("even_odd_emergence")["timeline"], []
    for each in series:
        judged = {name: j["hypotheses"] for name, j in each.measures.items() if "hypotheses" in j}
        if not judged:
            continue
        claims = {"the study's claim": reported["hypotheses"]} if each.split_measures else {}
        rows = []
        for name, one in next(iter(judged.values())).items():
            claimed = [f"{claim[name]['claim']}\n{claim[name]['evidence']}" for claim in claims.values()]
            rows.append([f"{name} {one['statement']}", *claimed, *(_verdict(by[name]) for by in judged.values())])
        headings = ["hypothesis", *claims, *(each.metric(name).label for name in judged)]
        blocks += [Heading(each.title), Table(columns=headings, rows=rows)]
    about = (
        f"The study's claims are of {reported['model']}, on one prompt. Undecided: the checkpoints lie too far apart, "
        "or nothing emerged that could have a pace."
    )
    if not blocks:
        return None
    lead = next((sentences[0] for each in series if (sentences := hypotheses(each))), "")
    return Section("hypotheses", "The hypotheses H1 to H5", [about, *blocks], lead)


def _verdict(judged: Mapping[str, Any]) -> str:
    odds = f"\nprobability {share(judged['probability'])}" if "probability" in judged else ""
    return f"{judged['verdict']}{odds}\n{judged['evidence']}"


def _beside(series: Sequence[Series]) -> Section | None:
    """For each model a table, one row per step: the study's figures, ours as the study did it, and ours over pairs."""
    reported: Mapping[str, Any] = facts("even_odd_emergence")["timeline"]
    blocks: list[Any] = []
    measured = [each for each in series if each.points("strength") is not None]
    for model in dict.fromkeys(each.model for each in measured):
        same = [each for each in measured if each.model == model]
        if not is_of(model, reported):
            known = any(each.truth for each in same)
            known_text = " What is known of it by construction is checked under quality control." if known else ""
            blocks.append(f"The study's figures are of {reported['model']} alone, not of {model}.{known_text}")
            continue
        theirs, ours = {row[0]: row[1:] for row in reported["rows"]}, jobs_by_step(same)
        rows = []
        for step in sorted(theirs.keys() | ours.keys()):
            even, odd, strength = theirs.get(step, (None, None, None))
            cells = [Cell(f"{_right(even)}, {_right(odd)}"), Cell(fixed(strength, 0, signed=True))]
            rows.append([Cell(f"step {number(step)}"), *cells, *_our_cells(ours.get(step, []))])
        headings = ["", "the study\neven, odd: right", "the study\nstrength"]
        headings += [f"ours, as the study did it\n{name}" for name in ("even, odd: right", "strength, one prompt")]
        headings += ["ours\nstrength over pairs", "ours\nstrength of Δ (nats)"]
        more = [Curve(label="the study's figure", x=list(theirs), y=[row[2] for row in theirs.values()])]
        drawings = [figure for each in same if (figure := curve(each, ["strength"], more=[*_own(each), *more]))]
        source = f"Source: {reported['source']}. {reported['note']}."
        blocks += [source, Table(columns=headings, rows=rows), drawings]
    return Section("beside", "The study's figures beside ours", blocks) if blocks else None


def _own(series: Series) -> list[Curve]:
    points, label = series.points(OWN), "as the study judged it (one prompt)"
    return [] if points is None else [Curve(label=label, x=points.steps, y=points.value)]


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
    """Δ over training with each head of a layer patched alone, for series that patched single heads of one layer."""
    drawings = []
    for each in series:
        courses: dict[tuple[int, int], dict[int, float]] = {}  # by layer and head, the values by step
        for step, jobs in jobs_by_step([each]).items():
            for row in jobs[0].heads.where(metric="head_effect_nats").rows():
                if row["head"] is not None and row["value"] is not None:
                    courses.setdefault((row["layer"], row["head"]), {})[step] = row["value"]
        layers, steps = {layer for layer, _ in courses}, {step for course in courses.values() for step in course}
        if len(layers) != 1 or len(steps) < 2:
            continue
        lines = [
            Curve(label=f"head {head}", x=list(course), y=list(course.values()))
            for (_, head), course in sorted(courses.items())
        ]
        title = f"Heads of layer {layers.pop()} patched alone{f': {each.title}' if each.title else ''}"
        caption = "Change of Δ. Many numbers without a correction: one head that stands out is no finding."
        drawings.append(
            curves(lines, xlabel="training step", ylabel="Δ (nats)", title=title, log_x=True, caption=caption)
        )
    return Section("heads_alone", "Heads patched alone", [drawings]) if drawings else None


def _misleads(sweep: SweepRecord) -> Section | None:
    jobs = [job for job in sweep.complete if job.run.value(OWN) is not None]
    if not jobs:
        return None
    same, cells = trials(jobs)
    repeated = f"Repeated trials wrote the same text in {same} of {cells} cells." if cells else ""
    points = misleading("even_odd_emergence", strengths(jobs), "", "", repeated, _null(jobs))
    return Section("misleads", "What the study did, and why it misleads", [points, answers(jobs)])


def strengths(jobs: Sequence[Job]) -> str:
    """A sentence on the strengths by the study's rule, beside those of real heads."""
    own, ours = [job.run.value(OWN) or 0.0 for job in jobs], [job.run.value("strength") for job in jobs]
    levels = ", ".join(f"{word} at {own.count(level)}" for word, level in (("+1", 1), ("0", 0), ("−1", -1)))
    text = f"Over {count(len(own), 'checkpoint')} the study's strength is {levels}"
    pairs = [(theirs, value) for theirs, value in zip(own, ours, strict=True) if value is not None]
    if not pairs:
        return f"{text}."
    low, high = (extreme(value for _, value in pairs) for extreme in (min, max))
    apart = sum((theirs > 0.5) != (value > 0.5) for theirs, value in pairs)
    return (
        f"{text}; real heads patched at the prompt, over {jobs[0].scalar('strength').get('n')} pairs, give strengths "
        f"from {fixed(low, 2)} to {fixed(high, 2)}, and the two disagree on “above 0.5” at {apart} of {len(pairs)}."
    )


def trials(jobs: Sequence[Job]) -> tuple[int, int]:
    """The number of cells in which repeated trials wrote the same text, and the number of all cells."""
    agreeing = [row["agreeing"] == 1 for job in jobs for row in responses(job)]
    return sum(agreeing), len(agreeing)


def _null(jobs: Sequence[Job]) -> str:
    p = [value for job in jobs if (value := job.scalar("strength_nats").get("p")) is not None]
    if not p:
        return ""
    return (
        f"Among {jobs[-1].scalar('strength_rank').get('n')} splits, even/odd's Δ has p from {p_value(min(p))} to "
        f"{p_value(max(p))} checkpoint by checkpoint, below 0.05 at {sum(v < 0.05 for v in p)} of {len(p)}."
    )


def responses(job: Job) -> list[dict[str, Any]]:
    """The rows of `original_responses` (name, heads, text, success, agreeing); empty if the procedure was not run."""
    path = job.run.folder / "original_responses.parquet"
    return pq.read_table(path).to_pylist() if path.exists() else []


def answers(jobs: Sequence[Job]) -> Markup:
    """Each model's answer under each patch and the study's verdict on it; the study's own answers in the last row."""
    reported = facts("even_odd_emergence")["answers"]
    written = {job.label: {row["name"]: row for row in responses(job)} for job in jobs}
    written[f"the study, {reported['model']}"] = {row["name"]: row for row in reported["rows"]}
    names = list(dict.fromkeys(name for rows in written.values() for name in rows))
    rows = [[label, *(_answer(rows.get(name)) for name in names)] for label, rows in written.items() if rows]
    headings = ["run", *(name if name == "plain" else f"{name} heads" for name in names)]
    return fold("what the models wrote, and the study's verdict on it", Table(columns=headings, rows=rows))


def _answer(row: Mapping[str, Any] | None) -> Markup:
    if row is None:
        return Markup("–")
    text = Markup('<code>{}</code> <small class="soft">{}</small>')
    return text.format(row["text"], "right" if row["success"] else "not right")


def _final(series: Series) -> Check:
    question = f"Does the final checkpoint show the known result?{f' ({series.title})' if series.title else ''}"
    reported = facts("even_odd_emergence")["timeline"]
    if not series.counted or not series.complete:
        return Check(question, "note", "no checkpoint counts")
    last, job = series.counted[-1], series.complete[-1]
    end = [row for row in series.rows if row["step"] is not None][-1]
    if end is not last:
        return Check(question, "note", f"the last checkpoint, {end['revision']}, does not count: {end['reason']}")
    if not is_of(series.model, reported):
        return Check(question, "note", f"no known result for {series.model}, so the end cannot be checked against one")
    if last["step"] != _FINAL_STEP:
        text = f"the study's figure is of step {_FINAL_STEP}; the last checkpoint here is {last['revision']}"
        return Check(question, "note", text)
    known, own = float(reported["rows"][-1][3]), job.run.value(OWN)
    ours = f"over pairs, strength is {spelled(job.scalar('strength'), signed=True)}"
    theirs = f"the study reports strength {fixed(known, 0, signed=True)} on one prompt"
    if own is None:
        return Check(question, "note", f"{theirs}; not run under protocol=original; {ours}")
    text = f"{theirs}; as it judged it, {fixed(own, 0, signed=True)} here; {ours}"
    return Check(question, "ok" if own == known else "fails", text)


def _trials(jobs: Sequence[Job]) -> list[Check]:
    same, cells = trials(jobs)
    text = f"repeated greedy trials wrote the same text in {same} of {cells} cells"
    return [Check("Are the study's trials repeatable?", "ok" if same == cells else "note", text)] if cells else []
