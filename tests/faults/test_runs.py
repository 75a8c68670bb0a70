"""What goes wrong with whole runs: kills, signals, damaged caches, folders that cannot be written."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from filelock import FileLock

from tests import forked
from tests.commands import TINY, command, environment, only, run
from tests.core.test_tracking import records

LONGER = (*TINY, "analysis=[loss]", "train.steps=150", "train.resume_every_seconds=0.05", "train.snapshots=4")


def start(root: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(command(*arguments), env=environment(root), cwd=root, stderr=subprocess.PIPE, text=True)


def wait_for_state(root: Path, least_step: int) -> None:
    """Until a full training state of at least that step is on disk."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        states = list((root / "cache" / "training").glob("*.partial/resume/state*.pt"))
        if any(int(state.stem.removeprefix("state")) >= least_step for state in states):
            return
        time.sleep(0.02)
    raise AssertionError("the training saved no state")


def weights(root: Path) -> bytes:
    return only(root / "cache" / "training", "*/snapshots/step000150.safetensors").read_bytes()


def manifest(root: Path) -> dict:
    return json.loads(only(root / "out" / "outputs", "*/manifest.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    root = tmp_path_factory.mktemp("undisturbed")
    done = run(root, *LONGER)
    assert done.returncode == 0, done.stderr
    return weights(root)


@pytest.mark.slow
def test_a_run_killed_twice_ends_with_the_same_weights(tmp_path, undisturbed):
    said = [tmp_path / "stdout", tmp_path / "stderr"]
    for least_step in (10, 60):
        process = forked.Forked(command(*LONGER), env=environment(tmp_path), cwd=tmp_path, outputs=said)
        wait_for_state(tmp_path, least_step)
        process.kill()
        process.wait()
    assert manifest(tmp_path)["status"] == "running"
    done = run(tmp_path, *LONGER)
    assert done.returncode == 0 and "going on after step" in done.stderr
    assert weights(tmp_path) == undisturbed
    assert manifest(tmp_path)["status"] == "complete"
    steps = [
        json.loads(line) for line in only(tmp_path / "out" / "outputs", "*/metrics.jsonl").read_text().splitlines()
    ]
    train_steps = [entry["step"] for entry in steps if entry["name"] == "train_loss_nats"]
    assert train_steps == sorted(set(train_steps))  # nothing is recorded twice


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_the_same_command_goes_on(tmp_path, undisturbed, number):
    process = start(tmp_path, *LONGER)
    wait_for_state(tmp_path, 5)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in said and "Traceback" not in said
    assert manifest(tmp_path)["status"] == "interrupted"
    done = run(tmp_path, *LONGER)
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path) == undisturbed


def test_a_signal_stops_the_whole_sweep_and_reports_what_is_there(tmp_path):
    process = start(tmp_path, "-m", "seed=0,1", *LONGER)
    wait_for_state(tmp_path, 5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    sweep = only(tmp_path / "out" / "multirun")
    statuses = [job["status"] for job in jobs(sweep)]
    assert sorted(statuses) == ["absent", "interrupted"]
    assert (sweep / "report.html").exists()


def jobs(sweep: Path) -> list[dict]:
    import csv

    with (sweep / "summary.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["truncate", "edit", "delete"])
def test_a_damaged_cache_entry_is_built_again_to_the_same_bytes(tmp_path, harm):
    quick = (*TINY, "analysis=[loss]")
    assert run(tmp_path, *quick).returncode == 0
    snapshot = only(tmp_path / "cache" / "training", "*/snapshots/step000012.safetensors")
    whole = snapshot.read_bytes()
    if harm == "delete":
        snapshot.unlink()
    else:
        snapshot.write_bytes(whole[: len(whole) // 2] if harm == "truncate" else whole[:-4] + b"\0\0\0\0")
    done = run(tmp_path, *quick, "force=true")
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stderr and "set aside" in done.stderr
    assert snapshot.read_bytes() == whole


def test_an_output_folder_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        command(*TINY),
        env={**environment(tmp_path), "HEADDYN_OUT": str(tmp_path / "file")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "HEADDYN_OUT" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "cache" / "training").exists()


def test_a_cache_folder_that_cannot_be_written_is_said_before_any_work(tmp_path):
    (tmp_path / "cache").write_text("")
    for sweep in ((), ("-m", "seed=0,1")):
        done = run(tmp_path, *sweep, *TINY)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("headdyn: the cache folder") and "HEADDYN_CACHE" in line


def test_a_second_process_in_one_folder_is_refused_while_the_first_works(tmp_path):
    assert run(tmp_path, "-m", "seed=0,1", *TINY, "analysis=[loss]").returncode == 0
    folder = only(tmp_path / "out" / "multirun")
    with FileLock(folder / ".lock"):
        done = run(tmp_path, "-m", "seed=0,1", *TINY, "analysis=[loss]")
    assert (done.returncode, done.stderr) == (
        1, f"headdyn: another process works in {folder}; wait for it, or choose another folder\n"
    )  # fmt: skip
    assert run(tmp_path, "-m", "seed=0,1", *TINY, "analysis=[loss]").returncode == 0
    assert not (folder / ".lock").exists()


def test_cuda_asked_for_where_there_is_none(tmp_path):
    without = {**environment(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = forked.run(command(*TINY, "device=cuda"), env=without, cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("headdyn: device=cuda, but") and "device=auto" in done.stderr
    assert not [*(tmp_path / "out").rglob("*")]  # nothing was begun


def test_the_wrong_muon_package_is_named(tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "muon.py").write_text("class MuData: ...\n")
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command(*TINY),
        env={**environment(tmp_path), "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "muon-optimizer" in done.stderr and "pip" in done.stderr


# -- tracked by W&B, whose client has words of its own for what goes wrong --------------------------------------------

TRACKED = (*LONGER, "tracking=wandb")


def tracked_run(root: Path) -> tuple[list[dict], int]:
    """The records of the only run's W&B file and the exit code it was finished with; waits until that is there."""
    found = records(only(root / "out" / "outputs"))
    (ended,) = [record["exit"] for record in found if record["type"] == "exit"]
    return found, int(ended.get("exit_code", 0))


def test_a_signal_to_a_tracked_run_shows_no_traceback_and_finishes_its_record(tmp_path):
    process = subprocess.Popen(
        command(*TRACKED), env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    wait_for_state(tmp_path, 5)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues" in said and "Traceback" not in said
    assert manifest(tmp_path)["status"] == "interrupted"
    found, code = tracked_run(tmp_path)
    assert code == 1 and any(record["type"] == "history" for record in found)  # what was measured is not lost


def test_a_tracked_run_that_fails_is_told_in_one_line_and_marked_failed(tmp_path):
    done = run(tmp_path, *TRACKED, "train.adamw_lr=1e37")
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "diverged" in said and "Traceback" not in said
    assert manifest(tmp_path)["status"] == "failed" and "Traceback" in manifest(tmp_path)["traceback"]
    _, code = tracked_run(tmp_path)
    assert code == 1
