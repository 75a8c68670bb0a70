"""Running the command line in tests: a size that takes seconds, and folders that vanish with the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import forked

# Small enough to train in well under a second; every stage and analysis still does its real work.
TINY = (
    "mode=smoke",
    "tracking=none",
    "threads=1",
    "workers=1",
    "precision=fp32",
    "data.train_sequences=96",
    "data.val_sequences=48",
    "train.steps=12",
    "train.snapshots=4",
    "train.eval_every_steps=6",
    "train.eval_sequences=16",
    "patterns_kept=2",
)


def environment(root: Path) -> dict[str, str]:
    """Variables that keep a command's output and cache under `root`, and it off the network."""
    return {
        **os.environ,
        "HEADDYN_OUT": str(root / "out"),
        "HEADDYN_CACHE": str(root / "cache"),
        "WANDB_MODE": "offline",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "headdyn.run", *arguments]


def run(root: Path, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return forked.run(command(*arguments), env=environment(root), cwd=root, timeout=timeout)


def only(folder: Path, pattern: str = "*") -> Path:
    """The one entry of a folder that matches."""
    (found,) = folder.glob(pattern)
    return found


def computed(root: Path) -> dict[str, bytes]:
    """What a sweep computed: all that its runs measured and drew, its effects, and every snapshot in the cache."""
    of_a_run = ("*.parquet", "summary.json", "metrics.jsonl", "*.safetensors", "figures/*.json")
    runs = (path for pattern in of_a_run for path in root.glob(f"out/multirun/*/*/{pattern}"))
    others = (
        "out/multirun/*/effects.json",
        "out/multirun/*/verdict.json",
        "out/multirun/*/head_*.parquet",
        "cache/*/*/snapshots/*.safetensors",
        "cache/corpus/*/*.npy",
    )
    paths = (*runs, *(path for pattern in others for path in root.glob(pattern)))
    return {str(path.relative_to(root)): _untimed(path) for path in paths if ".damaged-" not in str(path)}


def _untimed(path: Path) -> bytes:
    """A file's bytes; of a summary and of metrics without how long things took, which no two runs share."""
    if path.name == "metrics.jsonl":
        return b"".join(line for line in path.read_bytes().splitlines() if b'"tokens_per_second"' not in line)
    if path.name != "summary.json":
        return path.read_bytes()

    def rest(node: Any) -> Any:
        times = ("seconds", "tokens_per_second")
        return {key: rest(part) for key, part in node.items() if key not in times} if isinstance(node, dict) else node

    try:
        return json.dumps(rest(json.loads(path.read_bytes())), sort_keys=True).encode()
    except ValueError:
        return path.read_bytes()
