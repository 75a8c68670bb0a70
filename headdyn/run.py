"""The command line: `python -m headdyn.run [-m] group=option key=value …`.

Before anything starts, every job of a command is composed and checked, within seconds and without torch.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException

from headdyn.api import do, plan_of
from headdyn.composition import explain, informational, plain_arguments
from headdyn.core.settings import ConfigError
from headdyn.launch import Obstacle, by_hydra
from headdyn.plan import remove_empty_folders


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of this process. Returns the exit status.

    It is 0, or 1 if a job failed or this machine can do none, 2 if the command is invalid, 130 if it was stopped.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if "--repeat" in arguments:
            return _repeat(arguments)
        command = [argument for argument in arguments if argument != "--dry-run"]
        if informational(command):
            return _printed_by_hydra(command)
        if "--dry-run" in arguments:
            return _dry_run(command)
        return do(command)[1]
    except Obstacle as obstacle:
        print(f"headdyn: {obstacle}", file=sys.stderr)
        return 1
    except (ConfigError, HydraException) as error:
        print(f"headdyn: {explain(error, arguments)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before any job began; a sweep under way stops by itself
        print("headdyn: interrupted", file=sys.stderr)
        return 130


def _printed_by_hydra(command: Sequence[str]) -> int:
    """Let Hydra print `--help`, `--info`, `--cfg` and the like. Returns the exit status. Raises ConfigError."""
    try:
        return by_hydra(plain_arguments(command))
    except ValueError as error:
        raise ConfigError(explain(error, command)) from error


def _dry_run(command: Sequence[str]) -> int:
    """`--dry-run`: print what the command would do. Raises ConfigError."""
    from headdyn.estimate import dry_run

    plan = plan_of(command)
    dry_run(plan)
    remove_empty_folders(plan)
    return 0


def _repeat(arguments: Sequence[str]) -> int:
    """`--repeat FOLDER`: repeat a recorded run. Returns 0 if all its results are the same to the bit, else 1.

    Raises ConfigError, and Obstacle if the repeat fails.
    """
    from headdyn.repeat import plan_repeat, repeat

    if len(arguments) != 2 or arguments[0] != "--repeat":
        raise ConfigError("--repeat takes one run's folder and nothing else: --repeat multirun/SWEEP/RUN")
    config, record = plan_repeat(Path(arguments[1]))
    try:
        return 0 if repeat(config, record, Path(os.environ.get("HEADDYN_OUT") or ".") / "outputs") else 1
    except Exception as error:  # for example, a text or a device is missing; the repeat's log.txt has the traceback
        raise Obstacle(f"--repeat {arguments[1]}: {type(error).__name__}: {error}") from error


if __name__ == "__main__":
    # Imported under its real name, so that launchers can pickle the job by reference.
    from headdyn.run import main as entry

    sys.exit(entry())
