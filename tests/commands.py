"""Running the command line in tests: a size that takes seconds, and folders that vanish with the test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
