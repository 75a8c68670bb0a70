"""How a sweep uses the machine: a matrix of 8 runs, from nothing, from its cache, and when it is finished; run as

    python -m tests.benchmarks.sweep                            # smoke, three times each way
    python -m tests.benchmarks.sweep --mode laptop              # as `make run`, once: about ten minutes
    python -m tests.benchmarks.sweep --before FOLDER            # also another checkout's, alternating
    python -m tests.benchmarks.sweep --out experiments/speed    # and the numbers into FOLDER/sweep.json, by mode and processor

Whole processes with an empty cache and output folder, importing included. The first step is the moment at which a
training has written its first numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tests.benchmarks.figures import three
from tests.benchmarks.shapes import machine
from tests.commands import command, environment

TARGETS = {
    "smoke": {"cold": 45.0, "first step": 6.0, "again": 5.0, "warm": 30.0},
    "laptop": {"cold": 360.0, "first step": 6.0, "compiled step": 6.0, "again": 5.0},
}


def measure(mode: str, code: Path, *more: str) -> dict[str, float]:
    """Seconds of a matrix from nothing, until its first step, and given again; at smoke also with its cache but no runs,
    at laptop also until the first step of another seed's matrix, whose steps are in the compiler's cache."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        variables = environment(root) | {"PYTHONPATH": str(code)}
        del variables["OMP_NUM_THREADS"]  # as a user has it
        for what in ("cold", "again", "warm", "compiled step"):
            if what not in TARGETS[mode]:
                continue
            if what == "warm":
                shutil.rmtree(root / "out")
            step, seed = ("compiled step", ("seed=1",)) if what == "compiled step" else ("first step", ())
            begun = time.monotonic()
            process = subprocess.Popen(
                command("-m", "experiment=matrix", f"mode={mode}", *more, *seed),
                env=variables, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            while process.poll() is None:
                metrics = root.glob("cache/training/*.partial/metrics.jsonl")
                if step not in seconds and any(path.stat().st_size for path in metrics):
                    seconds[step] = time.monotonic() - begun
                    if step == what:
                        process.send_signal(signal.SIGINT)  # the rest of this matrix tells nothing more
                time.sleep(0.02)
            seconds.setdefault(what, time.monotonic() - begun)
            assert process.returncode == (130 if step == what else 0)
    return seconds


def main() -> None:
    """Measure, print and record."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=TARGETS, default="smoke")
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--repetitions", type=int, help="default: 3 at smoke, 1 at laptop")
    parser.add_argument("--out", type=Path, help="a folder for sweep.json; other modes and processors in it stay")
    chosen = parser.parse_args()
    sides: dict[str, tuple[Path, tuple[str, ...]]] = {"side by side": (Path.cwd(), ())}
    if chosen.mode == "smoke":
        sides["one after another"] = (Path.cwd(), ("workers=1",))
    if chosen.before:
        sides["before"] = (chosen.before.absolute(), ())
    load = os.getloadavg()[1]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(chosen.repetitions or (3 if chosen.mode == "smoke" else 1)):
        for name, (code, more) in sides.items():
            runs[name].append(measure(chosen.mode, code, *more))
    for name, measured in runs.items():
        for what, target in TARGETS[chosen.mode].items():
            print(
                f"{chosen.mode}, {name}: {what} {three([run[what] for run in measured], ' s')} (at most {target:.0f})"
            )
    if chosen.out:
        path = chosen.out / "sweep.json"
        record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        here = machine()
        record[f"{chosen.mode} on {here['processor']}"] = {"seconds": runs, "load_before": load, "machine": here}
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
