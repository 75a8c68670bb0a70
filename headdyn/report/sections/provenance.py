"""What a reader needs to repeat a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from headdyn.core.numbers import count, duration, number
from headdyn.report.markup import facts, fold
from headdyn.report.section import Section
from headdyn.sweep.record import SweepRecord


def section(sweep: SweepRecord) -> Section:
    """Code, machine, versions, stages and time of a run; its files and its configuration."""
    folder, manifest = sweep.jobs[0].run.folder, sweep.jobs[0].run.manifest
    files = ", ".join(sorted(path.name for path in folder.iterdir()))
    config = json.dumps(manifest["config"], indent=1, ensure_ascii=False)
    html = facts({**provenance(manifest), "files beside this page": files})
    return Section("provenance", "Provenance", html + fold("configuration", Markup("<pre>{}</pre>").format(config)))


def provenance(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The facts as short strings."""
    versions = {"Python": manifest["python"], **manifest["versions"]}
    machine, checkpoint = manifest["machine"], manifest.get("checkpoint", {})
    trained = "dtype" not in checkpoint
    precision = f"training in {machine['precision']}" if trained else f"weights in {checkpoint['dtype']}"
    loaded = " ".join(str(checkpoint[key]) for key in ("name", "revision", "commit") if checkpoint.get(key))
    stages = [
        f"{kind} {stage['key']} ({'built' if stage['built'] else 'reused'}, {duration(stage.get('build_seconds'))})"
        for kind, stage in manifest["stages"].items()
    ]
    return {
        "status": manifest["status"],
        "started": manifest["started"].replace("T", " ").replace("+00:00", " UTC"),
        "code": manifest["git"] or "not from a checkout",
        "machine": f"{machine['device']}, {precision}, {count(machine['threads'], 'thread')}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "checkpoint": ", SHA-256 of its weights ".join([loaded, checkpoint["state_hash"]]) if checkpoint else "none",
        "stages": ", ".join(stages) or "none",
        "time": ", ".join(f"{name} {duration(seconds)}" for name, seconds in manifest["seconds"].items()),
        "peak memory": f"{number(round(manifest.get('peak_memory_bytes', 0) / 2**20))} MiB"
        + ("" if manifest.get("peak_memory_of") == "run" else " (of the process so far)"),
    }
