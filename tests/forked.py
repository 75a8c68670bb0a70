"""Python processes forked off one that has imported torch and headdyn already, for tests of commands.

Such a process has an environment, working folder, output, signals and exit status of its own. Unlike a fresh
interpreter's its modules are there already, so tests about importing, and about signals to a command, start a real one.
"""

from __future__ import annotations

import atexit
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_context: Any = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preloaded"])


class Forked:
    """As much of `subprocess.Popen` as headdyn.workers and `run` use, for `python -m MODULE …` and `python -c CODE`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        outputs: Sequence[Path] = (),
        pass_fds: Sequence[int] = (),
    ) -> None:
        assert command[0] == sys.executable and command[1] in ("-m", "-c")
        passed = {fd: Connection(os.dup(fd)) for fd in pass_fds}
        arguments = (list(command[1:]), dict(env), str(cwd or Path.cwd()), [str(path) for path in outputs], passed)
        self.process = _context.Process(target=_become, args=arguments, daemon=bool(pass_fds))
        self.process.start()
        self.pid, self.kill = self.process.pid, self.process.kill

    def poll(self) -> int | None:
        """The exit status, negative for a signal, as subprocess gives it; None while it runs."""
        return self.process.exitcode  # type: ignore[no-any-return]

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked command", timeout or 0.0)
        return self.process.exitcode  # type: ignore[no-any-return]


FORKING = types.SimpleNamespace(Popen=Forked, TimeoutExpired=subprocess.TimeoutExpired)  # for headdyn.workers


def run(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """The command, forked, to its end. After `timeout` seconds it is killed, and TimeoutExpired raised."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / "stdout", Path(folder) / "stderr"]
        process = Forked(command, env=env, cwd=cwd, outputs=outputs)
        try:
            status = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, status, *(path.read_text(encoding="utf-8") for path in outputs))


def _become(
    arguments: list[str], environment: dict[str, str], folder: str, outputs: list[str], passed: dict[int, Connection]
) -> None:
    """Go on as `python ARGUMENTS`, in the process that has just been forked."""
    import torch
    import wandb.sdk.data_types._private as wandb_media

    import headdyn.workers

    global _context
    _context = multiprocessing.get_context("fork")  # workers of this command have no more to import
    headdyn.workers.subprocess = FORKING  # type: ignore[attr-defined]
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    for number, pipe in passed.items():
        os.dup2(pipe.fileno(), number, inheritable=False)
    for path in Path("/dev/fd").iterdir():  # ends of other workers' pipes, which end when the last copy is closed
        if int(path.name) not in {0, 1, 2, *passed}:
            with suppress(OSError):
                os.close(int(path.name))
    resource_tracker._resource_tracker = resource_tracker.ResourceTracker()  # type: ignore[attr-defined]  # it was closed too
    os.environ.clear()
    os.environ.update(environment)
    if "huggingface_hub.constants" in sys.modules:  # it reads the environment when it is imported
        importlib.reload(sys.modules["huggingface_hub.constants"])
    wandb_media.MEDIA_TMP.name = tempfile.mkdtemp("wandb-media")  # else the first to end removes it for all
    os.chdir(folder)
    first = [folder, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:] = [*first, *(entry for entry in sys.path if entry not in first)]
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    warnings.filterwarnings("ignore", "'headdyn.* found in sys.modules", RuntimeWarning)
    sys.argv = arguments[1:]
    try:
        if arguments[0] == "-m":
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv[0] = "-c"
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()  # which the end of a forked process leaves out
