"""What a command line means: the jobs it names, every one composed and checked before anything starts. No torch."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from headdyn.config import RunConfig, check
from headdyn.core.records import log_spaced
from headdyn.core.settings import ConfigError, unknown_key
from headdyn.core.store import require_writable
from headdyn.models.revisions import is_pythia, parse
from headdyn.models.settings import MiniQwen3, Pretrained, Trained

HYDRA_VERSION = "1.3"
PACKAGED = Path(__file__).parent / "conf"
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"


@dataclass(frozen=True)
class Plan:
    """A command's jobs, all of them valid, and the folder of the sweep or of the single run."""

    jobs: tuple[RunConfig, ...]
    folder: Path
    is_sweep: bool
    arguments: tuple[str, ...]  # as Hydra gets them: the revisions of a series spelt out


def make_plan(arguments: Sequence[str]) -> Plan:
    """Compose and check every job of the command. Raises ConfigError or Hydra's own composition errors."""
    args = get_args_parser().parse_args(list(arguments))
    extra = [f"hydra.searchpath=[file://{Path(args.config_dir).absolute()}]"] if args.config_dir else []
    overrides = _overrides(arguments)

    def composed(job: Sequence[str]) -> tuple[DictConfig, RunConfig]:
        cfg = compose("config", overrides=[*job, *extra], return_hydra_config=True)
        return cfg, check(cfg, cfg.hydra.runtime.choices, job)

    with initialize_config_dir(str(CONF), version_base=HYDRA_VERSION, job_name="headdyn"):
        # The first job alone: a bad value answers before a large sweep is composed.
        base, checked = composed(BasicSweeper.split_arguments(overrides, None)[0][0])
        swept_by_preset = dict(base.hydra.sweeper.get("params") or {})
        revisions = _revisions(checked)
        if not (args.multirun or (base.hydra.mode is not None and base.hydra.mode.name == "MULTIRUN")):
            _require_one_job(base, checked, overrides, swept_by_preset, revisions)
            folder = Path(str(base.hydra.run.dir)).absolute()
            _require_output(folder)
            return Plan((checked,), folder, False, tuple(arguments))
        if not base.hydra.sweeper._target_.endswith("BasicSweeper"):
            raise ConfigError(
                f"hydra/sweeper={base.hydra.runtime.choices['hydra/sweeper']} is not supported; use basic"
            )
        if revisions:
            said = [o.input_line for o in overrides if o.get_key_element() == "model.revision"]
            if said:
                raise ConfigError(
                    f"{said[0]} and model.revisions={getattr(checked.model, 'revisions', None)} both name checkpoints; "
                    "give one of them (model.revisions=null drops a preset's)"
                )
            arguments = [*arguments, f"model.revision={','.join(revisions)}"]
        params = [f"{key}={value}" for key, value in swept_by_preset.items()]
        every = OverridesParser.create().parse_overrides(
            [*params, *get_args_parser().parse_args(list(arguments)).overrides]
        )
        jobs = tuple(composed(job)[1] for job in BasicSweeper.split_arguments(every, None)[0])
        swept = [o.get_key_element() for o in overrides if o.is_sweep_override()]
        os.environ["HEADDYN_SWEEP"] = sweep_name(jobs, [key for key in swept if key not in swept_by_preset])
        folder = Path(str(OmegaConf.select(base, "hydra.sweep.dir"))).absolute()
        _require_output(folder)
        return Plan(jobs, folder, True, tuple(arguments))


def _revisions(config: RunConfig) -> tuple[str, ...]:
    """The checkpoints that `model.revisions` names, for a sweep to run one by one. Raises ConfigError."""
    model, revisions = config.model, getattr(config.model, "revisions", None)
    if revisions is None:
        return ()
    try:
        if isinstance(model, Trained):
            return tuple(f"step{step}" for step in log_spaced(config.train.steps, config.train.snapshots))
        if isinstance(model, Pretrained):
            return parse(revisions, pythia=is_pythia(model.name), main=model.allow_main)
        assert not isinstance(model, MiniQwen3)
        return model.series(revisions)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _require_one_job(
    base: DictConfig,
    checked: RunConfig,
    overrides: Sequence[Override],
    swept_by_preset: Mapping[str, str],
    revisions: Sequence[str],
) -> None:
    """Refuse a command without -m that names several runs, of which Hydra would silently do one."""
    several = [o.input_line for o in overrides if o.is_sweep_override()]
    if several:
        raise ConfigError(f"{several[0]} names several values; add -m to run them all")
    preset = f"experiment={base.hydra.runtime.choices.experiment}"
    if swept_by_preset:
        raise ConfigError(f"{preset} sweeps {', '.join(swept_by_preset)}; add -m to run all of its conditions")
    if revisions:
        raise ConfigError(
            f"model.revisions names {len(revisions)} checkpoints; add -m to run them all, or choose one with "
            f"model.revisions=null model.revision={revisions[-1]}"
        )
    for name, choice in checked.analysis.items():
        if "series" in choice.needs:
            raise ConfigError(
                f"analysis={name} compares checkpoints; add -m and model.revisions=... (original_11, say)"
            )


def _require_output(folder: Path) -> None:
    """Refuse a folder that cannot be written, before any job starts. Raises ConfigError."""
    try:
        require_writable(folder, "output folder", "HEADDYN_OUT (or hydra.run.dir, hydra.sweep.dir)")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def one_ordering(arguments: Sequence[str]) -> list[str]:
    """Spell `ordering=` as `data_ordering=`; ConfigError if both are given, since Hydra would silently take one."""
    short = [a for a in arguments if a.startswith("ordering=")]
    long = [a for a in arguments if a.startswith("data_ordering=")]
    if short and long:
        raise ConfigError(f"{short[0]} and {long[0]} are the same choice; give only one of them")
    return [f"data_{a}" if a.startswith("ordering=") else a for a in arguments]


def one_series(arguments: Sequence[str]) -> list[str]:
    """Quote `model.revisions=step1000,step2000` and `model.kept=…`: one list, where Hydra would sweep over two of one
    each."""
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        one = key in ("model.revisions", "model.kept") and "," in value and not {"'", '"'} & set(value)
        quoted.append(f"{key}='{value}'" if one else argument)
    return quoted


def informational(arguments: Sequence[str]) -> bool:
    """Whether the command asks Hydra to print something in place of running."""
    args = get_args_parser().parse_args(list(arguments))
    return bool(
        args.help or args.hydra_help or args.cfg or args.info or args.shell_completion or args.experimental_rerun
    )


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
