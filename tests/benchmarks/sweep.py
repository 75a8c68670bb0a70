"""How a sweep uses the machine: the smoke matrix of 8 runs, from nothing, from its cache, and when it is finished.

    python -m tests.benchmarks.sweep                      # this code; into experiments/speed/sweep.json and sweep.md
    python -m tests.benchmarks.sweep --before FOLDER      # also another checkout's, alternating

Whole processes with an empty cache and output folder, importing included. The first step is the moment at which a
training has written its first numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.benchmarks.figures import three
from tests.commands import command, environment

OUT = Path("experiments/speed")
TARGETS = {"cold": 45.0, "first step": 6.0, "again": 5.0, "warm": 30.0}


def measure(code: Path, *more: str) -> dict[str, float]:
    """Seconds of a matrix from nothing, until its first step, given again, and with its cache but no runs."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        variables = environment(root) | {"PYTHONPATH": str(code)}
        del variables["OMP_NUM_THREADS"]  # as a user has it
        for what in ("cold", "again", "warm"):
            if what == "warm":
                shutil.rmtree(root / "out")
            begun = time.monotonic()
            process = subprocess.Popen(
                command("-m", "experiment=matrix", "mode=smoke", *more),
                env=variables, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            while process.poll() is None:
                metrics = root.glob("cache/training/*.partial/metrics.jsonl")
                if "first step" not in seconds and any(path.stat().st_size for path in metrics):
                    seconds["first step"] = time.monotonic() - begun
                time.sleep(0.02)
            seconds[what] = time.monotonic() - begun
            assert process.returncode == 0
    return seconds


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--repetitions", type=int, default=3)
    chosen = parser.parse_args()
    sides = {"side by side": (Path.cwd(), ()), "one after another": (Path.cwd(), ("workers=1",))}
    if chosen.before:
        sides["before"] = (chosen.before.absolute(), ())
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(chosen.repetitions):
        for name, (code, more) in sides.items():
            runs[name].append(measure(code, *more))
            print(name, runs[name][-1], flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    machine = (
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, Python {platform.python_version()}"
    )
    content = {"machine": machine, "load before": os.getloadavg()[1], "seconds": runs}
    (OUT / "sweep.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# How a sweep uses the machine",
        "",
        f"The smoke matrix (8 runs, 4 trainings), whole processes, seconds: median [least, most] of {chosen.repetitions}. "
        f"Made by `python -m tests.benchmarks.sweep`; {machine}.",
        "",
        f"| | target | {' | '.join(sides)} |",
        f"|---|---|{'---|' * len(sides)}",
    ]
    for what, target in TARGETS.items():
        cells = [three([run[what] for run in runs[name]]) for name in sides]
        lines.append(f"| {what} | {target:.0f} | {' | '.join(cells)} |")
    (OUT / "sweep.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
