"""A sweep's page: what was run, what it says in words, its numbers and pictures, and how far they can be trusted."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headdyn.core.numbers import ABSENT, LEVELS, QUANTITIES, fixed, level, listed, number, p_value, quantity
from headdyn.report import extension
from headdyn.report.cells import Cell, cell, columns_for, of_prompts, summary_cell
from headdyn.report.glossary import chapters
from headdyn.report.head_data import ROLES, patterns, series_course, statistics, telling_heads, training_course
from headdyn.report.page import write_page
from headdyn.report.quality import checks, in_order, machine
from headdyn.report.sections import series as series_verdict
from headdyn.report.sections import series_changes, series_checkpoints, series_curves
from headdyn.report.series.quality import series_checks
from headdyn.report.series.record import Series, read_series
from headdyn.report.series.words import series_statements, share
from headdyn.report.sweep_charts import (
    effect_charts,
    head_maps,
    loss_charts,
    probe_charts,
    recovery_charts,
    shared_label,
)
from headdyn.report.text_topics import text_topics
from headdyn.sweep.effects import effect_name
from headdyn.sweep.record import Job, SweepRecord
from headdyn.sweep.words import statements

MATCHED = ("selectivity", "within_ratio", "entropy_nats", "probe_accuracy_middle")


def write_sweep_page(folder: Path) -> Path:
    """report.html of an ended sweep, from its records alone: one file that opens from disk with no network."""
    sweep = SweepRecord.read(folder)
    jobs = sweep.complete
    kept, columns, series = patterns(jobs), columns_for(jobs), read_series(sweep)
    prompts = of_prompts(jobs)
    settings = _group_settings(sweep, of_prompts=prompts)
    shown = sweep.jobs if series else jobs
    parts = [each.section(sweep) for each in (series_verdict, series_curves, series_changes, series_checkpoints)]
    sections = [*filter(None, parts), *extension.sections(sweep)]
    page = folder / "report.html"
    write_page(
        page,
        "sweep.html",
        title=sweep.name,
        sweep=sweep,
        facts=_facts(sweep, settings),
        status=[_status(job, folder) for job in sweep.jobs],
        statements=[*series_statements(series), *extension.headlines(sweep), *statements(sweep)],
        sections=sections,
        of_series=bool(series),
        of_prompts=prompts,
        remarks=_remarks(sweep, series),
        groups=sweep.groups,
        levels=LEVELS,
        varied=sweep.varied,
        columns=[(quantity(name).label, quantity(name).unit) for name in columns],
        rows=[(job, [summary_cell(job, name) for name in columns] if job.complete else []) for job in shown if columns],
        settings=settings,
        effect_charts=effect_charts(sweep.effects),
        effect_rows=_effect_rows(sweep.effects),
        matched=_matched_rows(sweep),
        matched_columns=[(quantity(name).label, quantity(name).unit) for name in MATCHED],
        loss_charts=loss_charts(sweep),
        training_rows=_training_rows(sweep),
        recovery_charts=recovery_charts(sweep),
        recovery_rows=_recovery_rows(jobs),
        probe_charts=probe_charts(sweep),
        head_maps=head_maps(sweep),
        strips=_strips(sweep, kept),
        left_out=list(dict.fromkeys(part["left_out"] for part in kept.values() if part["left_out"])),
        text_topics=text_topics(job.run.manifest for job in jobs),
        checks=in_order([*checks(sweep), *series_checks(series), *extension.checks(sweep)]),
        chapters=chapters(job.run for job in jobs),
        data=_data(sweep, kept, series),
        patterns=kept,
    )
    return page


def _facts(sweep: SweepRecord, settings: Mapping[str, str]) -> dict[str, str]:
    """What was run, where and with what, in short lines; facts that differ among runs are all given."""
    manifests = [job.run.manifest for job in sweep.jobs if "versions" in job.run.manifest]
    constant = {
        name: {str(job.factors.get(name)) for job in sweep.jobs}
        for name in (
            "model",
            "data",
            "attention",
            "data_ordering",
            "position_enc",
            "mode",
            "protocol",
            "experiment",
            "seed",
        )
    }
    facts = {
        "varied": "; ".join(f"{name}: {', '.join(levels)}" for name, levels in sweep.varied.items() if name != "group"),
        **{f"group {name}": differs for name, differs in settings.items()},
        "the same everywhere": ", ".join(
            f"{name} {next(iter(levels))}"
            for name, levels in constant.items()
            if len(levels) == 1 and levels != {"None"}
        ),
        "date": _span(manifests),
        "code": _all(m["git"] or "not from a checkout" for m in manifests),
        "machine": _all(", ".join(f"{name} {value}" for name, value in machine(m).items()) for m in manifests),
        "versions": _all(
            ", ".join(f"{name} {value}" for name, value in {"Python": m["python"], **m["versions"]}.items() if value)
            for m in manifests
        ),
    }
    return {name: text for name, text in facts.items() if text}


def _span(manifests: Sequence[Mapping[str, Any]]) -> str:
    started = sorted(m["started"] for m in manifests)
    if not started:
        return ""
    first, last = (text.replace("T", " ").removesuffix("+00:00") for text in (started[0], started[-1]))
    return f"{first} UTC" if first == last else f"runs started {first} to {last} UTC"


def _all(texts: Any) -> str:
    return " | ".join(dict.fromkeys(texts))


def _status(job: Job, folder: Path) -> dict[str, Any]:
    manifest = job.run.manifest
    error = manifest.get("error", "")
    if job.run.status == "running":
        error = "its record says it is still running: it was killed, or another process is at work on it"
    if job.run.status == "absent":
        error = "it left no record: it was never started, or failed before its folder was made"
    page = job.run.folder / "report.html"
    return {
        "job": job,
        "link": os.path.relpath(page, folder) if page.exists() else None,
        "seconds": manifest.get("seconds", {}).get("total"),
        "memory": manifest.get("peak_memory_bytes"),
        "built": ", ".join(
            f"{kind} {'built' if stage['built'] else 'reused'}" for kind, stage in manifest.get("stages", {}).items()
        ),
        "error": error,
        "traceback": manifest.get("traceback", ""),
    }


def _remarks(sweep: SweepRecord, series: Sequence[Series]) -> dict[int, tuple[str, str]]:
    """What stands under a run's name in the summary: its checkpoint's place in training, and why it does not count."""
    found = {job.number: ("", "") for job in sweep.jobs}
    for each in series:
        for row in each.rows:
            job = each.jobs.get(row["revision"])
            if job is not None and row["step"] is not None:
                why = "" if row["counts"] else f"{'does not count: ' if job.complete else ''}{row['reason']}"
                found[job.number] = (f"{share(row['training_share'])} of training", why)
    return found


def _group_settings(sweep: SweepRecord, *, of_prompts: bool) -> dict[str, str]:
    """In what groups differ; without a training, what a protocol says of training is left out."""
    told = sweep.group_settings
    if not of_prompts:
        return told
    return {
        group: ", ".join(word for word in text.split(", ") if not word.startswith("protocol."))
        for group, text in told.items()
    }


def _training_rows(sweep: SweepRecord) -> list[dict[str, Any]]:
    """For each training: where it ended, in loss and in its passes over the corpus, and how fast it went."""
    rows = []
    for siblings in sweep.siblings:
        job, scalars = siblings[0], siblings[0].run.scalars
        if "train_passes" not in scalars:
            continue
        series = job.metrics.get("val_loss_nats", [])
        speed = scalars.get("tokens_per_second")
        rows.append(
            {
                "label": shared_label(siblings),
                "runs": " ".join(str(j.number) for j in siblings),
                "arms": listed(list(dict.fromkeys(level(j.factors.get("position_enc")) for j in siblings))),
                "loss": f"{series[-1][1]:.3f}" if series else "",
                "steps": number(series[-1][0]) if series else "",
                "passes": number(scalars["train_passes"]),
                "ended": f"{100 * scalars['ended_in_pass']:.0f} %" if scalars.get("ended_in_pass") is not None else "",
                "topic": scalars.get("ended_in_topic") or ABSENT,
                "speed": "" if speed is None else f"{speed / 1000:.1f} K",
            }
        )
    return rows


def _effect_rows(effects: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Effects as a table: a row for each group and effect, a column for each outcome."""
    outcomes = [name for name in QUANTITIES if any(row["outcome"] == name for row in effects)]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in effects:
        entry = rows.setdefault((row["group"], effect_name(row)), {})
        found = cell(row, row["outcome"], signed=True)
        q = "" if row.get("q") is None else f"q {'' if row['q'] < 0.001 else '= '}{p_value(row['q'])}"
        entry[row["outcome"]] = Cell(found.value, found.interval, "", q, found.reason)
        entry["n"] = row["n"]
    columns = [(name, quantity(name).label, quantity(name).of_differences) for name in outcomes]
    return {"columns": columns, "rows": [(group, name, entry) for (group, name), entry in rows.items()]}


def _matched_rows(sweep: SweepRecord) -> list[dict[str, Any]]:
    """One entry a pair of trainings: where each was taken, and both sides of every outcome."""
    by_name = {job.run.name: job for job in sweep.jobs}
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in sweep.pairs:
        topic, shuffled = pair["runs"]["topic"], pair["runs"]["shuffled"]
        entry = entries.setdefault(
            (topic, shuffled),
            {
                "label": f"{level(pair['attention'])} {level(pair['position_enc'])} s{pair['seed']}",
                "group": pair.get("group", ""),
                "steps": pair["steps"],
                "losses": pair["losses_nats"],
                "runs": [by_name[name].number for name in (topic, shuffled) if name in by_name],
                "cells": {},
            },
        )
        difference = {"value": pair["difference"]}
        entry["cells"][quantity(pair["outcome"]).label] = (
            *(cell(pair[ordering], pair["outcome"]) for ordering in ("shuffled", "topic")),
            cell(difference, pair["outcome"], signed=True),
        )
    return list(entries.values())


def _recovery_rows(jobs: Sequence[Job]) -> list[tuple[Job, list[str]]]:
    rows = []
    for job in jobs:
        if job.recalibrated:
            facts = job.run.scalars["recalibration"]
            losses = {int(step): loss for step, loss in facts["val_loss_nats"].items()}
            last = losses[facts["steps"]]
            numbers = [facts["parent_loss_nats"], losses[0], last]
            texts = [f"{loss:.3f}" for loss in numbers] + [fixed(last - facts["parent_loss_nats"], 3, signed=True)]
            rows.append((job, [*texts, str(facts["steps"]), "yes" if facts["recovered"] else "no"]))
    return rows


def _strips(sweep: SweepRecord, kept: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Telling heads: for each training and role, the same head in every arm of that training."""
    strips = []
    for siblings in map(_few, sweep.siblings):
        of_checkpoints = len({job.factors.get("revision") for job in siblings}) > 1
        for role, (layer, head) in telling_heads(siblings[-1:] if of_checkpoints else siblings).items():
            panels = [
                {"job": job, "facts": _head_facts(job, layer, head)}
                for job in siblings
                if f"{layer}.{head}" in kept.get(job.number, {}).get("heads", {})
            ]
            if panels:
                strips.append({"role": role, "layer": layer, "head": head, "panels": panels})
    order = list(dict.fromkeys(strip["role"] for strip in strips))
    return [{"role": role, "strips": [strip for strip in strips if strip["role"] == role]} for role in order]


def _few(siblings: Sequence[Job]) -> Sequence[Job]:
    """At most six of a training's checkpoints, evenly among them with both ends; arms are all shown."""
    if len(siblings) <= 6 or len({job.factors.get("revision") for job in siblings}) == 1:
        return siblings
    return [siblings[round(i * (len(siblings) - 1) / 5)] for i in range(6)]


def _head_facts(job: Job, layer: int, head: int) -> str:
    """The head's figures in a caption, as many as the run has."""
    rows = {row["metric"]: row for row in job.heads.where(layer=layer, head=head).rows()}
    texts = []
    for metric in ROLES.values():
        row = rows.get(metric)
        if row is not None and row["value"] is not None:
            text = f"{metric.replace('_', ' ')} {fixed(row['value'], 3)}"
            texts.append(text + (f" (q {p_value(row['q'])})" if row["q"] is not None else ""))
    return ", ".join(texts)


def _data(sweep: SweepRecord, kept: Mapping[int, Mapping[str, Any]], series: Sequence[Series]) -> dict[str, Any]:
    """What the page's script needs beside the patterns, by job number.

    Checkpoints of a series share one course, and so do the arms of a training.
    """
    siblings, course_of, shared = {}, {}, {}
    for each in series:
        steps = {row["step"]: each.jobs[row["revision"]] for row in each.counted if row["revision"] in each.jobs}
        shared[f"series {each.number}"] = series_course(steps)
        for job in each.jobs.values():
            course_of[job.number], siblings[job.number] = f"series {each.number}", [job.number]
    for place, whole in enumerate(sweep.siblings):
        arms = [job for job in whole if job.number not in course_of]
        shared[f"training {place}"] = training_course(arms)
        for job in arms:
            course_of[job.number], siblings[job.number] = f"training {place}", [arm.number for arm in arms]
    meanings: dict[str, str] = {}
    units: dict[str, str] = {}
    for job in sweep.complete:
        for part in job.run.manifest.get("glossary", {}).values():
            meanings |= {name: metric["meaning"] for name, metric in part["metrics"].items()}
            units |= {name: metric["unit"] for name, metric in part["metrics"].items()}
    return {
        "varied": list(sweep.varied),
        "meanings": meanings,
        "units": units,
        "courses": {name: course for name, course in shared.items() if course},
        "runs": {
            job.number: {
                "label": job.label,
                "levels": {name: str(job.group if name == "group" else job.factors.get(name)) for name in sweep.varied},
                "siblings": siblings.get(job.number, []),
                "heads": statistics(job) if job.complete else {},
                "course": course_of.get(job.number, ""),
                "recalibrated": job.recalibrated,
                "patterns": job.number in kept,
            }
            for job in sweep.jobs
        },
    }
