"""A sweep's jobs side by side on this machine: worker processes, one for each share of its cores, or one a GPU.

A worker does one job after another, so that torch is imported once a worker, and sends its log and progress through a
pipe to the command's own process, which gives out the jobs and shows one line a job. What a job computes depends on the
number of threads in its last bits (sums are split otherwise), never on how many workers there are.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Self

from headdyn.config import RunConfig
from headdyn.core.stopping import SIGNALS, stop_on_signals
from headdyn.core.store import StageInterruptedError
from headdyn.data.threads import usable_cores
from headdyn.models.settings import MiniQwen3, Pretrained
from headdyn.report.board import Board

log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """Work for a worker: the function of headdyn.pipeline to call, with what.

    `stages` name what it builds that other tasks may stand on; tasks with one in common are not begun together while
    there is another to begin.
    """

    name: str
    function: str
    arguments: tuple[Any, ...]
    stages: tuple[str, ...] = ()


@dataclass
class Worker:
    """A worker process, the environment it was started with, and the task it is doing."""

    environment: Mapping[str, str]
    process: subprocess.Popen[bytes]
    pipe: Connection
    task: Task | None = None

    @classmethod
    def start(cls, environment: Mapping[str, str]) -> Worker:
        ours, theirs = Pipe()
        with _signals_blocked():  # until the worker ignores them: a Ctrl-C would end it while it still imports
            process = subprocess.Popen(
                [sys.executable, "-m", "headdyn.workers", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
                pass_fds=[theirs.fileno()],
            )
        theirs.close()
        return cls(environment, process, ours)


class Workers:
    """The worker processes of a command, started when there is work for them. Use as a context manager around it."""

    def __init__(self, jobs: Sequence[RunConfig]) -> None:
        self.environments = environments(jobs)
        self.workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.dismiss()
        for worker in self.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(timeout=10)

    def dismiss(self) -> None:
        """Have the worker processes end, for which nobody waits yet; there is no more work for them."""
        for worker in self.workers:
            worker.pipe.close()

    def run(self, jobs: Sequence[RunConfig], folder: Path) -> bool:
        """Do every job into its folder below `folder`, those first that others stand on. Returns as `do` does."""
        return self.do([Task(job.name, "run", (job, folder / job.name), shared_stages(job)) for job in in_order(jobs)])

    def do(self, tasks: Sequence[Task]) -> bool:
        """Do the tasks. Returns whether it was asked to stop (SIGINT, SIGTERM).

        One that fails, or whose process dies, leaves the others running. When asked to stop, the tasks under way save
        where they are, and no further one begins; asked twice, the workers are killed.
        """
        waiting, built, stopping = list(tasks), set[str](), False
        with stop_on_signals() as should_stop, Board(len(waiting)) as board:
            try:
                for environment in self.environments[len(self.workers) : len(waiting)]:
                    self.workers.append(Worker.start(environment))
                while waiting or self._busy():
                    for number, worker in enumerate(self.workers):
                        if waiting and worker.task is None:
                            if worker.process.poll() is not None:
                                worker = self.workers[number] = Worker.start(worker.environment)
                            _begin(worker, waiting.pop(self._next(waiting, built)), board)
                    for pipe in wait([worker.pipe for worker in self._busy()], timeout=REFRESH_SECONDS):
                        worker = next(worker for worker in self._busy() if worker.pipe is pipe)
                        stages = worker.task.stages if worker.task else ()
                        if _receive(worker, board):
                            built.update(stages)
                    board.refresh()
                    if should_stop() and not stopping:
                        stopping = True
                        waiting.clear()
                        for worker in self._busy():
                            worker.pipe.send(None)
            except KeyboardInterrupt:
                for worker in self.workers:
                    worker.process.kill()
                return True
        return stopping

    def _busy(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.task is not None]

    def _tasks(self) -> list[Task]:
        return [worker.task for worker in self.workers if worker.task is not None]

    def _next(self, waiting: Sequence[Task], built: set[str]) -> int:
        """The place of the task to begin: the first of those that wait least for what tasks under way are building."""
        under_way = {stage for task in self._tasks() for stage in task.stages} - built
        return min(range(len(waiting)), key=lambda place: len(under_way.intersection(waiting[place].stages)))


def environments(jobs: Sequence[RunConfig]) -> list[dict[str, str]]:
    """What the environment of each worker adds: its GPU where there are any, else its share of the cores as threads."""
    gpus = [] if jobs[0].device == "cpu" else visible_gpus()
    most = jobs[0].workers or len(jobs)
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[: min(most, len(jobs))]]
    threads = max(job.threads for job in jobs) or int(os.environ.get("OMP_NUM_THREADS", 1))
    at_once = 1 if any(isinstance(job.model, Pretrained) for job in jobs) else usable_cores() // threads
    count = min(len(jobs), jobs[0].workers or max(1, at_once))
    # From all jobs of the command, done or not: a stopped sweep goes on with as many threads, to the same bits.
    share = max(1, usable_cores() // count)
    fitting = max(1, int(available_bytes() // max(memory_of(job) for job in jobs)))
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(share))}] * min(count, fitting)


def memory_of(job: RunConfig) -> float:
    """About what a job's process takes at its peak, to start no more of them than memory holds.

    Measured: 0.5 to 0.8 GiB at 16·64·2·64 (sequences a batch, their length, layers, width), 0.8 to 1.0 GiB at
    32·64·4·128. A checkpoint that comes trained may be of any size, so those are analysed one after another.
    """
    if not isinstance(job.model, MiniQwen3):
        return 2.0 * 2**30
    width = job.model.num_layers * job.model.d_model
    return 0.8 * 2**30 + 300.0 * job.train.batch_size * getattr(job.data, "sequence_length", 0) * width


def visible_gpus() -> list[str]:
    """The numbers of the NVIDIA GPUs that this process may use, found without torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))
    return devices if visible is None else [gpu for gpu in visible.split(",") if gpu and devices]


def available_bytes() -> float:
    """The memory that this machine can still give without swapping; without bound where the system does not say."""
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="utf-8")
        return 1024.0 * int(meminfo.split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError):
        return float("inf")


def shared_stages(job: RunConfig) -> tuple[str, ...]:
    """What a job builds that other jobs may stand on too: its corpus and its training, by what they are made from."""
    settings = job.resolved
    if isinstance(job.model, Pretrained):
        return ()
    model = {key: value for key, value in settings["model"].items() if not key.startswith("revision")}
    if not isinstance(job.model, MiniQwen3):
        return (json.dumps(model, sort_keys=True),)
    parts = [settings[key] for key in ("data", "attention", "data_ordering", "train", "seed", "precision")]
    training = [model, *parts, job.position_enc.train_rotary]
    return (json.dumps(settings["data"], sort_keys=True), json.dumps(training, sort_keys=True))


def in_order(jobs: Sequence[RunConfig]) -> list[RunConfig]:
    """The jobs, those first that build what others stand on: a RoPE training before its DroPE arm."""
    stages: set[str] = set()
    first: list[RunConfig] = []
    others: list[RunConfig] = []
    for job in jobs:
        (others if set(shared_stages(job)[-1:]) & stages else first).append(job)
        stages.update(shared_stages(job))
    return first + others


def _begin(worker: Worker, task: Task, board: Board) -> None:
    worker.task = task
    board.begin(task.name)
    with suppress(OSError):  # of a worker that has just died, which reading its pipe will tell
        worker.pipe.send((task.function, task.arguments))


def _receive(worker: Worker, board: Board) -> bool:
    """One message of a busy worker: what it is at, a line of its log, or how its task ended. Returns if it did."""
    assert worker.task is not None
    name = worker.task.name
    try:
        kind, text = worker.pipe.recv()
    except (EOFError, OSError):
        died = _exit_words(worker.process.wait())
        kind, text = "failed", f"its process died ({died}); the same command tries again"
    if kind == "progress":
        board.progress(name, text)
    elif kind == "log":
        board.log(name, text)
    else:
        board.end(name, kind, text)
        worker.task = None
    return worker.task is None


def _exit_words(code: int) -> str:
    if code < 0:
        out_of_memory = ": was the memory full?" if code == -signal.SIGKILL else ""
        return f"{signal.Signals(-code).name}{out_of_memory}"
    return f"exit status {code}"


# -- in a worker ------------------------------------------------------------------------------------------------------


class _Reports(logging.Handler):
    """Takes the worker's log and progress to the command's own process, whatever thread they come from."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self.pipe, self.sending = pipe, threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        self.send("log", record.getMessage())

    def send(self, kind: str, text: str) -> None:
        with self.sending, suppress(OSError):  # the command's own process is gone: the job stops at its next safe point
            self.pipe.send((kind, text))


def serve(pipe: Connection) -> None:
    """Do the tasks that come through the pipe until it is closed; whatever comes during one asks it to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the command's own process says when to stop
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    from headdyn import pipeline
    from headdyn.training import progress_line

    reports = _Reports(pipe)
    logging.basicConfig(level=logging.INFO, handlers=[reports])
    progress_line.relay = partial(reports.send, "progress")
    with suppress(EOFError, OSError):
        while True:
            message = pipe.recv()
            if message is None:
                continue  # it asked a task to stop that had just ended
            function, arguments = message
            try:
                getattr(pipeline, function)(*arguments, should_stop=pipe.poll)
                reports.send("done", "")
            except (KeyboardInterrupt, StageInterruptedError):
                reports.send("stopped", "the same command continues from here")
            except Exception as error:
                reports.send("failed", f"{type(error).__name__}: {error}")


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process that is started inside begins with these signals blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
