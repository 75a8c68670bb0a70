"""What this machine can do, and what is in its cache: `headdyn doctor [--cache] [--prune CONDITION …]`.

Only --prune changes anything. The exit status is 1 if a run could not start here, or if the cache has damaged folders.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column, Table

# A topic, whether this machine has what every run needs (None: no run depends on it), and the fact to show.
Finding = tuple[str, bool | None, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table. Returns 1 if something that a run needs is missing, or the cache has damaged folders, else 0."""
    parser = argparse.ArgumentParser(prog="headdyn doctor", description=__doc__)
    parser.add_argument("--cache", action="store_true", help="check every file in the cache against its checksum")
    prunable = ("unused", "unfinished", "damaged")
    parser.add_argument("--prune", nargs="+", default=[], choices=prunable, help="remove such folders from the cache")
    parser.add_argument("--runs", nargs="+", type=Path, metavar="FOLDER", help="of runs (default: in HEADDYN_OUT)")
    chosen = parser.parse_args(argv)
    if chosen.cache or chosen.prune:
        runs = chosen.runs or [output_root() / name for name in ("outputs", "multirun")]
        if "unused" in chosen.prune and not any(folder.is_dir() for folder in runs):
            parser.error(
                f"--prune unused needs runs to know what is used, and {runs[0]} is no folder; name it by --runs"
            )
        return _cache(runs, chosen.prune)
    findings = [*_device(), *_packages(), *_folders(), *_network(), *_extras()]
    table = Table(
        "",
        "topic",
        Column("fact", overflow="fold"),
        box=box.SIMPLE_HEAD,
        title="headdyn on this machine",
        title_justify="left",
    )
    marks = {True: "[green]yes[/green]", False: "[red]NO[/red]", None: "–"}
    for topic, met, fact in findings:
        table.add_row(marks[met], topic, fact)
    Console().print(table)
    return int(any(met is False for _, met, _ in findings))


def _cache(runs: Sequence[Path], prune: Sequence[str]) -> int:
    """Print the folders of the cache by condition, and remove those whose condition is in `prune`."""
    from headdyn.core.cache import FIXES, contents, remove
    from headdyn.core.store import Store, cache_root

    store = Store(cache_root())
    table = Table("stage", "condition", "folders", "size", box=box.SIMPLE_HEAD, title=f"cache {store.root}")
    totals: dict[tuple[str, str], list[int]] = {}
    lines, damaged = [], 0
    for item in contents(store, runs):
        pruned = item.condition in prune and remove(item)
        condition = f"{item.condition}, removed" if pruned else item.condition
        totals.setdefault((item.kind, condition), []).append(item.bytes)
        if item.condition != "used" and not pruned:
            damaged += item.condition == "damaged"
            fix = "a running job holds it" if item.condition in prune else FIXES[item.condition]
            lines.append(f"{item.path}: {item.condition}{f' ({item.why})' if item.why else ''}: {fix}")
    for (kind, condition), sizes in totals.items():
        table.add_row(kind, condition, str(len(sizes)), f"{sum(sizes) / 2**20:,.1f} MiB")
    console = Console()
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    return int(damaged > 0)


def output_root() -> Path:
    """The folder of `outputs/` and `multirun/`: HEADDYN_OUT, or the current one."""
    return Path(os.environ.get("HEADDYN_OUT") or ".")


def _device() -> Iterator[Finding]:
    import torch

    from headdyn.core import machine

    settings = machine.resolve("auto", "auto", 0)
    yield "device", None, f"{settings.device}, {settings.threads} CPU threads"
    yield "precision", None, f"{settings.precision}, which precision=auto chooses here"
    compiler = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    yield "compiler", None, compiler or "no C++ compiler: training steps run eagerly, slower"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        yield "GPU", None, f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"


def _packages() -> Iterator[Finding]:
    from headdyn.training.optimizers import newton_schulz

    names = ("torch", "transformers", "datasets", "wandb", "scikit-learn", "hydra-core")
    yield "packages", True, ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    try:
        newton_schulz()
        yield "muon", True, f"muon-optimizer {importlib.metadata.version('muon-optimizer')}"
    except ImportError as error:
        yield "muon", False, str(error)


def _folders() -> Iterator[Finding]:
    from headdyn.core.store import cache_root, require_writable

    for topic, folder in (("cache", cache_root()), ("output", output_root())):
        setting = f"HEADDYN_{'CACHE' if topic == 'cache' else 'OUT'}"
        try:
            require_writable(folder, f"{topic} folder", setting)
            free = shutil.disk_usage(folder).free / 2**30
            yield topic, True, f"{folder.absolute()}, {free:.0f} GiB free ({setting} moves it)"
        except ValueError as error:
            yield topic, False, str(error)


def _network() -> Iterator[Finding]:
    from headdyn.core.tracking import unreachable

    problem = unreachable()
    yield "W&B", None, f"offline only: {problem}" if problem else "online is possible (tracking.mode=online)"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        problem = "off by HF_HUB_OFFLINE"
    else:
        try:
            socket.create_connection(("huggingface.co", 443), timeout=3).close()
            problem = None
        except OSError as error:
            problem = f"out of reach ({error})"
    yield "model hub", None, f"{problem}; model=organism_planted needs no hub" if problem else "reachable"


def _extras() -> Iterator[Finding]:
    extras = {
        "text": ("sentence_transformers", "topics by MiniLM embeddings; without it TF-IDF"),
        "joblib": ("hydra_plugins.hydra_joblib_launcher", "cluster=joblib"),
        "slurm": ("hydra_plugins.hydra_submitit_launcher", "cluster=slurm"),
        "ray": ("hydra_plugins.hydra_ray_launcher", "cluster=ray"),
        "dashboard": ("wandb_workspaces", "headdyn dashboard"),
        "notebook": ("marimo", "headdyn notebook"),
    }
    for name, (module, purpose) in extras.items():
        try:
            installed = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # the parent package is absent
            installed = False
        yield f"extra {name}", None, f"{'installed' if installed else 'not installed'}: {purpose}"


if __name__ == "__main__":
    sys.exit(main())
