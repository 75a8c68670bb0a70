"""What was run: the command, what varied, where and with what; every job and what became of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import ABSENT, count, duration
from headdyn.report.cells import of_prompts
from headdyn.report.markup import facts, fold, soft, table
from headdyn.report.quality import machine
from headdyn.report.section import Section
from headdyn.sweep.record import Job, SweepRecord

_CONSTANT = ("model", "data", "attention", "data_ordering", "position_enc", "mode", "protocol", "experiment", "seed")
_LEFT_NOTHING = "it left no record: it was never started, or failed before its folder was made"
_STILL_RUNNING = "its record says it is still running: it was killed, or another process is at work on it"


def unfinished(sweep: SweepRecord) -> Section | None:
    """The jobs that are not complete, with their errors, for all to see."""
    if not sweep.failed:
        return None
    lines = []
    for job in sweep.failed:
        trace = job.run.manifest.get("traceback", "")
        details = fold("traceback", Markup("<pre>{}</pre>").format(trace)) if trace else ""
        lines.append(Markup("<li><b>{}</b>: {}. {}{}</li>").format(job.run.name, job.run.status, _error(job), details))
    html = Markup("<ul>{}</ul>").format(Markup("\n").join(lines))
    html += soft("The same command runs these again and keeps what is complete.")
    return Section("unfinished", "Not finished", html, folded=False)


def section(sweep: SweepRecord) -> Section:
    """Facts about the sweep, then a row a job."""
    manifests = [job.run.manifest for job in sweep.jobs if "versions" in job.run.manifest]
    constant = {name: {str(job.factors.get(name)) for job in sweep.jobs} for name in _CONSTANT}
    same = [f"{name} {next(iter(levels))}" for name, levels in constant.items() if len(levels) == 1]
    varied = [f"{name}: {', '.join(levels)}" for name, levels in sweep.varied.items() if name != "group"]
    html = facts(
        {
            "varied": "; ".join(varied),
            **{f"group {name}": differs for name, differs in group_settings(sweep).items()},
            "the same everywhere": ", ".join(text for text in same if not text.endswith(" None")),
            "date": _span(manifests),
            "code": _each(manifest["git"] or "not from a checkout" for manifest in manifests),
            "machine": _each(_pairs(machine(manifest)) for manifest in manifests),
            "versions": _each(_pairs({"Python": m["python"], **m["versions"]}) for m in manifests),
        }
    )
    if sweep.sources:
        merged = [
            Markup("<li>{} <code>{}</code></li>").format(s["name"], s.get("command") or "") for s in sweep.sources
        ]
        lead = f"Merged from {len(sweep.sources)} folders, seeds pooled where all other settings agree:"
        html = Markup("<p>{}</p><ul>{}</ul>").format(lead, Markup("\n").join(merged)) + html
    columns = ["run", "status", "time", "peak memory\nof the process so far", "stages"]
    html += table(columns, [_row(job, sweep) for job in sweep.jobs], numbers=[job.number for job in sweep.jobs])
    return Section("jobs", "What was run", html, f"{len(sweep.complete)} of {count(len(sweep.jobs), 'run')} complete")


def group_settings(sweep: SweepRecord) -> dict[str, str]:
    """In what groups of runs differ; without a training, what a protocol says of training is left out."""
    settings = sweep.group_settings
    if not of_prompts(sweep.complete):
        return settings
    words = {
        group: [word for word in text.split(", ") if not word.startswith("protocol.")]
        for group, text in settings.items()
    }
    return {group: ", ".join(parts) for group, parts in words.items()}


def _row(job: Job, sweep: SweepRecord) -> Sequence[Any]:
    manifest, page = job.run.manifest, job.run.folder / "report.html"
    memory = manifest.get("peak_memory_bytes")
    link = Markup('<a href="{}">{}</a>').format(os.path.relpath(page, sweep.folder), job.run.name)
    stages = manifest.get("stages", {}).items()
    return [
        link if page.exists() else job.run.name,
        job.run.status if job.complete else Markup('<span class="failed">{}</span>').format(job.run.status),
        duration(manifest.get("seconds", {}).get("total")),
        f"{memory / 2**20:.0f} MiB" if memory else ABSENT,
        ", ".join(f"{kind} {'built' if stage['built'] else 'reused'}" for kind, stage in stages),
    ]


def _error(job: Job) -> str:
    known = {"running": _STILL_RUNNING, "absent": _LEFT_NOTHING}
    return known.get(job.run.status, job.run.manifest.get("error", ""))


def _span(manifests: Sequence[Mapping[str, Any]]) -> str:
    started = sorted(manifest["started"] for manifest in manifests)
    if not started:
        return ""
    first, last = (text.replace("T", " ").removesuffix("+00:00") for text in (started[0], started[-1]))
    return f"{first} UTC" if first == last else f"runs started {first} to {last} UTC"


def _pairs(entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in entries.items() if value)


def _each(texts: Iterable[str]) -> str:
    """The different texts, each once."""
    return " | ".join(dict.fromkeys(texts))
