"""What a matrix costs: a whole smoke matrix, the same again, and the laptop matrix counted in trainings; run as

    python -m tests.benchmarks.matrix            # smoke, about a minute
    python -m tests.benchmarks.matrix --laptop   # and laptop, about ten

Every figure is of whole processes with an empty cache and output folder (the compiler's cache too), so installing and
importing are inside and a first-time user sees the same. Costs are also given as a multiple of one training's own
updates, a ratio that a faster or slower machine does not change much.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.commands import command, environment


def seconds_of(root: Path, *arguments: str) -> float:
    """Wall seconds of one command, which must succeed."""
    variables = environment(root)
    del variables["OMP_NUM_THREADS"]  # as a user has it: every core
    begun = time.monotonic()
    subprocess.run(command(*arguments), env=variables, cwd=root, check=True, capture_output=True)
    return time.monotonic() - begun


def trainings_in(cache: Path) -> tuple[int, float]:
    """How many trainings were done, and what all updates (recalibrations' too) cost in units of one training."""
    updates = {"training": [], "recalibration": []}
    for kind, steps in updates.items():
        for result in sorted((cache / kind).glob("*/metrics.jsonl")):
            entries = [json.loads(line) for line in result.read_text().splitlines()]
            steps.append(max(entry["step"] for entry in entries))
    one = max(updates["training"])
    return len(updates["training"]), (sum(updates["training"]) + sum(updates["recalibration"])) / one


def report(mode: str) -> None:
    """Time one matrix of 8 in this mode from nothing, and again when it is finished."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        first = seconds_of(root, "-m", "experiment=matrix", f"mode={mode}")
        again = seconds_of(root, "-m", "experiment=matrix", f"mode={mode}")
        done, cost = trainings_in(root / "cache")
        results = [json.loads(path.read_text()) for path in (root / "cache" / "training").glob("*/result.json")]
        one = statistics.median(result["seconds"] for result in results)
        speed = statistics.median(result["tokens_per_second"] for result in results)
    print(f"{mode}: matrix of 8 in {first:.0f} s; the same command again {again:.1f} s = {again / first:.3f} of it")
    print(f"{mode}: {done} trainings, all updates cost {cost:.2f} trainings (8 conditions; at most 4.3)")
    print(
        f"{mode}: one training's updates {one:.1f} s ({speed / 1e3:.1f} K tokens/s); the matrix took {first / one:.1f} of them"
    )


def answers() -> None:
    """How long a wrong setting and --help take to answer, whole processes."""
    for name, arguments, status in (("a wrong setting", ["train.steps=abc"], 2), ("--help", ["--help"], 0)):
        with tempfile.TemporaryDirectory() as folder:
            took = []
            for _ in range(5):
                begun = time.monotonic()
                done = subprocess.run(command(*arguments), env=environment(Path(folder)), capture_output=True)
                took.append(time.monotonic() - begun)
                assert done.returncode == status
        print(f"{name} answers in {min(took):.2f} / {statistics.median(took):.2f} / {max(took):.2f} s (at most 2)")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--laptop", action="store_true", help="also the laptop matrix, about ten minutes")
    laptop = parser.parse_args().laptop
    answers()
    for mode in ("smoke", "laptop") if laptop else ("smoke",):
        report(mode)


if __name__ == "__main__":
    main()
