"""A sweep's jobs side by side: the same results, in an order in which nothing waits that need not, and stoppable."""

import errno
import os
import signal
import subprocess
import time

import pytest

from headdyn.core.run_folder import RunRecord
from headdyn.plan import make_plan
from headdyn.run import main
from headdyn.workers import Task, Workers, environments, in_order, shared_stages
from tests.commands import TINY, command, computed, environment, only, run

SWEEP = ("-m", *TINY, "analysis=[loss,attention]", "ordering=shuffled,topic", "position_enc=rope,drope")
BOTH = "workers=2"
LONG = ("-m", *TINY, "analysis=[loss]", "train.steps=3000", "train.resume_every_seconds=0.05", "seed=0,1", BOTH)


def jobs(*arguments):
    return make_plan(["-m", "mode=smoke", *arguments]).jobs


def test_jobs_that_others_stand_on_come_first_and_their_stages_are_told_apart():
    arms = jobs("attention=mha,gqa", "position_enc=rope,drope,nope", "seed=0,1")
    ordered = [(j.factors["attention"], j.factors["position_enc"], j.seed) for j in in_order(arms)]
    assert {position for _, position, _ in ordered[:8]} == {"rope", "nope"}
    assert {position for _, position, _ in ordered[8:]} == {"drope"}
    corpora = {shared_stages(job)[0] for job in arms}
    trainings = {shared_stages(job)[1] for job in arms}
    assert len(corpora) == 2  # each seed draws its own languages
    assert len(trainings) == 2 * 2 * 2  # rope and drope of a seed share one, nope has its own


def test_the_snapshots_of_a_training_share_it_and_public_checkpoints_share_nothing():
    snapshots = jobs("model=trained", "model.revisions=snapshots")
    assert len(snapshots) == 6 and len({shared_stages(job) for job in snapshots}) == 1
    arguments = ("model=huggingface", "model.name=a", "data=comparisons", "analysis=[circuits]")
    public = jobs(*arguments, "model.revisions='step1,step2'")
    assert [shared_stages(job) for job in public] == [(), ()]


@pytest.mark.parametrize(
    ("threads", "wanted", "cores", "count", "share"),
    [(0, 0, 2, 2, "1"), (2, 0, 2, 1, "2"), (0, 1, 2, 1, "2"), (0, 0, 16, 4, "4"), (1, 0, 3, 3, "1"), (0, 3, 2, 3, "1")],
)
def test_workers_share_the_cores(monkeypatch, threads, wanted, cores, count, share):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("headdyn.workers.usable_cores", lambda: cores)
    monkeypatch.setattr("headdyn.workers.visible_gpus", list)
    monkeypatch.setattr("headdyn.workers.available_bytes", lambda: 64e9)
    four = jobs("seed=0,1,2,3", f"threads={threads}", f"workers={wanted}")
    assert environments(four) == [{"OMP_NUM_THREADS": share}] * count
    monkeypatch.setattr("headdyn.workers.available_bytes", lambda: 1.5e9)
    assert environments(four) == [{"OMP_NUM_THREADS": share}]  # fewer at once, and as many threads: the same bits


def test_larger_trainings_take_more_memory_and_checkpoints_that_come_trained_go_one_by_one(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("headdyn.workers.usable_cores", lambda: 8)
    monkeypatch.setattr("headdyn.workers.available_bytes", lambda: 20 * 2**30)
    four = "seed=0,1,2,3"
    counts = [len(environments(make_plan(["-m", f"mode={mode}", four]).jobs)) for mode in ("laptop", "sanity", "run1")]
    assert counts == [4, 3, 1]
    arguments = ("model=huggingface", "model.name=a", "data=comparisons", "analysis=[circuits]", four)
    assert environments(jobs(*arguments)) == [{"OMP_NUM_THREADS": "8"}]
    assert len(environments(jobs(*arguments, "workers=2"))) == 2  # as asked for


def test_a_worker_a_gpu(monkeypatch):
    monkeypatch.setattr("headdyn.workers.visible_gpus", lambda: ["0", "3"])
    assert environments(jobs("seed=0,1,2")) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}]
    assert "CUDA_VISIBLE_DEVICES" not in environments(jobs("seed=0,1,2", "device=cpu"))[0]


def test_the_next_task_is_one_that_need_not_wait():
    workers = Workers(jobs("seed=0,1"))
    waiting = [Task("b", "run", (), ("corpus", "x")), Task("c", "run", (), ("corpus", "y"))]
    workers.workers = [type("Busy", (), {"task": Task("a", "run", (), ("corpus", "x"))})()]
    assert workers._next(waiting, set()) == 1
    assert workers._next(waiting, {"corpus", "x"}) == 0
    workers.workers = []
    assert workers._next(waiting, set()) == 0


def test_one_shape_is_compiled_by_one_worker(monkeypatch, tmp_path):
    """The second training with that shape begins when the first has ended, where there is other work until then."""
    monkeypatch.setattr(Workers, "do", lambda self, tasks: tasks)
    arguments = ("-m", "mode=laptop", "attention=mha,gqa", "ordering=shuffled,topic", "train.compile=")
    for compiled, begun in (("true", ["mha", "gqa"]), ("false", ["mha", "mha"])):
        sweep = make_plan([*arguments[:-1], arguments[-1] + compiled]).jobs
        workers = Workers(sweep)
        waiting = list(workers.run(sweep, tmp_path))
        first = waiting.pop(0)
        workers.workers = [type("Busy", (), {"task": first})()]
        second = waiting[workers._next(waiting, set())]
        assert [task.arguments[0].factors["attention"] for task in (first, second)] == begun


@pytest.mark.slow
def test_side_by_side_gives_the_bits_of_one_after_the_other(tmp_path):
    for name, workers in (("alone", "workers=1"), ("both", BOTH)):
        (tmp_path / name).mkdir()
        done = run(tmp_path / name, *SWEEP, workers, timeout=300)
        assert done.returncode == 0, done.stderr
        assert "\n4/4 " in done.stderr
    alone, both = computed(tmp_path / "alone"), computed(tmp_path / "both")
    assert len(both) > 4 * 3 + 2 * 4 and alone.keys() == both.keys()
    assert [name for name in both if alone[name] != both[name]] == []


def wait_for(condition, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def states(root) -> list:
    return list((root / "cache" / "training").glob("*.partial/resume/state*.pt"))


def begin(root) -> subprocess.Popen:
    process = subprocess.Popen(
        command(*LONG), env=environment(root), cwd=root, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: len({path.parts[-3] for path in states(root)}) == 2)  # both are training
    return process


@pytest.mark.slow
def test_ctrl_c_stops_every_worker_at_a_safe_point(tmp_path):
    process = begin(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to the workers too
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.count("stopped after") == 2
    statuses = {RunRecord.read(path).status for path in only(tmp_path / "out" / "multirun").iterdir() if path.is_dir()}
    assert statuses == {"interrupted"} and len(states(tmp_path)) >= 2


@pytest.mark.slow
def test_workers_of_a_killed_command_end_by_themselves_and_one_that_dies_fails_its_job_alone(tmp_path):
    process = begin(tmp_path)
    children = children_of(process.pid)
    os.kill(children[0], signal.SIGKILL)
    line = next(line for line in process.stderr if "its process died" in line)
    assert "SIGKILL: was the memory full?" in line
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not [pid for pid in children if is_alive(pid)], 30)
    assert len(children) == 2


def children_of(pid: int) -> list[int]:
    """The worker processes of a command, oldest first."""
    listing = subprocess.run(
        ["ps", "-ww", "-o", "pid=", "-o", "args=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(line.split()[0]) for line in listing.stdout.splitlines() if "headdyn.workers" in line]


def is_alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_a_disk_that_fills_up_is_told_in_one_line_after_the_sweep_too(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("headdyn.finish.finish", full)
    monkeypatch.setattr(Workers, "run", lambda self, jobs, folder: False)
    assert main(["-m", *TINY, "seed=0,1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("headdyn: the sweep has no report: no space left for")
