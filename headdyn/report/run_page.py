"""One run's page: its numbers with nulls and intervals, its training, its figures, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from headdyn.core.figures import Curve, curves, save_png
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import HEADS, METRICS, SUMMARY, read_manifest, read_metrics
from headdyn.report.page import duration, picture, write_page

_REFERENCES = ("random", "mixture", "floor", "unigram", "bigram", "trigram")


def write_run_page(folder: Path) -> Path:
    """report.html of a finished run, from its records alone."""
    manifest = read_manifest(folder)
    scalars = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    rows = HeadTable.read(folder / HEADS).rows() if (folder / HEADS).exists() else []
    tested = [row for row in rows if row["q"] is not None and row["head"] is not None]
    figures: dict[str, list[Any]] = {}
    for path in sorted((folder / "figures").glob("*.png")):
        section, _, title = path.stem.partition("_")
        if section != "training":
            figures.setdefault(section.replace("-", " "), []).append(picture(path, title))
    training = []
    for name, figure in training_figures(read_metrics(folder / METRICS), scalars).items():
        save_png(figure, folder / "figures" / f"training_{name}.png")
        training.append(picture(folder / "figures" / f"training_{name}.png", name))
    page = folder / "report.html"
    write_page(
        page,
        "run.html",
        title=manifest["name"],
        factors=manifest["factors"],
        scalars={n: s if isinstance(s, Mapping) else {"value": s} for n, s in scalars.items() if _is_number(s)},
        training=training,
        figures=figures,
        heads=sorted(tested, key=lambda row: row["q"])[:12],
        heads_tested=len(tested),
        provenance=provenance(manifest),
        config=json.dumps(manifest["config"], indent=1),
    )
    return page


def training_figures(
    metrics: Mapping[str, Sequence[tuple[int, float]]], scalars: Mapping[str, Any]
) -> dict[str, Figure]:
    """Loss against steps with the reference lines, and the recovery after a positional change where there was one."""
    references = {name: scalars[f"{name}_nats"] for name in _REFERENCES if f"{name}_nats" in scalars}
    figures = {}
    if "val_loss_nats" in metrics:
        lines = [
            Curve(label=label, x=[s for s, _ in metrics[name]], y=[v for _, v in metrics[name]])
            for name, label in (("train_loss_nats", "training batches"), ("val_loss_nats", "held out"))
            if name in metrics
        ]
        figures["loss"] = curves(
            lines, xlabel="training step", ylabel="loss (nats)", title="Training loss", references=references
        )
    if "recalibration" in scalars:
        losses = {int(step): loss for step, loss in scalars["recalibration"]["val_loss_nats"].items()}
        parent = scalars["recalibration"]["parent_loss_nats"]
        figures["recovery"] = curves(
            [Curve(label="held out", x=sorted(losses), y=[losses[step] for step in sorted(losses)])],
            xlabel="recalibration step",
            ylabel="loss (nats)",
            title="Recovery after the positional change",
            references={"before the change": parent, **references},
            log_x=True,
        )
    return figures


def provenance(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What a reader needs to repeat the run, as short strings."""
    versions = " · ".join(f"{name} {version}" for name, version in manifest["versions"].items() if version)
    seconds = " · ".join(f"{name} {duration(value)}" for name, value in manifest["seconds"].items())
    stages = " · ".join(
        f"{kind} {stage['key']} ({'built' if stage['built'] else 'reused'})" for kind, stage in manifest["stages"].items()
    )
    return {
        "status": manifest["status"],
        "started": manifest["started"],
        "git": manifest["git"] or "not from a checkout",
        "machine": " · ".join(f"{name} {value}" for name, value in manifest["machine"].items()),
        "versions": f"Python {manifest['python']} · {versions}",
        "stages": stages,
        "time": seconds,
        "peak memory": f"{manifest.get('peak_memory_bytes', 0) / 2**20:.0f} MiB",
    }


def _is_number(scalar: Any) -> bool:
    return isinstance(scalar, Mapping | int | float) and not isinstance(scalar, bool)
