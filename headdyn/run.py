"""The entrypoint: `python -m headdyn.run [-m] group=option key=value …`.

A command is checked whole before anything starts: every job of a sweep is composed and validated, within seconds and
without torch. Then Hydra launches the jobs, and when it returns, failed jobs or not, the sweep's report is written.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig, OmegaConf

from headdyn.config import ConfigError, RunConfig, check, unknown_key
from headdyn.core.store import require_writable

HYDRA_VERSION = "1.3"
PACKAGED = Path(__file__).parent / "conf"
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"


class JobError(CompactHydraException):
    """A job's failure in one line; Hydra prints these without a traceback, which stands in the run's log.txt."""


@dataclass(frozen=True)
class Plan:
    """A command's jobs, all of them valid. `sweep_folder` is None for a single run."""

    jobs: tuple[RunConfig, ...]
    sweep_folder: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 2 for a command that cannot be, 1 when a job failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    plan = None
    try:
        arguments = one_ordering(arguments)
        if not informational(arguments):
            plan = make_plan(arguments)
    except (ConfigError, HydraException) as error:
        print(f"headdyn: {explain(error, arguments)}", file=sys.stderr)
        return 2
    sys.argv = [sys.argv[0], *arguments]
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
    if plan is not None and plan.sweep_folder is not None:
        from headdyn.sweep import finish

        complete = finish(plan.sweep_folder, plan.jobs, arguments)
        status = status or (0 if complete else 1)
    return status


def job(cfg: DictConfig) -> None:
    """One run, called by whichever launcher Hydra uses."""
    choices = HydraConfig.get().runtime.choices
    folder = Path(HydraConfig.get().runtime.output_dir)
    config = check(cfg, choices)

    from headdyn.pipeline import run

    OmegaConf.save(cfg, folder / "config.yaml", resolve=True)
    try:
        run(config, folder)
    except Exception as error:
        raise JobError(
            f"{config.name} failed: {type(error).__name__}: {error}\n(traceback in {folder}/log.txt)"
        ) from error


def one_ordering(arguments: Sequence[str]) -> list[str]:
    """Spell `ordering=` as `data_ordering=`; ConfigError if both are given, since Hydra would silently take one."""
    short = [a for a in arguments if a.startswith("ordering=")]
    long = [a for a in arguments if a.startswith("data_ordering=")]
    if short and long:
        raise ConfigError(f"{short[0]} and {long[0]} are the same choice; give only one of them")
    return [f"data_{a}" if a.startswith("ordering=") else a for a in arguments]


def informational(arguments: Sequence[str]) -> bool:
    """Whether the command asks Hydra to print something in place of running."""
    args = get_args_parser().parse_args(list(arguments))
    return bool(
        args.help or args.hydra_help or args.cfg or args.info or args.shell_completion or args.experimental_rerun
    )


def make_plan(arguments: Sequence[str]) -> Plan:
    """Compose and check every job of the command. Raises ConfigError or Hydra's own composition errors."""
    args = get_args_parser().parse_args(list(arguments))
    extra = [f"hydra.searchpath=[file://{Path(args.config_dir).absolute()}]"] if args.config_dir else []
    overrides = _overrides(arguments)
    with initialize_config_dir(str(CONF), version_base=HYDRA_VERSION, job_name="headdyn"):
        first = BasicSweeper.split_arguments(overrides, None)[0][0]
        base = compose("config", overrides=[*first, *extra], return_hydra_config=True)
        checked = check(base, base.hydra.runtime.choices)  # a bad value answers before a large sweep is composed
        sweeper = base.hydra.sweeper
        swept_by_preset = dict(sweeper.get("params") or {})
        if not (args.multirun or (base.hydra.mode is not None and base.hydra.mode.name == "MULTIRUN")):
            several = [o.input_line for o in overrides if o.is_sweep_override()]
            if several:
                raise ConfigError(f"{several[0]} names several values; add -m to run them all")
            if swept_by_preset:
                raise ConfigError(
                    f"experiment={base.hydra.runtime.choices.experiment} sweeps {', '.join(swept_by_preset)}; "
                    "add -m to run all of its conditions"
                )
            _require_output(Path(str(base.hydra.run.dir)))
            return Plan((checked,), None)
        if not sweeper._target_.endswith("BasicSweeper"):
            raise ConfigError(
                f"hydra/sweeper={base.hydra.runtime.choices['hydra/sweeper']} is not supported; use basic"
            )
        params = [f"{key}={value}" for key, value in swept_by_preset.items()]
        every = OverridesParser.create().parse_overrides([*params, *args.overrides])
        batches = BasicSweeper.split_arguments(every, None)
        composed = [compose("config", overrides=[*job, *extra], return_hydra_config=True) for job in batches[0]]
        jobs = tuple(check(cfg, cfg.hydra.runtime.choices) for cfg in composed)
        swept = [o.get_key_element() for o in overrides if o.is_sweep_override()]
        os.environ["HEADDYN_SWEEP"] = sweep_name(jobs, [key for key in swept if key not in swept_by_preset])
        folder = Path(str(OmegaConf.select(base, "hydra.sweep.dir"))).absolute()
        _require_output(folder)
        return Plan(jobs, folder)


def _require_output(folder: Path) -> None:
    """Refuse a folder that cannot be written before any job of the command starts. Raises ConfigError."""
    try:
        require_writable(folder, "output folder", "HEADDYN_OUT (or hydra.run.dir, hydra.sweep.dir)")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def sweep_name(jobs: Sequence[RunConfig], swept: Sequence[str]) -> str:
    """The sweep folder's name, readable and stable: preset or swept keys, mode, and a hash of the set of runs."""
    factors = jobs[0].factors
    what = str(factors.get("experiment") or "-".join(key.removeprefix("data_") for key in swept) or "runs")
    digest = hashlib.sha256("".join(sorted(job.hash + job.name for job in jobs)).encode()).hexdigest()[:6]
    protocol = () if factors["protocol"] == "corrected" else (f"{factors['protocol']}_protocol",)
    return "_".join((what, str(factors["mode"]), *protocol, digest))


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """A composition error in one line that says what can be done; Hydra's own hint suggests appending unknown keys."""
    text = str(error)
    refused = re.match(r"Could not override '([^']+)'", text)
    if refused and "not in struct" in f"{text}{error.__cause__}":
        key = refused[1]
        others = [
            str(o.input_line) for o in _overrides(arguments) if o.get_key_element() != key and not o.is_sweep_override()
        ]
        with initialize_config_dir(str(CONF), version_base=HYDRA_VERSION, job_name="headdyn"):
            return unknown_key(key, _keys(compose("config", overrides=others)))
    if isinstance(error, ConfigError):
        return text
    cause = f"\n{error.__cause__}" if error.__cause__ is not None and str(error.__cause__) not in text else ""
    return f"{text}{cause}".strip()


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration."""
    keys = []
    for name in map(str, node):
        keys.append(f"{prefix}{name}")
        child = node._get_node(name)
        if isinstance(child, DictConfig):
            keys += _keys(child, f"{prefix}{name}.")
    return keys


def _overrides(arguments: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(get_args_parser().parse_args(list(arguments)).overrides)


if __name__ == "__main__":
    # Under its real name, so that launchers which pickle the job do so by reference.
    from headdyn.run import main as entry

    sys.exit(entry())
