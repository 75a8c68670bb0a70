"""Worker processes that do the jobs of a sweep side by side: one for each GPU, or for each share of the cores.

A worker does one job after another, so it imports torch only once. It sends its log and progress through a pipe to the
command's process, which hands out the jobs and shows one line for each job at work. The number of threads changes the
last bits of what a job computes (sums are split differently); the number of workers does not.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, Self

from headdyn.config import RunConfig
from headdyn.core.stopping import SIGNALS, stop_on_signals
from headdyn.core.store import StageInterruptedError
from headdyn.core.threads import usable_cores
from headdyn.models.settings import MiniQwen3, Pretrained
from headdyn.report.board import Board

log = logging.getLogger(__name__)

REFRESH_SECONDS = 0.2


@dataclass(frozen=True)
class Task:
    """Work for a worker: a function of headdyn.pipeline and its arguments.

    `stages` names what the task builds and other tasks may need too: stages and the compiled training step. The task
    that shares the fewest of them with tasks at work begins first, so that workers do not build the same thing at once.
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
        our_end, worker_end = Pipe()
        # Signals stay blocked until the worker itself ignores them; else Ctrl-C would end it while it imports.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "headdyn.workers", str(worker_end.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
                pass_fds=[worker_end.fileno()],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        worker_end.close()
        return cls(environment, process, our_end)


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
        """Tell the worker processes to end, without waiting for them."""
        for worker in self.workers:
            worker.pipe.close()

    def run(self, jobs: Sequence[RunConfig], folder: Path) -> bool:
        """Do every job in its folder below `folder`, beginning with those that others need. Returns as `do` does."""
        return self.do(
            [
                Task(job.name, "run", (job, folder / job.name), (*shared_stages(job), *_compiled(job)))
                for job in in_order(jobs)
            ]
        )

    def do(self, tasks: Sequence[Task]) -> bool:
        """Do the tasks. Returns whether a signal (SIGINT, SIGTERM) asked to stop.

        If a task fails, or its process dies, the others go on. At the first signal the tasks at work save their state,
        and no other begins; at the second one the workers are killed.
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

    def _next(self, waiting: Sequence[Task], built: set[str]) -> int:
        """The index of the task to begin: the first of those that share the fewest stages with tasks at work."""
        under_way = {stage for worker in self.workers if worker.task for stage in worker.task.stages} - built
        return min(range(len(waiting)), key=lambda place: len(under_way.intersection(waiting[place].stages)))


def environments(jobs: Sequence[RunConfig]) -> list[dict[str, str]]:
    """The environment variables of each worker: its GPU, or, without GPUs, its share of the cores as threads."""
    gpus = [] if jobs[0].device == "cpu" else visible_gpus()
    limit = jobs[0].workers or len(jobs)
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[: min(limit, len(jobs))]]
    threads = max(job.threads for job in jobs) or int(os.environ.get("OMP_NUM_THREADS", 1))
    at_once = 1 if any(isinstance(job.model, Pretrained) for job in jobs) else usable_cores() // threads
    count = min(len(jobs), jobs[0].workers or max(1, at_once))
    # Counted over all jobs of the command, done or not: a continued sweep has as many threads and the same results.
    threads_each = max(1, usable_cores() // count)
    fitting = max(1, int(available_bytes() // max(memory_of(job) for job in jobs)))
    return [{"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_each))}] * min(count, fitting)


def memory_of(job: RunConfig) -> float:
    """The approximate peak memory of a job's process in bytes, by which the number of workers is limited.

    Measured: 0.5 to 0.8 GiB at 16·64·2·64 (batch, sequence length, layers, width), 0.8 to 1.0 GiB at 32·64·4·128.
    Downloaded checkpoints may be of any size; `environments` has them analysed one after another.
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
    """The memory, in bytes, that this machine can give without swapping; infinite where the system does not tell."""
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="utf-8")
        return 1024.0 * int(meminfo.split("MemAvailable:")[1].split()[0])
    except (OSError, IndexError):
        return float("inf")


def shared_stages(job: RunConfig) -> tuple[str, ...]:
    """The stages of a job that other jobs may need too, corpus and training, each named by its settings."""
    settings = job.resolved
    if isinstance(job.model, Pretrained):
        return ()
    model = {key: value for key, value in settings["model"].items() if not key.startswith("revision")}
    if not isinstance(job.model, MiniQwen3):
        return (json.dumps(model, sort_keys=True),)
    parts = [settings[key] for key in ("data", "attention", "data_ordering", "train", "seed", "precision")]
    training = [model, *parts, job.position_enc.train_rotary]
    return (json.dumps(settings["data"], sort_keys=True), json.dumps(training, sort_keys=True))


def _compiled(job: RunConfig) -> tuple[str, ...]:
    """The training step that this job compiles, named by its shape; two jobs at once would compile it twice."""
    if not (isinstance(job.model, MiniQwen3) and job.train.compile):
        return ()
    groups, length = [job.resolved[key] for key in ("model", "attention")], getattr(job.data, "sequence_length", 0)
    return (json.dumps([*groups, job.position_enc.train_rotary, job.train.batch_size, length], sort_keys=True),)


def in_order(jobs: Sequence[RunConfig]) -> list[RunConfig]:
    """The first job of each training, then those that reuse it, as a DroPE arm reuses its RoPE parent's."""
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
    with suppress(OSError):  # if the worker has just died, reading its pipe will show that
        worker.pipe.send((task.function, task.arguments))


def _receive(worker: Worker, board: Board) -> bool:
    """Receive a busy worker's message: progress, a line of log, or the end of its task. Returns whether it ended."""
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
    """Sends the worker's log and progress, from all of its threads, to the command's process."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self.pipe, self.sending = pipe, threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        self.send("log", record.getMessage())

    def send(self, kind: str, text: str) -> None:
        with self.sending, suppress(OSError):  # if the command's process is gone, the job stops at its next safe point
            self.pipe.send((kind, text))


def serve(pipe: Connection) -> None:
    """Do the tasks that come through the pipe until it is closed. A message during a task asks the task to stop."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the command's process tells when to stop
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
                continue  # a request to stop, for a task that has just ended
            function, arguments = message
            try:
                getattr(pipeline, function)(*arguments, should_stop=pipe.poll)
                reports.send("done", "")
            except (KeyboardInterrupt, StageInterruptedError):
                reports.send("stopped", "the same command continues from here")
            except Exception as error:
                reports.send("failed", f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
