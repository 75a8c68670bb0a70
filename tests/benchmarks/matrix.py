"""What a matrix costs: a whole smoke matrix in trainings, its report built and opened, and what is refused; run as

    python -m tests.benchmarks.matrix            # about a minute and a half

Every figure is of whole processes with an empty cache and output folder (the compiler's cache too), so installing and
importing are inside and a first-time user sees the same. Costs are also given as a multiple of one training's own
updates, a ratio that a faster or slower machine does not change much. A matrix is run once; spreads are over its
trainings, and over repeated builds of its report from the finished runs and openings of that in a browser.

The budget: 4.3 trainings, the report in 20 s and opened in 2 s (Debian's chromium; left out with a word where there is
none). Seconds of the whole are tests.benchmarks.sweep's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.figures import three
from tests.commands import command, environment, only
from tests.report.browser import Chromium

REPETITIONS = 5


def seconds_of(root: Path, *line: str) -> float:
    """Wall seconds of one command, which must succeed."""
    variables = environment(root)
    del variables["OMP_NUM_THREADS"]  # as a user has it: every core
    begun = time.monotonic()
    subprocess.run(line, env=variables, cwd=root, check=True, capture_output=True)
    return time.monotonic() - begun


def trainings_in(cache: Path) -> tuple[int, float]:
    """How many trainings were done, and what all updates (recalibrations' too) cost in units of one training."""
    updates: dict[str, list[int]] = {"training": [], "recalibration": []}
    for kind, steps in updates.items():  # a recalibration has a folder for each of its rounds
        for result in sorted((cache / kind).rglob("metrics.jsonl")):
            entries = [json.loads(line) for line in result.read_text().splitlines()]
            steps.append(max(entry["step"] for entry in entries))
    one = max(updates["training"])
    return len(updates["training"]), (sum(updates["training"]) + sum(updates["recalibration"])) / one


def matrix() -> None:
    """Time one smoke matrix of 8 from nothing, and its report."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        line = command("-m", "experiment=matrix", "mode=smoke")
        first = seconds_of(root, *line)
        done, cost = trainings_in(root / "cache")
        results = [json.loads(path.read_text()) for path in (root / "cache" / "training").glob("*/result.json")]
        each = [result["seconds"] for result in results]
        thousands = [result["tokens_per_second"] / 1e3 for result in results]
        page = only(root / "out" / "multirun") / "report.html"
        built = [seconds_of(root, sys.executable, "-m", "headdyn.report", str(page.parent)) for _ in range(REPETITIONS)]
        opened = openings(page, root / "profile")
    print(f"smoke: {done} trainings, all updates cost {cost:.2f} trainings (8 conditions; at most 4.3)")
    print(f"smoke: one training's updates {three(each, ' s')} at {three(thousands, ' K tokens/s')}; "
          f"the matrix took {three([first / one for one in each])} of them")  # fmt: skip
    print(f"smoke: the report of 8 runs alone {three(built, ' s')} (at most 20)")
    if opened:
        print(f"smoke: it opens in {three(opened, ' s')} (at most 2)", flush=True)
    else:
        print("smoke: no chromium here to open it in", flush=True)


def openings(page: Path, profile: Path) -> list[float]:
    """Seconds from navigation until the page's script is done, each in a browser that has not seen it."""
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        return []
    seconds = []
    for repetition in range(REPETITIONS):
        with Chromium(profile / str(repetition)) as browser:
            seconds.append(browser.open(page) / 1e3)
    return seconds


def answers() -> None:
    """How long a wrong setting and --help take to answer, whole processes."""
    for name, arguments, status in (("a wrong setting", ["train.steps=abc"], 2), ("--help", ["--help"], 0)):
        with tempfile.TemporaryDirectory() as folder:
            took = []
            for _ in range(REPETITIONS):
                begun = time.monotonic()
                done = subprocess.run(command(*arguments), env=environment(Path(folder)), capture_output=True)
                took.append(time.monotonic() - begun)
                assert done.returncode == status
        print(f"{name} answers in {three(took, ' s')} (at most 2)", flush=True)


def main() -> None:
    """Print the figures."""
    assert __doc__ is not None
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    answers()
    matrix()


if __name__ == "__main__":
    main()
