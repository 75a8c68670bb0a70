"""What happens to a sweep when things go wrong: `python -m tests.faults` (`make faults`) tries it and writes a table.

Kills at random moments; every kind of file that a sweep leaves or keeps in the cache cut off, changed, emptied or
swapped with another; a full disk, one that cannot be written and a clock set back; the same sweep twice at once; W&B's
and the model hub's servers absent, slow or dying; memory that runs out. Each time the same command is given again, and
must either leave what an undisturbed sweep leaves, to the bit, or say in one line what is wrong.
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
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from headdyn.core.records import HeadTable
from tests import forked
from tests.commands import TINY, command, computed, environment, run
from tests.faults.wandb_server import wandb_server
from tests.models.checkpoints.hub_server import Hub, serve
from tests.small_checkpoints import checkpoint

SWEEP = (
    *("-m", *TINY, "workers=2", "analysis=[loss,attention]", "ordering=shuffled,topic", "position_enc=rope,drope"),
    *("train.steps=60", "train.resume_every_seconds=0.2"),
)
# Five checkpoints of one training, read as a series
SERIES = ("-m", *TINY, "experiment=head_emergence", "model=trained", "analysis.head_roles.relabellings=999")
# What no kill interrupts is shorter: two runs, two trainings of 12 steps, each with its recalibration
SMALL = ("-m", *TINY, "analysis=[loss,attention]", "ordering=shuffled,topic", "position_enc=drope")
# Two checkpoints of one training, of the stand-in's hub
HUB_MODEL = (
    *("mode=smoke", "tracking=none", "threads=1", "workers=1", "patterns_kept=0", "model=huggingface"),
    *("model.name=someone/tiny", "model.revisions='step0,step1000'", "data=repeated_tokens", "analysis=[loss]"),
)
OUT = Path("experiments/reliability")
PARTS = ["kills", "damage", "disks", "twice", "servers", "memory"]


def one_bit_changed(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


HARMS: dict[str, Callable[[bytes, bytes, random.Random], bytes]] = {
    "cut off": lambda content, other, draw: content[: len(content) // 2],
    "one bit changed": lambda content, other, draw: one_bit_changed(content, draw),
    "emptied": lambda content, other, draw: b"",
    "swapped": lambda content, other, draw: other,
}


@dataclass
class Row:
    """One kind of fault: how often it was tried, what each try came to, and what did not hold."""

    what: str
    tried: int = 0
    same: int = 0
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0  # on the clock

    def note(self, outcome: str, detail: str) -> None:
        self.tried += 1
        if outcome == "lost":
            self.lost.append(detail)
            print(f"LOST {self.what}: {detail}", flush=True)
        else:
            setattr(self, outcome, getattr(self, outcome) + 1)


def sweep(root: Path, *more: str, arguments: Sequence[str] = SMALL) -> subprocess.CompletedProcess[str]:
    return run(root, *arguments, *more, timeout=900)


def undisturbed(root: Path, arguments: Sequence[str] = SMALL) -> dict[str, bytes]:
    """What the sweep computes where nothing happens."""
    root.mkdir()
    done = sweep(root, arguments=arguments)
    if done.returncode:
        raise SystemExit(f"the undisturbed sweep failed: {done.stderr}")
    return computed(root)


def judged(root: Path, done: subprocess.CompletedProcess[str], reference: dict[str, bytes]) -> tuple[str, str]:
    """`same`, `refused` or `lost`, and what to say of it."""
    if "Traceback" in done.stdout + done.stderr:
        return "lost", "a traceback: " + done.stderr.strip().splitlines()[-1]
    if done.returncode:
        return ("refused" if done.stderr.strip() else "lost"), f"exit status {done.returncode}"
    found = computed(root)
    differing = sorted(name for name in {**found, **reference} if found.get(name) != reference.get(name))
    return ("lost", f"differs: {', '.join(differing[:3])}") if differing else ("same", "")


def kills(root: Path, count: int, draw: random.Random) -> Iterator[Row]:
    """Kill a sweep, a series and a merging of sweeps at random moments of their lives, and begin each again until it ends."""
    series, merging = count // 8, count // 12
    yield killed_sweep(root, SWEEP, "a sweep", count - series - merging, draw)
    yield killed_sweep(root, SERIES, "a series of checkpoints", series, draw)
    yield killed_merging(root, merging, draw)


def killed_sweep(root: Path, arguments: Sequence[str], what: str, count: int, draw: random.Random) -> Row:
    """A sweep killed until it has died `count` times; each that ends is compared with an undisturbed one."""
    begun = time.monotonic()
    longer = root.with_name("longer")
    shutil.rmtree(longer, ignore_errors=True)
    reference = undisturbed(longer, arguments)
    seconds = min(time.monotonic() - begun, 24.0)  # on a busy machine, too, 50 kills take about ten minutes
    row = Row(f"{what} killed at a random moment ({count} times), then begun again until it ends")
    killed = 0
    while killed < count:
        empty(root)
        while True:
            again = seconds if killed < count else None
            done, died = begun_and_killed(command(*arguments), root, again, draw)
            killed += died
            if not died:
                row.note(*judged(root, done, reference))
                break
    return row


def begun_and_killed(
    line: list[str], root: Path, seconds: float | None, draw: random.Random
) -> tuple[subprocess.CompletedProcess[str], bool]:
    """Begin a command and kill it at a random moment of its first `seconds` (None: never). Whether it was killed."""
    process = subprocess.Popen(
        line, env=environment(root), cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True, start_new_session=True,
    )  # fmt: skip
    number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    died = False
    try:
        _, errors = process.communicate(timeout=600 if seconds is None else draw.uniform(0.5, seconds))
    except subprocess.TimeoutExpired:
        died = True
        (os.killpg if draw.random() < 0.5 else os.kill)(process.pid, number)
        _, errors = process.communicate()
    return subprocess.CompletedProcess([], process.returncode, "", errors), died


def killed_merging(root: Path, count: int, draw: random.Random) -> Row:
    """Two sweeps of one seed each are merged, and the merging killed; what it then leaves is compared."""
    row = Row(f"a merging of two sweeps killed at a random moment ({count} times), then begun again until it ends")
    empty(root)
    for seed in (0, 1):
        done = sweep(root, f"seed={seed}")
        if done.returncode:
            raise SystemExit(f"the undisturbed sweep failed: {done.stderr}")
    sweeps = [str(folder) for folder in sorted((root / "out" / "multirun").iterdir())]

    def merged(folder: str, seconds: float | None) -> tuple[subprocess.CompletedProcess[str], bool]:
        line = [sys.executable, "-m", "headdyn.report", *sweeps, "--out", str(root / folder)]
        return begun_and_killed(line, root, seconds, draw)

    def left(folder: str) -> dict[str, bytes]:
        return {name: (root / folder / name).read_bytes() for name in ("effects.json", "matched_loss.json")}

    begun = time.monotonic()
    done, _ = merged("reference", None)
    if done.returncode:
        raise SystemExit(f"the undisturbed merging failed: {done.stderr}")
    seconds, killed = time.monotonic() - begun, 0
    while killed < count:
        shutil.rmtree(root / "merged", ignore_errors=True)
        died = True
        while died:
            done, died = merged("merged", seconds if killed < count else None)
            killed += died
        if "Traceback" in done.stderr or done.returncode:
            row.note("lost", f"exit status {done.returncode}: {done.stderr.strip()[-200:]}")
        else:
            same = left("merged") == left("reference")
            row.note("same" if same else "lost", "differs")
    return row


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


def damage(root: Path, whole: Path, reference: dict[str, bytes], seed: int) -> Iterator[Row]:
    """Harm one file after another in a copy of a finished sweep, and give its command again; two kinds of harm at once."""
    files = kinds_of_file(whole)

    def damaged(harm: str, where: str) -> Row:
        row, draw = Row(f"a file of {where} {harm}, then the same command"), random.Random(f"{seed} {harm} {where}")
        place = root.with_name(f"{harm} {where}".replace(" ", "_"))
        for file in files:
            if ("cache" in file.relative_to(whole).parts) != (where == "the cache"):
                continue
            shutil.copytree(whole, place, symlinks=True)
            other = next(path for path in files if path.suffix != file.suffix)
            target = place / file.relative_to(whole)
            target.write_bytes(HARMS[harm](file.read_bytes(), other.read_bytes(), draw))
            # A record is met by the same command; a stage only by a run that needs it.
            done = sweep(place, *(["force=true"] if where == "the cache" else []))
            outcome, detail = judged(place, done, reference)
            row.note(outcome, f"{file.relative_to(whole)}: {detail}")
            shutil.rmtree(place)
        return row

    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(damaged, *zip(*itertools.product(HARMS, ("a record", "the cache")), strict=True))


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
    """The cache, then the output folder, on a disk that fills up, and on one that is read-only; a clock set back."""
    places = {"cache": "the cache", "out": "the output folder"}
    for (part, place), (what, word) in itertools.product(
        places.items(), {"full": "no space left", "read-only": "cannot be written"}.items()
    ):
        row = Row(f"{place} on a {what} disk, then on a sound one")
        with small_disk(1) as disk:
            if disk is None:
                row.what += " (not tried: this user may not mount a disk)"
                yield row
                continue
            empty(root)
            if what == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            (root / part).symlink_to(disk)
            done = sweep(root)
            printed = done.stdout + done.stderr
            clear = done.returncode and "Traceback" not in printed and word in printed
            row.note("refused" if clear else "lost", f"exit status {done.returncode}: {printed.strip()[-200:]}")
            (root / part).unlink()
        row.note(*judged(root, sweep(root), reference))
        yield row
    row = Row("killed, and the clock set back by a day before it goes on")
    for seconds in (4, 8):
        empty(root)
        process = start(root)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=seconds)
        process.kill()
        process.communicate()
        tomorrow = time.time() + 86_400
        for path in root.rglob("*"):
            os.utime(path, (tomorrow, tomorrow), follow_symlinks=False)
        row.note(*judged(root, sweep(root), reference))
    yield row


def empty(root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()


def start(root: Path, *more: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*SMALL, *more), env=environment(root) | variables, cwd=root, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    printed, errors = process.communicate(timeout=900)
    return subprocess.CompletedProcess([], process.returncode, printed, errors)


def twice(root: Path, reference: dict[str, bytes]) -> Iterator[Row]:
    """The same sweep by two processes at once, which share the cache, and then the output folder too."""
    for what, second in (("one output folder", root), ("two output folders", root.with_name("second"))):
        row = Row(f"the same sweep twice at once, with one cache and {what}")
        empty(root)
        empty(second)
        (root / "cache").mkdir()
        if second != root:
            (second / "cache").symlink_to(root / "cache")
        both = [(place, start(place)) for place in (root, second)]
        for place, done in [(place, ended(process)) for place, process in both]:
            row.note(*judged(place, done, reference))
        yield row


def servers(root: Path, reference: dict[str, bytes]) -> Iterator[Row]:
    """Weights & Biases, then the hub of models: absent, taking connections without an answer, dying at work."""
    for what in ("absent", "silent", "dying"):
        row = Row(f"W&B online, its server {what}")
        empty(root)
        with wandb_server(what) as url:
            online = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": url}
            done = ended(start(root, "tracking=wandb", "tracking.mode=online", **online))
        row.note(*judged(root, done, reference))
        yield row
    arguments = ("-m", *HUB_MODEL)
    empty(root)
    with serve(Hub()) as hub, tempfile.TemporaryDirectory() as folder:
        for step in (0, 1000):
            hub.add("someone/tiny", f"step{step}", checkpoint(Path(folder) / str(step), seed=step))
        reaching = {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", "HF_HUB_OFFLINE": "0"}

        def asked(**variables: str) -> subprocess.CompletedProcess[str]:
            process = subprocess.Popen(
                command(*arguments), env=environment(root) | reaching | variables, cwd=root, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )  # fmt: skip
            return ended(process)

        done = asked()
        if done.returncode:
            raise SystemExit(f"the undisturbed sweep of checkpoints failed: {done.stderr}")
        whole = computed(root)
        faults: dict[str, list[int | str]] = {
            "dying": ["cut", "cut", 503],
            "sending other bytes": ["flip"],
            "slow": ["wait"],
        }
        for what, happens in faults.items():
            empty(root)
            hub.faults["model.safetensors"] = list(happens)
            row = Row(f"the hub {what} while a checkpoint is downloaded")
            row.note(*judged(root, asked(), whole))
            assert not hub.faults["model.safetensors"], "the fault has happened"
            yield row
        empty(root)
        row = Row("the hub absent, then there")
        row.note(*judged(root, asked(HF_ENDPOINT="http://127.0.0.1:9"), whole))
        row.note(*judged(root, asked(), whole))
        yield row


SCARCE = """
import runpy, sys, torch
from headdyn.analysis.sequences import Sequences
parts = Sequences.parts
def scarce(self, size, device, compute):
    def limited(rows, *rest):
        if rows.stop - rows.start > 8:
            raise torch.OutOfMemoryError("out of memory")
        return compute(rows, *rest)
    return parts(self, size, device, limited)
Sequences.parts = scarce
sys.argv = ["headdyn", *{arguments!r}]
runpy.run_module("headdyn.run", run_name="__main__")
"""


def memory(root: Path, whole: Path) -> Iterator[Row]:
    """Analyses get no memory for more than eight sequences at a time: smaller batches, the same numbers but for rounding."""
    row = Row("out of memory in every analysis with more than eight sequences at a time")
    empty(root)
    shutil.copytree(whole / "cache", root / "cache")
    code = SCARCE.format(arguments=list(SMALL))
    done = forked.run([sys.executable, "-c", code], env=environment(root), cwd=root, timeout=900)
    outcome, detail = ("same", "") if done.returncode == 0 else ("lost", done.stderr[-200:])
    if "out of memory with" not in done.stderr:
        outcome, detail = "lost", "no word of it"
    for path in sorted(root.glob("out/multirun/*/*/heads.parquet")):
        tables = [HeadTable.read(place / path.relative_to(root)).rows() for place in (root, whole)]
        values = [np.array([row["value"] for row in rows], float) for rows in tables]
        if not np.allclose(*values, rtol=1e-4, atol=1e-6, equal_nan=True):
            outcome, detail = "lost", f"{path.relative_to(root)}: other numbers"
    row.note(outcome, detail)
    yield row


def write_table(rows: list[Row], chosen: argparse.Namespace) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    lines = [
        "# What a sweep survives",
        "",
        f"Made by `python -m tests.faults --kills {chosen.kills} --seed {chosen.seed}`, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores. Kills meet a sweep of four runs, two workers, two trainings "
        "of 60 steps that save their state every 0.2 s, a series and a merging; all else meets a sweep of two runs. *Same*: every table, "
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
    with tempfile.TemporaryDirectory() as folder:
        whole, root = Path(folder) / "whole", Path(folder) / "root"
        reference = undisturbed(whole)
        earlier = OUT / "faults.json"
        recorded = json.loads(earlier.read_text(encoding="utf-8")) if chosen.parts != PARTS and earlier.exists() else []
        rows = {row["what"]: Row(**row) for row in recorded}
        faults = {
            "kills": kills(root, chosen.kills, random.Random(chosen.seed)),
            "damage": damage(root, whole, reference, chosen.seed),
            "disks": disks(root, reference),
            "twice": twice(root, reference),
            "servers": servers(root, reference),
            "memory": memory(root, whole),
        }
        begun = time.monotonic()
        for row in itertools.chain(*(faults[part] for part in chosen.parts)):
            row.seconds, begun = round(time.monotonic() - begun, 1), time.monotonic()
            print(f"{row.seconds:6.1f} s  {row.what}", flush=True)
            rows[row.what] = row
            write_table(list(rows.values()), chosen)
    return int(any(row.lost for row in rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
