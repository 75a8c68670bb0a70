"""What this machine can do: `python -m headdyn.doctor`. Nothing is changed; exit status 1 if a run could not start."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Finding:
    """One line of the answer. `ok=None` is neither good nor bad: a fact, or something that is merely absent."""

    topic: str
    ok: bool | None
    fact: str


def examine() -> list[Finding]:
    """Everything the doctor looks at, one topic after the other."""
    checks: tuple[Callable[[], list[Finding]], ...] = (_device, _packages, _folders, _tracking, _hub, _extras)
    return [finding for check in checks for finding in check()]


def main() -> int:
    """Print the table; 1 where something a run needs is missing."""
    argparse.ArgumentParser(prog="python -m headdyn.doctor", description=__doc__).parse_args()
    findings = examine()
    table = Table(box=box.SIMPLE_HEAD, title="headdyn on this machine", title_justify="left")
    for column in ("", "topic", "fact"):
        table.add_column(column, overflow="fold")
    marks = {True: "[green]yes[/green]", False: "[red]NO[/red]", None: "–"}
    for finding in findings:
        table.add_row(marks[finding.ok], finding.topic, finding.fact)
    Console().print(table)
    return int(any(finding.ok is False for finding in findings))


def _device() -> list[Finding]:
    import torch

    from headdyn.core import machine

    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    here = machine.resolve("auto", "auto", 0)
    found = [
        Finding("device", None, f"{here.device}, {here.threads} CPU threads"),
        Finding("precision", None, f"{here.precision} (bf16 where the hardware multiplies it)"),
        Finding("compiler", None, compiler or "no C++ compiler: training steps run eagerly, slower"),
    ]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found.append(Finding("GPU", None, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    return found


def _packages() -> list[Finding]:
    from headdyn.training.optimizers import newton_schulz

    names = ("torch", "transformers", "datasets", "wandb", "scikit-learn", "hydra-core")
    found = [Finding("packages", True, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names))]
    try:
        newton_schulz()
        found.append(Finding("muon", True, f"muon-optimizer {importlib.metadata.version('muon-optimizer')}"))
    except ImportError as error:
        found.append(Finding("muon", False, str(error)))
    return found


def _folders() -> list[Finding]:
    from headdyn.core.store import cache_root, require_writable

    found = []
    folders = (
        ("cache", cache_root(), "HEADDYN_CACHE"),
        ("output", Path(os.environ.get("HEADDYN_OUT", ".")), "HEADDYN_OUT"),
    )
    for topic, folder, setting in folders:
        try:
            require_writable(folder, f"{topic} folder", setting)
        except ValueError as error:
            found.append(Finding(topic, False, str(error)))
            continue
        free = shutil.disk_usage(folder).free / 2**30
        found.append(Finding(topic, True, f"{folder.absolute()}, {free:.0f} GiB free ({setting} moves it)"))
    return found


def _tracking() -> list[Finding]:
    from headdyn.core.tracking import unreachable

    problem = unreachable()
    fact = "online is possible (tracking.mode=online)" if problem is None else f"offline only: {problem}"
    return [Finding("W&B", None, fact)]


def _hub() -> list[Finding]:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return [Finding("model hub", None, "off by HF_HUB_OFFLINE; model=organism_planted needs none")]
    try:
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError as error:
        return [Finding("model hub", None, f"out of reach ({error}); model=organism_planted needs none")]
    return [Finding("model hub", None, "reachable")]


def _extras() -> list[Finding]:
    extras = {
        "text": ("sentence_transformers", "topics by MiniLM embeddings; without it TF-IDF"),
        "joblib": ("hydra_plugins.hydra_joblib_launcher", "cluster=joblib"),
        "slurm": ("hydra_plugins.hydra_submitit_launcher", "cluster=slurm"),
        "ray": ("hydra_plugins.hydra_ray_launcher", "cluster=ray"),
        "dashboard": ("wandb_workspaces", "python -m headdyn.dashboard"),
    }
    found = []
    for name, (module, purpose) in extras.items():
        try:
            there = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # the parent package is absent
            there = False
        found.append(Finding(f"extra {name}", None, f"{'installed' if there else 'not installed'}: {purpose}"))
    return found


if __name__ == "__main__":
    sys.exit(main())
