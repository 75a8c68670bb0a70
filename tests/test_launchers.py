"""Hydra's launchers, really run: a sweep computes what it computes here, one run after another, to the bit.

joblib is in the tests' own environment; submitit and Ray clash with it and have another: `make test-clusters`.
"""

import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
import yaml

from headdyn.composition import CONF, plain_arguments
from headdyn.core import machine
from headdyn.core.settings import ConfigError
from headdyn.core.stopping import queue_again, stop_on_signals
from headdyn.plan import make_plan
from tests.commands import TINY, command, computed, environment, run

LOCAL_RAY = ("+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false")
MATRIX = ("-m", *TINY, "device=cpu", "analysis=[loss,attention]", "ordering=shuffled,topic", "position_enc=rope,drope")


def needs(plugin: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(plugin) is None, reason=f"{plugin} is not installed")


def launched(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: launchers start others, which one forked off the tests' server may wait for without end."""
    return subprocess.run(
        command(*arguments), env=environment(root), cwd=root, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("here")
    done = run(root, *MATRIX, timeout=600)
    assert done.returncode == 0, done.stderr
    return computed(root)


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(("cluster=joblib",), marks=needs("joblib"), id="joblib"),
        pytest.param(("hydra/launcher=submitit_local",), marks=needs("submitit"), id="submitit"),
        pytest.param(("cluster=ray", *LOCAL_RAY), marks=needs("ray"), id="ray"),
    ],
)
def test_a_launcher_computes_what_is_computed_here(tmp_path, here, launcher):
    done = launched(tmp_path, *MATRIX, *launcher)
    assert done.returncode == 0, done.stdout + done.stderr
    there = computed(tmp_path)
    assert len(there) > 4 * 3 + 2 * 4 and there.keys() == here.keys()
    assert [name for name in here if here[name] != there[name]] == []


@needs("joblib")
def test_a_launcher_that_cannot_start_is_one_line(tmp_path):
    done = launched(tmp_path, *MATRIX, "cluster=joblib", "hydra.launcher.n_jobs=0")
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr
    assert lines[-1].startswith("headdyn: JoblibLauncher failed: ValueError: ") and "n_jobs == 0" in lines[-1]
    assert not [*(tmp_path / "out").rglob("*.*")]


LONG = ("-m", *TINY, "analysis=[loss]", "train.steps=300", "train.resume_every_seconds=0.05", "seed=0,1")


def descendants(pid: int) -> list[int]:
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    return [pid for child in map(int, children) for pid in (child, *descendants(child))]


@pytest.mark.slow
@needs("submitit")
@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_job_that_submitit_stops_queues_again_and_goes_on_to_the_same_bits(tmp_path, number):
    for name in ("undisturbed", "stopped"):
        (tmp_path / name).mkdir()
    assert launched(tmp_path / "undisturbed", *LONG).returncode == 0
    root = tmp_path / "stopped"
    process = subprocess.Popen(
        command(*LONG, "hydra/launcher=submitit_local"), env=environment(root), cwd=root, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(root.glob("cache/training/*.partial/resume/state0000[1-9]*.pt")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    for pid in descendants(process.pid):
        if b"submitit.core._submit" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, number)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    logs = "".join(path.read_text() for path in root.glob("out/multirun/*/.submitit/*/*log.*"))
    assert "Requeued job" in logs and "going on after step" in logs
    assert computed(root) == computed(tmp_path / "undisturbed")


def test_under_submitit_every_signal_saves_first_and_then_submitit_queues_again(monkeypatch):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    queued = []
    before = signal.signal(signal.SIGUSR2, lambda *_: queued.append("again"))
    try:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            with stop_on_signals() as should_stop:
                assert not should_stop()
                signal.raise_signal(number)
                signal.raise_signal(signal.SIGTERM)  # SLURM's own second one does not cut the saving short
                assert should_stop() and not queued
            queue_again()
            assert queued.pop() == "again"
        monkeypatch.delenv("SUBMITIT_EXECUTOR")
        queue_again()
        assert not queued
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_jobs_are_spread_over_gpus_by_number(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    for number in range(5):
        machine.choose_gpu(number)
    assert chosen == [0, 1, 2, 0, 1]


def test_a_launcher_gets_the_sweeps_folder_literally(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADDYN_OUT", raising=False)
    plan = make_plan(["-m", "mode=smoke", "seed=0,1", "cluster=joblib"])
    assert plan.folder.is_relative_to(tmp_path)
    assert plan.arguments[-1] == f"hydra.sweep.dir='{plan.folder}'"


def test_the_clusters_settings_queue_again_and_pass_the_cache():
    slurm, ray = (yaml.safe_load((CONF / "cluster" / f"{name}.yaml").read_text()) for name in ("slurm", "ray"))
    assert slurm["hydra"]["launcher"]["max_num_timeout"] > 0 and slurm["hydra"]["launcher"]["signal_delay_s"] > 0
    launcher = ray["hydra"]["launcher"]["ray"]
    assert launcher["init"]["runtime_env"]["env_vars"]["HEADDYN_CACHE"] == "${headdyn_cache:}"


@needs("submitit")
def test_slurm_where_there_is_none_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="cluster=slurm needs SLURM, and there is no sbatch here"):
        make_plan(["-m", "mode=smoke", "seed=0,1", "cluster=slurm"])


@needs("ray")
def test_ray_is_asked_for_gpus_or_told_that_there_are_none():
    with pytest.raises(ValueError, match="num_gpus=1, or device=cpu"):
        make_plan(["-m", "mode=smoke", "seed=0,1", "cluster=ray"])
    for enough in ("device=cpu", "hydra.launcher.ray.remote.num_gpus=1"):
        assert len(make_plan(["-m", "mode=smoke", "seed=0,1", "cluster=ray", enough]).jobs) == 2


def test_the_skypilot_task_runs_a_command_that_can_be(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))
    task = yaml.safe_load((Path(__file__).parents[1] / "docs" / "skypilot.yaml").read_text())
    assert set(task) <= {"name", "resources", "file_mounts", "setup", "run", "workdir", "envs"}
    (line,) = (line for line in task["run"].splitlines() if line.startswith("headdyn run"))
    plan = make_plan(plain_arguments(line.split()[2:]))
    assert len(plan.jobs) == 8 and {job.device for job in plan.jobs} == {"cuda"}
