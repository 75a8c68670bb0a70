"""One run's page: its numbers with nulls and intervals, its training, its figures, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headdyn.core.figures import Curve, Figure, curves
from headdyn.core.numbers import count, duration, level, number, units
from headdyn.core.run_folder import METRICS, read_metrics
from headdyn.report import extension
from headdyn.report.glossary import chapters
from headdyn.report.page import picture, write_page
from headdyn.report.prompt_run import in_words, null_pictures, tables
from headdyn.report.quality import run_checks
from headdyn.report.text_topics import text_topics
from headdyn.sweep.record import SWEEP, SweepRecord, single_job

_REFERENCES = ("random", "unigram", "mixture", "bigram", "trigram", "floor")
_STANDING_OUT = 12  # heads in the table of those with the smallest q


def write_run_page(folder: Path) -> Path:
    """report.html of a finished run, from its records alone."""
    job = single_job(folder)
    manifest, scalars = job.run.manifest, job.run.scalars
    tested = [row for row in job.heads.rows() if row["q"] is not None and row["head"] is not None]
    for name, figure in training_figures(read_metrics(folder / METRICS), scalars).items():
        figure.save(folder / "figures" / f"training_{name}.json")
    page = folder / "report.html"
    write_page(
        page,
        "run.html",
        title=manifest["name"],
        factors=[(name, level(value)) for name, value in manifest["factors"].items()],
        sweep="../report.html" if (folder.parent / SWEEP).exists() else None,
        groups=metric_groups(manifest, scalars),
        words=in_words(job),
        nulls=null_pictures(job),
        tables=tables(job),
        sections=extension.sections(SweepRecord.of(job)),
        figures=figures(folder, list(manifest.get("glossary", {}))),
        heads=sorted(tested, key=lambda row: (row["q"], -abs(row["value"])))[:_STANDING_OUT],
        heads_tested=len(tested),
        significant=sum(row["q"] < 0.05 for row in tested),
        checks=run_checks(job),
        chapters=chapters([job.run]),
        text_topics=text_topics([job.run.manifest]),
        provenance=provenance(manifest),
        files=sorted(path.name for path in folder.iterdir()),
        config=json.dumps(manifest["config"], indent=1, ensure_ascii=False),
    )
    return page


def metric_groups(manifest: Mapping[str, Any], scalars: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The run's scalars under the analysis that measured them, the pipeline's own first; records of steps left out.

    Metrics of one analysis that are absent for one reason share a row, the last of their analysis.
    """
    owner = {metric: name for name, part in manifest.get("glossary", {}).items() for metric in part["metrics"]}
    meanings = {metric: m for part in manifest.get("glossary", {}).values() for metric, m in part["metrics"].items()}
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, scalar in scalars.items():
        entry = dict(scalar) if isinstance(scalar, Mapping) else {"value": scalar}
        if not {"value", "reason"} & set(entry) or entry.get("value", "") is None:
            continue
        about = meanings.get(name, {})
        row = {"name": name, "scalar": entry, "units": units(entry), "meaning": about.get("meaning", "")}
        groups.setdefault(owner.get(name, "corpus and training"), []).append(row)
    return [(group, _absent_together(rows)) for group, rows in groups.items()]


def _absent_together(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose value is absent for the same reason as one row behind the others, which names them all."""
    by_reason: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["scalar"].get("value") is None:
            by_reason.setdefault(row["scalar"]["reason"], []).append(row)
    shared = {reason: absent for reason, absent in by_reason.items() if len(absent) > 1}
    kept = [row for row in rows if row["scalar"].get("reason") not in shared]
    for reason, absent in shared.items():
        names = ", ".join(row["name"] for row in absent)
        kept.append({"name": f"{len(absent)} metrics", "scalar": {"reason": reason}, "units": "", "meaning": names})
    return kept


def figures(folder: Path, analyses: Sequence[str]) -> list[tuple[str, list[Any]]]:
    """The figures by section: training, then the analyses in the order they ran, then any other."""
    found: dict[str, list[Any]] = {section: [] for section in ("training", *analyses)}
    for path in sorted(path for path in (folder / "figures").glob("*") if path.suffix in (".json", ".png")):
        section = next((name for name in found if path.stem.startswith(f"{name}_")), path.stem.partition("_")[0])
        title = path.stem.removeprefix(f"{section}_").replace("_", " ")
        found.setdefault(section, []).append(picture(path, f"{section}: {title}"))
    return [(section, images) for section, images in found.items() if images]


def training_figures(
    metrics: Mapping[str, Sequence[tuple[int, float]]], scalars: Mapping[str, Any]
) -> dict[str, Figure]:
    """Loss against steps with the reference lines, and the recovery after a positional change where there was one."""
    references = {name: scalars[f"{name}_nats"] for name in _REFERENCES if f"{name}_nats" in scalars}
    drawn = {}
    if "val_loss_nats" in metrics:
        lines = [
            Curve(label=label, x=[s for s, _ in metrics[name]], y=[v for _, v in metrics[name]])
            for name, label in (("train_loss_nats", "training batches"), ("val_loss_nats", "held out"))
            if name in metrics
        ]
        drawn["loss"] = curves(
            lines, xlabel="training step", ylabel="loss (nats)", title="Training loss", references=references
        )
    if "recalibration" in scalars:
        losses = {int(step): loss for step, loss in scalars["recalibration"]["val_loss_nats"].items()}
        parent = scalars["recalibration"]["parent_loss_nats"]
        drawn["recovery"] = curves(
            [Curve(label="held out", x=sorted(losses), y=[losses[step] for step in sorted(losses)])],
            xlabel="recalibration step",
            ylabel="loss (nats)",
            title="Recovery after the positional change",
            references={"before the change": parent, **references},
            log_x=True,
        )
    return drawn


def provenance(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What a reader needs to repeat the run, as short strings."""
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
