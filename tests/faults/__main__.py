"""What happens to a sweep when things go wrong: `python -m tests.faults` (`make faults`) tries it and writes a table.

Kills at random moments, every kind of file that a sweep leaves or keeps in the cache cut off, changed, emptied or
swapped with another, a full disk and one that cannot be written. Each time the same command is given again, and must
either leave what an undisturbed sweep leaves, to the bit, or say in one line what is wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.commands import TINY, command, computed, environment

SWEEP = (
    *("-m", *TINY, "workers=2", "analysis=[loss,attention]", "ordering=shuffled,topic", "position_enc=rope,drope"),
    *("train.steps=60", "train.resume_every_seconds=0.2"),
)
OUT = Path("experiments/reliability")
PARTS = ["kills", "damage", "disks"]
HARMS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "cut off": lambda content, other: content[: len(content) // 2],
    "one bit changed": lambda content, other: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "emptied": lambda content, other: b"",
    "swapped": lambda content, other: other,
}


@dataclass
class Row:
    """One kind of fault: how often it was tried, what each try came to, and what did not hold."""

    what: str
    tried: int = 0
    same: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)

    def note(self, outcome: str, detail: str) -> None:
        self.tried += 1
        if outcome == "lost":
            self.lost.append(detail)
            print(f"LOST {self.what}: {detail}", flush=True)
        else:
            setattr(self, outcome, getattr(self, outcome) + 1)


def sweep(root: Path, *more: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    variables = environment(root) | ({} if cache is None else {"HEADDYN_CACHE": str(cache)})
    return subprocess.run(
        command(*SWEEP, *more), env=variables, cwd=root, capture_output=True, text=True, errors="replace", timeout=600
    )


def judged(root: Path, done: subprocess.CompletedProcess[str], reference: dict[str, bytes]) -> tuple[str, str]:
    """`same`, `refused` or `lost`, and what to say of it."""
    if "Traceback" in done.stdout + done.stderr:
        return "lost", "a traceback: " + done.stderr.strip().splitlines()[-1]
    if done.returncode:
        return ("refused" if done.stderr.strip() else "lost"), f"exit status {done.returncode}"
    found = computed(root)
    differing = sorted(name for name in {**found, **reference} if found.get(name) != reference.get(name))
    return ("lost", f"differs: {', '.join(differing[:3])}") if differing else ("same", "")


def kills(root: Path, reference: dict[str, bytes], seconds: float, count: int, draw: random.Random) -> Iterator[Row]:
    """Kill a sweep at random moments of its life until it has died `count` times; each that ends is compared."""
    row = Row(f"killed at a random moment ({count} times), then begun again until it ends")
    killed = 0
    while killed < count:
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        while True:
            process = subprocess.Popen(
                command(*SWEEP), env=environment(root), cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                text=True, start_new_session=True,
            )  # fmt: skip
            number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            try:
                _, errors = process.communicate(timeout=draw.uniform(0.5, seconds) if killed < count else 600)
            except subprocess.TimeoutExpired:
                killed += 1
                (os.killpg if draw.random() < 0.5 else os.kill)(process.pid, number)
                process.communicate()
                continue
            done = subprocess.CompletedProcess([], process.returncode, "", errors)
            row.note(*judged(root, done, reference))
            break
    yield row


def kinds_of_file(root: Path) -> list[Path]:
    """One file of every kind that a sweep leaves in its folder, in a run's folder and in the cache."""
    run = min(path.parent for path in root.glob("out/multirun/*/*/manifest.json"))
    folders = [run.parent, run, *(run / "figures",), *sorted(root.glob("cache/corpus/*/"))[:1]]
    folders += [
        folder for kind in ("training", "recalibration") for folder in sorted(root.glob(f"cache/{kind}/*/"))[:1]
    ]
    files = [path for folder in folders for path in sorted(folder.iterdir()) if path.is_file()]
    files += [min(folder.glob("snapshots/*")) for folder in folders if (folder / "snapshots").is_dir()]
    one_a_kind = {(path.parent, path.suffix) if path.parent.name == "figures" else path: path for path in files}
    return [path for path in one_a_kind.values() if path.suffix not in (".lock", ".txt", ".html")]


def damage(root: Path, whole: Path, reference: dict[str, bytes]) -> Iterator[Row]:
    """Harm one file after another in a copy of a finished sweep, and give its command again."""
    files = kinds_of_file(whole)
    for harm, harmed in HARMS.items():
        for where in ("a record", "the cache"):
            row = Row(f"a file of {where} {harm}")
            for file in files:
                if ("cache" in file.relative_to(whole).parts) != (where == "the cache"):
                    continue
                shutil.rmtree(root, ignore_errors=True)
                shutil.copytree(whole, root, symlinks=True)
                other = next(path for path in files if path.suffix != file.suffix)
                target = root / file.relative_to(whole)
                target.write_bytes(harmed(file.read_bytes(), other.read_bytes()))
                # A record is met by the same command; a stage only by a run that needs it.
                done = sweep(root, *(["force=true"] if where == "the cache" else []))
                outcome, detail = judged(root, done, reference)
                row.note(outcome, f"{file.relative_to(whole)}: {detail}")
            yield row


@contextmanager
def small_disk(mebibytes: int) -> Iterator[Path | None]:
    """A disk of that size in memory, or None where this user may not mount one."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "headdyn-faults", folder]
        mounted = subprocess.run(options, capture_output=True).returncode == 0
        try:
            yield Path(folder) if mounted else None
        finally:
            if mounted:
                subprocess.run(["umount", folder], check=True)


def disks(root: Path, reference: dict[str, bytes]) -> Iterator[Row]:
    """The cache, then the output folder, on a disk that fills up, and on one that is read-only."""
    for part in ("cache", "out"):
        for what in ("full", "read-only"):
            row = Row(
                f"{'the cache' if part == 'cache' else 'the output folder'} on a {what} disk, then on a sound one"
            )
            with small_disk(1) as disk:
                if disk is None:
                    row.what += " (not tried: this user may not mount a disk)"
                    yield row
                    continue
                shutil.rmtree(root, ignore_errors=True)
                root.mkdir()
                if what == "read-only":
                    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
                (root / part).symlink_to(disk)
                done = sweep(root)
                said = done.stdout + done.stderr
                word = "no space left" if what == "full" else "cannot be written"
                if done.returncode == 0 or "Traceback" in said or word not in said:
                    row.note("lost", f"exit status {done.returncode}: {said.strip()[-200:]}")
                else:
                    row.note("refused", "")
                (root / part).unlink()
            row.note(*judged(root, sweep(root), reference))
            yield row


def write_table(rows: list[Row], chosen: argparse.Namespace) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    lines = [
        "# What a sweep survives",
        "",
        f"Made by `python -m tests.faults --kills {chosen.kills} --seed {chosen.seed}`, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores. A sweep of four runs, two workers, two trainings of "
        "60 steps that save their state every 0.2 s; after each fault the same command is given again. *Same*: every table, "
        "summary, effect, snapshot and corpus equals an undisturbed sweep's, to the bit. *Refused*: an exit status that is "
        "not 0, and why in a line, no traceback.",
        "",
        "| fault | tried | same | refused | lost |",
        "|---|---|---|---|---|",
        *(f"| {row.what} | {row.tried} | {row.same} | {row.refused} | {len(row.lost)} |" for row in rows),
        "",
        *(f"- lost: {row.what}: {text}" for row in rows for text in row.lost),
    ]
    (OUT / "faults.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    (OUT / "faults.json").write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="which faults; the others stay on record"
    )
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        whole, root = Path(folder) / "whole", Path(folder) / "root"
        whole.mkdir()
        done = sweep(whole)
        if done.returncode:
            raise SystemExit(f"the undisturbed sweep failed: {done.stderr}")
        seconds, reference = time.monotonic() - begun, computed(whole)
        earlier = OUT / "faults.json"
        recorded = json.loads(earlier.read_text(encoding="utf-8")) if chosen.parts != PARTS and earlier.exists() else []
        rows = {row["what"]: Row(**row) for row in recorded}
        faults = {
            "kills": kills(root, reference, seconds, chosen.kills, random.Random(chosen.seed)),
            "damage": damage(root, whole, reference),
            "disks": disks(root, reference),
        }
        for row in itertools.chain(*(faults[part] for part in chosen.parts)):
            rows[row.what] = row
            write_table(list(rows.values()), chosen)
    return int(any(row.lost for row in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
