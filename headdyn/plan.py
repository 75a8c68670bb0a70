"""What a command line means: the jobs it names, every one composed and checked before anything starts. No torch."""

import argparse
import dataclasses
import hashlib
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from headdyn.config import RunConfig, check, is_no_factor, one_line, outcome_names
from headdyn.core.records import log_spaced
from headdyn.core.settings import ConfigError, unknown_key
from headdyn.core.store import require_writable
from headdyn.models.settings import MiniQwen3, Trained
from headdyn.training.settings import processes

Made = TypeVar("Made")

HYDRA_VERSION = "1.3"
RUN_NAME = "${headdyn_run:}"  # in conf/config.yaml: a run's folder is called as the run is
PACKAGED = Path(__file__).parent / "conf"
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"


@dataclass(frozen=True)
class Plan:
    """A command's jobs, all of them valid, and the folder of the sweep or of the single run."""

    jobs: tuple[RunConfig, ...]
    folder: Path
    is_sweep: bool
    launcher: str  # Hydra's launcher that takes the jobs elsewhere; empty where they are done here
    arguments: tuple[str, ...]  # as Hydra gets them: with the revisions of a series and the swept keys spelt out

    def folder_of(self, job: RunConfig) -> Path:
        """Where a job's record is."""
        return self.folder / job.name if self.is_sweep else self.folder


def make_plan(arguments: Sequence[str]) -> Plan:
    """Compose and check every job of the command. Raises ConfigError or Hydra's own composition errors."""
    args = _parsed(arguments)
    for option in ("config_name", "config_path", "package"):
        if getattr(args, option):
            raise ConfigError(
                f"--{option.replace('_', '-')} {getattr(args, option)} is not supported; put a preset into the folder "
                "experiment of your own configuration, and name that folder with --config-dir"
            )
    if args.config_dir and not Path(args.config_dir).is_dir():
        raise ConfigError(f"--config-dir {args.config_dir} is no folder")
    with _composing(arguments) as compose_job:
        overrides = _overrides(arguments)
        for override in overrides:
            _require_ours(override)

        def checked(job: Sequence[str], cfg: DictConfig) -> RunConfig:
            return check(cfg, cfg.hydra.runtime.choices, job)

        # The first job alone: a bad value answers before a large sweep is composed.
        base = compose_job(_jobs(overrides)[0])
        if _needs_data(base):
            arguments = [*arguments, "data=repeated_tokens"]
            overrides = _overrides(arguments)
            base = compose_job(_jobs(overrides)[0])
        first = checked(_jobs(overrides)[0], base)
        _require_content(base, overrides)
        params = dict(base.hydra.sweeper.get("params") or {})
        on_command_line = [o.get_key_element() for o in overrides if o.is_sweep_override()]
        if not (args.multirun or (base.hydra.mode is not None and base.hydra.mode.name == "MULTIRUN")):
            _require_outcomes([first], overrides)
            _require_one_job(first, overrides, params)
            if processes() > 1 and not first.trains:
                raise ConfigError("torchrun shares out a training, and this model comes trained; leave torchrun out")
            return Plan((first,), _output(base.hydra.run.dir), False, "", tuple(arguments))
        _require_our_sweeper(base)
        if processes() > 1:
            raise ConfigError(
                "torchrun trains one run on several devices; leave -m out, or torchrun, for a run on every device"
            )
        launcher = base.hydra.launcher._target_
        elsewhere = "" if launcher.endswith(".BasicLauncher") else launcher
        if revisions := _revisions(first):
            single = [o.input_line for o in overrides if o.get_key_element() == "model.revision"]
            if single:
                raise ConfigError(
                    f"{single[0]} and model.revisions={getattr(first.model, 'revisions', None)} both name checkpoints; "
                    "give one of them (model.revisions=null drops a preset's)"
                )
            arguments = [*arguments, f"model.revision={','.join(revisions)}"]
        swept = [*params, *(key for key in on_command_line if key not in params)]
        if swept:
            arguments = [*arguments, f"swept=[{','.join(swept)}]"]
        preset = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
        jobs = tuple(checked(job, compose_job(job)) for job in _jobs([*preset, *_overrides(arguments)]))
        _require_single_levels(jobs, swept)
        _require_outcomes(jobs, overrides)
        os.environ["HEADDYN_SWEEP"] = sweep_name(jobs, [key for key in on_command_line if key not in params])
        folder = _output(base.hydra.sweep.dir)
        if elsewhere:  # another machine may know neither this folder's variables nor what is current here
            arguments = [*arguments, "hydra.sweep.dir='{}'".format(str(folder).replace("'", r"\'"))]
        return Plan(jobs, folder, True, elsewhere, tuple(arguments))


@contextmanager
def _composing(arguments: Sequence[str]) -> Iterator[Callable[[Sequence[str]], DictConfig]]:
    """Inside, the function that composes a job's configuration from its overrides; a --config-dir is searched too."""
    config_dir = _parsed(arguments).config_dir
    extra = [f"hydra.searchpath=['file://{Path(config_dir).absolute()}']"] if config_dir else []

    def compose_job(job: Sequence[str]) -> DictConfig:
        try:
            return compose("config", overrides=[*job, *extra], return_hydra_config=True)
        except HydraException:
            raise
        except UnicodeDecodeError as error:
            raise ConfigError(f"a YAML file that {' '.join(job)} chooses is no UTF-8 text ({error})") from error
        except AssertionError as error:  # Hydra's own, of a group without a name
            raise ConfigError(f"{' '.join(job)} names no group or key; write group=option or key=value") from error
        except YAMLError as error:
            raise ConfigError("a configuration file is no YAML: " + " ".join(str(error).split())) from error
        except (ValueError, TypeError, AttributeError, OmegaConfBaseException) as error:
            raise ConfigError(_refused(job) or one_line(error)) from error

    with initialize_config_dir(str(CONF), version_base=HYDRA_VERSION, job_name="headdyn"):
        loader = GlobalHydra.instance().config_loader()
        for source in loader.get_sources():
            source.load_config = _once(source.load_config)  # type: ignore[method-assign]
        loader._compose_config_from_defaults_list = _once(  # type: ignore[attr-defined]
            loader._compose_config_from_defaults_list  # type: ignore[attr-defined]
        )
        yield compose_job


def _once(load: Callable[..., Made]) -> Callable[..., Made]:
    """`load`, done once for each first argument: jobs of a sweep share files and choices. Each call gets a copy."""
    copies: dict[str, bytes] = {}

    def load_once(*arguments: Any, **named: Any) -> Made:
        key = repr(next(iter((*arguments, *named.values()))))
        if key not in copies:
            copies[key] = pickle.dumps(load(*arguments, **named))
        return pickle.loads(copies[key])

    return load_once


def _needs_data(cfg: DictConfig) -> bool:
    """Whether a model that comes trained is left with what models are trained on where no data are named."""
    return OmegaConf.select(cfg, "model.kind") not in ("mini_qwen3", "trained") and (
        cfg.hydra.runtime.choices.get("data") == "micro_languages"
        and not any(override.startswith("data=") for override in cfg.hydra.overrides.task)
    )


def _refused(job: Sequence[str]) -> str | None:
    """What to say of an override that Hydra or OmegaConf refuses with a traceback, where that is known."""
    loader = GlobalHydra.instance().config_loader()
    for override in OverridesParser.create().parse_overrides(list(job)):
        key, value = override.get_key_element(), override.value()
        if key.startswith("hydra.sweeper.params"):
            return f"{override.input_line} is for presets; on the command line sweep with -m KEY=VALUE,VALUE"
        options = loader.get_group_options(key)
        if options and not all(isinstance(name, str) for name in (value if isinstance(value, list) else [value])):
            return f"{override.input_line} names no option; {key} is {', '.join(options)}"
    return None


def _jobs(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of every job: one for each combination of the swept values."""
    for override in overrides:
        key, line = override.get_key_element(), override.input_line
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(f"{line} is no list of values; write {key}=VALUE,VALUE or {key}=range(START,STOP)")
        if override.is_sweep_override() and not list(override.sweep_string_iterator()):
            raise ConfigError(f"{line} names no value; write {key}=VALUE,VALUE")
    return BasicSweeper.split_arguments(list(overrides), None)[0]


def _require_ours(override: Override) -> None:
    """Refuse what Hydra would take and nobody read: the sweep's own key, and new keys of Hydra itself."""
    key = override.get_key_element().lstrip("+~")
    if key == "swept":
        raise ConfigError(f"{override.input_line} is filled in by -m; sweep with -m KEY=VALUE,VALUE")
    known = [field.name for field in dataclasses.fields(HydraConf)]
    if key.startswith("hydra.") and key.split(".")[1] not in known:
        raise ConfigError(unknown_key(".".join(key.split(".")[:2]), [f"hydra.{name}" for name in known]))


def _require_content(base: DictConfig, overrides: Sequence[Override]) -> None:
    """Refuse an analysis whose file is empty: Hydra composes nothing from it, and the run would lack it."""
    chosen = [o.value() for o in overrides if o.get_key_element() == "analysis"]
    names = {name for value in chosen for name in (value if isinstance(value, list) else [value])}
    for source in base.hydra.runtime.config_sources:
        for path in (Path(source.path) / "analysis" / f"{name}.yaml" for name in sorted(map(str, names))):
            if source.schema == "file" and path.is_file() and OmegaConf.load(path) == {}:
                raise ConfigError(f"analysis={path.stem} is an empty file, {path}; give it a _target_, or leave it out")


def _revisions(config: RunConfig) -> tuple[str, ...]:
    """The checkpoints that `model.revisions` names, for a sweep to run one by one. Raises ConfigError."""
    model = config.model
    if isinstance(model, MiniQwen3):
        every = isinstance(model, Trained) and model.revisions is not None
        steps = log_spaced(config.train.steps, config.train.snapshots) if every else ()
        return tuple(f"step{step}" for step in steps)
    try:
        return () if model.revisions is None else model.series(model.revisions)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _require_one_job(job: RunConfig, overrides: Sequence[Override], params: Mapping[str, str]) -> None:
    """Refuse a command without -m that names several runs, of which Hydra would silently do one."""
    for override in (o for o in overrides if o.is_sweep_override()):
        raise ConfigError(f"{override.input_line} names several values; add -m to run them all")
    if params:
        preset = job.factors.get("experiment", "the preset")
        raise ConfigError(f"experiment={preset} sweeps {', '.join(params)}; add -m to run all of its conditions")
    if revisions := _revisions(job):
        raise ConfigError(
            f"model.revisions names {len(revisions)} checkpoints; add -m to run them all, or choose one with "
            f"model.revisions=null model.revision={revisions[-1]}"
        )
    for name, analysis in job.analysis.items():
        if "series" in analysis.needs:
            raise ConfigError(f"analysis={name} compares checkpoints; add -m and model.revisions=step1000,step2000")


def _require_our_sweeper(base: DictConfig) -> None:
    """Refuse another sweeper, no launcher, and run folders that are not named as the run is, so that jobs share one."""
    if base.hydra.launcher is None:
        raise ConfigError("hydra.launcher=null starts no job; leave it out, or choose cluster=slurm, ray or joblib")
    if not base.hydra.sweeper._target_.endswith("BasicSweeper"):
        raise ConfigError(f"hydra/sweeper={base.hydra.runtime.choices['hydra/sweeper']} is not supported; use basic")
    if base.hydra.launcher._target_.endswith(".SlurmLauncher") and not shutil.which("sbatch"):
        raise ConfigError("cluster=slurm needs SLURM, and there is no sbatch here; leave it out to run on this machine")
    on_ray = base.hydra.launcher._target_.endswith(".RayLauncher")
    if on_ray and base.device != "cpu" and base.hydra.launcher.ray.remote.get("num_gpus") is None:
        raise ConfigError(
            f"device={base.device} with cluster=ray gets the GPUs that are asked for, and none are; add "
            "hydra.launcher.ray.remote.num_gpus=1, or device=cpu"
        )
    subdir = OmegaConf.to_container(base.hydra.sweep, resolve=False)["subdir"]  # type: ignore[index,call-overload]
    if subdir != RUN_NAME:
        raise ConfigError(
            f"hydra.sweep.subdir={subdir} would not give every run the folder of its name; leave it out "
            "(hydra.sweep.dir says where the sweep's folder is)"
        )


def _require_single_levels(jobs: Sequence[RunConfig], swept: Sequence[str]) -> None:
    """Refuse a swept key with a list or a group as one of its values: runs are compared by level."""
    for key in swept:
        for job in jobs:
            if not is_no_factor(key) and key not in job.factors:
                raise ConfigError(
                    f"{key} is swept, and one of its values is no single number, word, true, false or null, by which "
                    "runs are compared; sweep over a key inside it, or make each value an option of a group"
                )


def _require_outcomes(jobs: Sequence[RunConfig], overrides: Sequence[Override]) -> None:
    """Refuse outcomes that no analysis of the command measures, and more than one primary outcome."""
    analyses = [analysis for job in jobs for analysis in job.analysis.values()]
    choices, settings = outcome_names(analyses), jobs[0].outcomes
    swept = any(o.is_sweep_override() and o.get_key_element().startswith("outcomes") for o in overrides)
    if swept or isinstance(settings.primary, tuple):
        raise ConfigError(f"a sweep has one primary outcome; set outcomes.primary to one of {', '.join(choices)}")
    named = [("primary", settings.primary), *(("others", name) for name in settings.others or ())]
    for key, name in named:
        if name is not None and name not in choices:
            measured = any(name in analysis.metrics for analysis in analyses)
            fact = "is no metric to compare runs by" if measured else "is measured by no analysis"
            raise ConfigError(f"outcomes.{key}={name} {fact}; choose from {', '.join(choices) or 'other analyses'}")


def _output(folder: str) -> Path:
    """The folder for what the command leaves, found writable before any job starts. Raises ConfigError."""
    path = Path(folder).absolute()
    if not folder.strip():
        raise ConfigError("hydra.run.dir and hydra.sweep.dir name no folder; leave them out, or set HEADDYN_OUT")
    try:
        require_writable(path, "output folder", "HEADDYN_OUT (or hydra.run.dir, hydra.sweep.dir)")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return path


def plain_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line with headdyn's own shorthands spelt out, as Hydra needs them. Raises ConfigError.

    `ordering=` is `data_ordering=`, and both at once are refused, since Hydra would silently take one. The protocol
    `seed` is `original`. The lists of `model.revisions` and `model.kept` are quoted, because Hydra reads an unquoted
    comma as a sweep.
    """
    short = [a for a in arguments if a.startswith("ordering=")]
    long = [a for a in arguments if a.startswith("data_ordering=")]
    if short and long:
        raise ConfigError(f"{short[0]} and {long[0]} are the same choice; give only one of them")
    spelt_out = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "ordering":
            argument = f"data_{argument}"
        elif key == "protocol":
            argument = "protocol=" + re.sub(r"\bseed\b", "original", value)
        elif key in ("model.revisions", "model.kept") and "," in value and not {"'", '"'} & set(value):
            argument = f"{key}='{value}'"
        spelt_out.append(argument)
    return spelt_out


def informational(arguments: Sequence[str]) -> bool:
    """Whether the command asks Hydra to print something in place of running."""
    args = vars(_parsed(arguments))
    return any(args[name] for name in ("help", "hydra_help", "cfg", "info", "shell_completion", "experimental_rerun"))


def sweep_name(jobs: Sequence[RunConfig], swept: Sequence[str]) -> str:
    """The sweep folder's name, readable and stable: preset or swept keys, mode, and a hash of the set of runs."""
    factors = jobs[0].factors
    what = str(factors.get("experiment") or "-".join(key.removeprefix("data_") for key in swept) or "runs")
    digest = hashlib.sha256("".join(sorted(job.hash + job.name for job in jobs)).encode()).hexdigest()[:6]
    protocol = () if factors["protocol"] == "corrected" else (f"{factors['protocol']}_protocol",)
    return "_".join((what[:80], str(factors["mode"]), *protocol, digest))


def remove_empty_folders(plan: Plan) -> None:
    """Take away the folders that planning made to see whether they can be written."""
    for folder in (plan.folder, plan.folder.parent):
        with suppress(OSError):
            folder.rmdir()  # of which nothing but an empty one can be removed so


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """A composition error in one line that says what can be done; Hydra's own hint suggests appending unknown keys."""
    if isinstance(error, ConfigError):
        return " ".join(str(error).split())  # a value may hold line breaks
    launcher = re.search(r"Could not find 'hydra/launcher/(joblib|ray|submitit)", str(error))
    if launcher:
        extra = launcher[1].replace("submitit", "slurm")
        return f"cluster={extra} needs an extra; pip install 'headdyn[{extra}]'"
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        with _composing(arguments):
            options = GlobalHydra.instance().config_loader().get_group_options(group)
        return f"{group}={option} names no option; {group} is {', '.join(options)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read; give KEY=VALUE, and a value of several words as 'KEY=\"a b\"'"
    refused = re.match(r"Could not override '([^']+)'", str(error))
    if refused and "not in struct" in f"{error}{error.__cause__}":
        key = getattr(error.__cause__, "full_key", None) or ""  # below the override's where that gives a whole group
        return _unknown(max(key, refused[1], key=len), arguments)
    cause = str(error.__cause__ or "")
    text = f"{error} {'' if cause in str(error) else cause}".partition("Config search path")[0]
    return " ".join(text.split())


def _unknown(key: str, arguments: Sequence[str]) -> str:
    """What to say of a key that a job's configuration lacks: what there is, or with which values it exists."""
    with _composing(arguments) as compose_job:
        # Options alone say which keys there are; any other override of the command may be refused itself.
        options = GlobalHydra.instance().config_loader().get_group_options
        overrides = [
            o for o in _overrides(arguments) if options(o.get_key_element()) and not isinstance(o.value(), dict)
        ]
        # Eight jobs are enough to tell two values of a swept group apart, and are composed within two seconds.
        keys = {tuple(job): _keys(compose_job(job)) for job in _jobs(overrides)[:8]}
    having = next((set(job) for job in keys if key in keys[job]), set())
    lacking = next((set(job) for job in keys if key not in keys[job]), set())
    if having and lacking:
        with_it, without_it = (" ".join(sorted(one)) for one in (having - lacking, lacking - having))
        return f"{key} exists with {with_it}, not with {without_it}; sweep over these in commands of their own"
    return unknown_key(key, next(iter(keys.values())))


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration, but for Hydra's own."""
    keys = []
    for name in (str(name) for name in node if name != "hydra"):
        keys.append(f"{prefix}{name}")
        child = node._get_node(name)
        if isinstance(child, DictConfig):
            keys += _keys(child, f"{prefix}{name}.")
    return keys


def _overrides(arguments: Sequence[str]) -> list[Override]:
    """The command's overrides, inside `_composing`, whose options a `glob` of them names."""
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides(_parsed(arguments).overrides)


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options and overrides of the command line. Raises ConfigError for an option that Hydra does not have."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the options")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(list(arguments))
