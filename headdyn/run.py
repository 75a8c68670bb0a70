"""The entrypoint: `python -m headdyn.run [-m] group=option key=value …`.

A command is checked whole before anything starts: every job of a sweep is composed and validated, within seconds and
without torch. Then Hydra launches the jobs, and when it returns, failed jobs or not, the sweep's report is written.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig, OmegaConf

from headdyn.config import RunConfig, check
from headdyn.core.settings import ConfigError
from headdyn.models.settings import Pretrained
from headdyn.plan import CONF, HYDRA_VERSION, Plan, explain, informational, make_plan, plain_arguments


class JobError(CompactHydraException):
    """A job's failure in one line; Hydra prints these without a traceback, which stands in the run's log.txt."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 2 for a command that cannot be, 1 when a job failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    plan = None
    try:
        arguments = plain_arguments(arguments)
        if not informational(arguments):
            plan = make_plan(arguments)
    except (ConfigError, HydraException) as error:
        print(f"headdyn: {explain(error, arguments)}", file=sys.stderr)
        return 2
    if plan is not None:
        impossible = _unreachable(plan.jobs) or _not_on_this_machine(plan)
        if impossible:
            for made in (plan.folder, plan.folder.parent):  # by the trial of writing there
                with suppress(OSError):
                    made.rmdir()  # only where it is empty
            print(f"headdyn: {impossible}", file=sys.stderr)
            return 1
    sys.argv = [sys.argv[0], *(arguments if plan is None else plan.arguments)]
    status = 0
    try:
        hydra.main(version_base=HYDRA_VERSION, config_path=str(CONF), config_name="config")(job)()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except HydraException as error:  # from --help or --info, which Hydra leaves to us
        print(f"headdyn: {explain(error, arguments)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        status = 130
    if plan is not None and plan.is_sweep:
        from headdyn.finish import finish

        complete = finish(plan.folder, plan.jobs, arguments)
        status = status or (0 if complete else 1)
    elif plan is not None and status == 0:
        from headdyn.report.terminal import print_run

        print_run(plan.folder)
    return status


def job(cfg: DictConfig) -> None:
    """One run, called by whichever launcher Hydra uses."""
    choices = HydraConfig.get().runtime.choices
    folder = Path(HydraConfig.get().runtime.output_dir)
    config = check(cfg, choices, HydraConfig.get().overrides.task)

    from headdyn.pipeline import run

    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    try:
        run(config, folder)
    except Exception as error:
        raise JobError(
            f"{config.name} failed: {type(error).__name__}: {error}\n(traceback in {folder}/log.txt)"
        ) from error


def _unreachable(jobs: Sequence[RunConfig]) -> str | None:
    """Why a model of the jobs cannot be had at all, asked once a model; a single bad revision fails its own job."""
    if not any(isinstance(job.model, Pretrained) for job in jobs):
        return None
    from headdyn.core.store import Store, cache_root
    from headdyn.models.checkpoints.files import require_reachable
    from headdyn.models.checkpoints.hub import CheckpointError

    asked = set()
    for job in jobs:
        model = job.model
        if isinstance(model, Pretrained) and model.name not in asked:
            asked.add(model.name)
            try:
                require_reachable(model.name, model.revision, Store(cache_root()))
            except CheckpointError as error:
                return str(error)
    return None


def _not_on_this_machine(plan: Plan) -> str | None:
    """Why this machine cannot do what a job asks of it. Of jobs that a launcher takes elsewhere it is not asked."""
    asked = {(job.device, job.precision, job.threads) for job in plan.jobs if job.device == "cuda"}
    if not asked or any(argument.startswith(("cluster=", "hydra/launcher=")) for argument in plan.arguments):
        return None
    from headdyn.core import machine

    try:
        for choice in asked:
            machine.resolve(*choice)
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    # Under its real name, so that launchers which pickle the job do so by reference.
    from headdyn.run import main as entry

    sys.exit(entry())
