"""What was run: the command, the varied keys, code and machine, and the status of every job."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import ABSENT, count, duration, number
from headdyn.report.blocks import Section, Table, bullets, facts, fold, marked
from headdyn.report.sections.quality import machine, pairs
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

_PRE = Markup("<pre>{}</pre>")
_CONSTANT = ("model", "data", "attention", "data_ordering", "position_enc", "mode", "protocol", "experiment", "seed")
_NO_ERROR = {
    "absent": "it left no record: it was never started, or failed before its folder was made",
    "running": "its record says it is still running: it was killed, or another process is at work on it",
}


def unfinished(sweep: SweepRecord) -> Section | None:
    """The jobs that are not complete, with their errors."""
    lines = []
    for job in sweep.failed:
        error = _NO_ERROR.get(job.run.status, job.run.manifest.get("error", ""))
        trace = job.run.manifest.get("traceback", "")
        details = fold("traceback", _PRE.format(trace)) if trace else ""
        lines.append(Markup("<b>{}</b>: {}. {}{}").format(job.run.name, job.run.status, error, details))
    advice = "The same command runs these again and keeps what is complete."
    return Section("unfinished", "Not finished", [bullets(lines), advice], folded=False) if lines else None


def section(sweep: SweepRecord) -> Section:
    """Facts about the sweep, then one row per job."""
    manifests = [job.run.manifest for job in sweep.jobs if "versions" in job.run.manifest]
    constant = {name: {str(job.factors.get(name)) for job in sweep.jobs} for name in _CONSTANT}
    same = [f"{name} {next(iter(levels))}" for name, levels in constant.items() if len(levels) == 1]
    varied = [f"{name}: {', '.join(levels)}" for name, levels in sweep.varied.items() if name != "group"]
    about = facts(
        {
            "varied": "; ".join(varied),
            **{f"group {name}": differs for name, differs in sweep.group_settings.items()},
            "the same everywhere": ", ".join(text for text in same if not text.endswith(" None")),
            "date": _span(manifests),
            "code": _each(manifest["git"] or "not from a checkout" for manifest in manifests),
            "machine": _each(pairs(machine(manifest)) for manifest in manifests),
            "versions": _each(map(_versions, manifests)),
            **{f"{name} left out": f"it {why}" for m in manifests for name, why in m.get("absent", {}).items()},
        }
    )
    sources = [Markup("{} <code>{}</code>").format(s["name"], s.get("command") or "") for s in sweep.sources]
    lead = Markup("<p>Merged from {} folders, seeds pooled where all other settings agree:</p>{}")
    table = Table.of([_row(job, sweep) for job in sweep.jobs], runs=[job.number for job in sweep.jobs])
    blocks = [lead.format(len(sources), bullets(sources)) if sources else None, about, table]
    return Section("jobs", "What was run", blocks, f"{len(sweep.complete)} of {count(len(sweep.jobs), 'run')} complete")


def provenance(sweep: SweepRecord) -> Section:
    """The facts that a reader needs to repeat a run: code, machine, versions, stages, time, files, configuration."""
    folder, manifest = sweep.jobs[0].run.folder, sweep.jobs[0].run.manifest
    checkpoint, described = manifest.get("checkpoint", {}), manifest["machine"]
    dtype = checkpoint.get("dtype")
    precision = f"weights in {dtype}" if dtype else f"training in {described['precision']}"
    if checkpoint.get("quantisation"):
        precision += f", read from a GGUF file that rounds them ({checkpoint['quantisation']})"
    loaded = " ".join(str(checkpoint[key]) for key in ("name", "revision", "commit") if checkpoint.get(key))
    stages = [
        f"{kind} {stage['key']} ({'built' if stage['built'] else 'reused'}, {duration(stage.get('build_seconds'))})"
        for kind, stage in manifest["stages"].items()
    ]
    memory = f"{number(round(manifest.get('peak_memory_bytes', 0) / 2**20))} MiB"
    about = facts(
        {
            "status": manifest["status"],
            "started": _time(manifest["started"]),
            "code": manifest["git"] or "not from a checkout",
            "machine": f"{described['device']}, {precision}, {count(described['threads'], 'thread')}",
            "versions": _versions(manifest),
            "checkpoint": f"{loaded}, SHA-256 of its weights {checkpoint['state_hash']}" if checkpoint else "none",
            "stages": ", ".join(stages) or "none",
            **{f"{name} left out": f"it {why}" for name, why in manifest.get("absent", {}).items()},
            "time": ", ".join(f"{name} {duration(seconds)}" for name, seconds in manifest["seconds"].items()),
            "peak memory": memory + ("" if manifest.get("peak_memory_of") == "run" else " (of the process so far)"),
            "files beside this page": ", ".join(sorted(path.name for path in folder.iterdir())),
        }
    )
    config = json.dumps(manifest["config"], indent=1, ensure_ascii=False)
    return Section("provenance", "Provenance", [about, fold("configuration", _PRE.format(config))])


def _row(job: Job, sweep: SweepRecord) -> dict[str, Any]:
    manifest, page = job.run.manifest, job.run.folder / "report.html"
    memory, stages = manifest.get("peak_memory_bytes"), manifest.get("stages", {})
    link = Markup('<a href="{}">{}</a>').format(os.path.relpath(page, sweep.folder), job.run.name)
    return {
        "run": link if page.exists() else job.run.name,
        "status": job.run.status if job.complete else marked(job.run.status),
        "time": duration(manifest.get("seconds", {}).get("total")),
        "peak memory\nof the process so far": f"{memory / 2**20:.0f} MiB" if memory else ABSENT,
        "stages": ", ".join(f"{kind} {'built' if s['built'] else 'reused'}" for kind, s in stages.items()),
    }


def _span(manifests: Sequence[Mapping[str, Any]]) -> str:
    started = sorted({_time(manifest["started"]) for manifest in manifests})
    if len(started) < 2:
        return "".join(started)
    return f"runs started {started[0].removesuffix(' UTC')} to {started[-1]}"


def _time(text: str) -> str:
    return text.replace("T", " ").replace("+00:00", " UTC")


def _versions(manifest: Mapping[str, Any]) -> str:
    return pairs({"Python": manifest["python"], **manifest["versions"]})


def _each(texts: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(texts))
