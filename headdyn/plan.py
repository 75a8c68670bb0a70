"""Plans a command line: all of its jobs, composed and checked before one starts. Imports no torch."""

import dataclasses
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from headdyn.checking import check, is_no_factor, outcome_names
from headdyn.composition import composing, jobs_of, overrides_of, parsed
from headdyn.config import RunConfig
from headdyn.core.records import log_spaced
from headdyn.core.settings import ConfigError, unknown_key
from headdyn.core.store import require_writable
from headdyn.models.settings import MiniQwen3, Trained
from headdyn.training.settings import processes

RUN_NAME = "${headdyn_run:}"  # conf/config.yaml gives a run's folder the name of the run


@dataclass(frozen=True)
class Plan:
    """A command's jobs, all of them valid, and the folder of the sweep or the single run."""

    jobs: tuple[RunConfig, ...]
    folder: Path
    is_sweep: bool
    launcher: str  # the `_target_` of Hydra's launcher; empty if this process starts the jobs itself
    arguments: tuple[str, ...]  # for Hydra: those of the command, with the revisions of a series and the swept keys

    def folder_of(self, job: RunConfig) -> Path:
        """The folder of a job's record: one of its name in the sweep's folder, or the folder of the single run."""
        return self.folder / job.name if self.is_sweep else self.folder


def make_plan(arguments: Sequence[str]) -> Plan:
    """Compose and check every job of the command. Raises ConfigError or Hydra's own composition errors."""
    args = parsed(arguments)
    for option in ("config_name", "config_path", "package"):
        if getattr(args, option):
            raise ConfigError(
                f"--{option.replace('_', '-')} {getattr(args, option)} is not supported; put a preset into the folder "
                "experiment of your own configuration, and name that folder with --config-dir"
            )
    if args.config_dir and not Path(args.config_dir).is_dir():
        raise ConfigError(f"--config-dir {args.config_dir} is no folder")
    with composing(arguments) as compose_job:
        overrides = overrides_of(arguments)
        for override in overrides:
            _require_ours(override)

        def checked(job: Sequence[str], cfg: DictConfig) -> RunConfig:
            return check(cfg, cfg.hydra.runtime.choices, job)

        # The first job is composed alone, so that a bad value is refused before a large sweep is composed.
        base = compose_job(jobs_of(overrides)[0])
        if _needs_data(base):
            arguments = [*arguments, "data=repeated_tokens"]
            overrides = overrides_of(arguments)
            base = compose_job(jobs_of(overrides)[0])
        first = checked(jobs_of(overrides)[0], base)
        _require_content(base, overrides)
        params = dict(base.hydra.sweeper.get("params") or {})
        on_command_line = [o.get_key_element() for o in overrides if o.is_sweep_override()]
        if not (args.multirun or (base.hydra.mode is not None and base.hydra.mode.name == "MULTIRUN")):
            _require_outcomes([first], overrides)
            _require_one_job(first, overrides, params)
            if processes() > 1 and not first.trains:
                raise ConfigError("torchrun divides a training, and this model is trained already; leave torchrun out")
            return Plan((first,), _output(base.hydra.run.dir), False, "", tuple(arguments))
        _require_our_sweeper(base)
        if processes() > 1:
            raise ConfigError(
                "torchrun trains one run on several devices; leave -m out, or do one run per device without torchrun"
            )
        target = base.hydra.launcher._target_
        launcher = "" if target.endswith(".BasicLauncher") else target
        if revisions := _revisions(first):
            revision_overrides = [o.input_line for o in overrides if o.get_key_element() == "model.revision"]
            if revision_overrides:
                raise ConfigError(
                    f"{revision_overrides[0]} and model.revisions={getattr(first.model, 'revisions', None)} both name "
                    "checkpoints; give one of them (model.revisions=null drops a preset's)"
                )
            arguments = [*arguments, f"model.revision={','.join(revisions)}"]
        swept = [*params, *(key for key in on_command_line if key not in params)]
        if swept:
            arguments = [*arguments, f"swept=[{','.join(swept)}]"]
        preset = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
        jobs = tuple(checked(job, compose_job(job)) for job in jobs_of([*preset, *overrides_of(arguments)]))
        _require_single_levels(jobs, swept)
        _require_outcomes(jobs, overrides)
        _require_different_runs(jobs, swept)
        os.environ["HEADDYN_SWEEP"] = sweep_name(jobs, [key for key in on_command_line if key not in params])
        folder = _output(base.hydra.sweep.dir)
        if launcher:  # on another machine, environment variables and the current folder may differ
            arguments = [*arguments, "hydra.sweep.dir='{}'".format(str(folder).replace("'", r"\'"))]
        return Plan(jobs, folder, True, launcher, tuple(arguments))


def _needs_data(cfg: DictConfig) -> bool:
    """Whether a model that is trained already would read the default training data, because no data= was given."""
    return OmegaConf.select(cfg, "model.kind") not in ("mini_qwen3", "trained") and (
        cfg.hydra.runtime.choices.get("data") == "micro_languages"
        and not any(override.startswith("data=") for override in cfg.hydra.overrides.task)
    )


def _require_ours(override: Override) -> None:
    """Refuse keys that Hydra accepts but nothing reads: `swept`, which -m sets, and unknown keys below `hydra`."""
    key = override.get_key_element().lstrip("+~")
    if key == "swept":
        raise ConfigError(f"{override.input_line} is filled in by -m; sweep with -m KEY=VALUE,VALUE")
    known = [field.name for field in dataclasses.fields(HydraConf)]
    if key.startswith("hydra.") and key.split(".")[1] not in known:
        raise ConfigError(unknown_key(".".join(key.split(".")[:2]), [f"hydra.{name}" for name in known]))


def _require_content(base: DictConfig, overrides: Sequence[Override]) -> None:
    """Refuse an analysis whose YAML file is empty: Hydra would silently leave it out."""
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
        all_snapshots = isinstance(model, Trained) and model.revisions is not None
        steps = log_spaced(config.train.steps, config.train.snapshots) if all_snapshots else ()
        return tuple(f"step{step}" for step in steps)
    try:
        return () if model.revisions is None else model.series(model.revisions)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _require_one_job(job: RunConfig, overrides: Sequence[Override], params: Mapping[str, str]) -> None:
    """Refuse a command without -m that names several runs; Hydra would silently do one of them."""
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
    """Refuse other sweepers, a missing launcher, and settings by which two runs would share a folder."""
    if base.hydra.launcher is None:
        raise ConfigError("hydra.launcher=null starts no job; leave it out, or choose cluster=slurm, ray or joblib")
    if not base.hydra.sweeper._target_.endswith("BasicSweeper"):
        raise ConfigError(f"hydra/sweeper={base.hydra.runtime.choices['hydra/sweeper']} is not supported; use basic")
    if base.hydra.launcher._target_.endswith(".SlurmLauncher") and not shutil.which("sbatch"):
        raise ConfigError("cluster=slurm needs SLURM, and there is no sbatch here; leave it out to run on this machine")
    on_ray = base.hydra.launcher._target_.endswith(".RayLauncher")
    if on_ray and base.device != "cpu" and base.hydra.launcher.ray.remote.get("num_gpus") is None:
        raise ConfigError(
            f"device={base.device} with cluster=ray gets only the GPUs that it requests, and it requests none; add "
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
        if not is_no_factor(key) and any(key not in job.factors for job in jobs):
            raise ConfigError(
                f"{key} is swept, and one of its values is a list or a group. Runs are compared by single values: "
                "sweep over a key inside it, or make each value an option of a group"
            )


def _require_different_runs(jobs: Sequence[RunConfig], swept: Sequence[str]) -> None:
    """Refuse a sweep that does one run twice, in one folder: a value is given twice, or a swept key changes nothing."""
    for name, times in Counter(job.name for job in jobs).items():
        if times > 1:
            keys = ", ".join(key for key in swept if key in jobs[0].factors) or ", ".join(swept)
            raise ConfigError(f"{times} jobs of this sweep are one run, {name}; give every value of {keys} once")


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
    """The command's output folder. Raises ConfigError if it cannot be written, before any job starts."""
    path = Path(folder).absolute()
    if path == path.parent:
        raise ConfigError(
            f"{folder} is the root of the file system; give hydra.run.dir, or sweep.dir, a folder of its own"
        )
    if not folder.strip():
        raise ConfigError("hydra.run.dir and hydra.sweep.dir name no folder; leave them out, or set HEADDYN_OUT")
    try:
        require_writable(path, "output folder", "HEADDYN_OUT (or hydra.run.dir, hydra.sweep.dir)")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return path


def sweep_name(jobs: Sequence[RunConfig], swept: Sequence[str]) -> str:
    """The sweep folder's name, readable and stable: preset or swept keys, mode, and a hash of the set of runs."""
    factors = jobs[0].factors
    title = str(factors.get("experiment") or "-".join(key.removeprefix("data_") for key in swept) or "runs")
    digest = hashlib.sha256("".join(sorted(job.hash + job.name for job in jobs)).encode()).hexdigest()[:6]
    protocol = () if factors["protocol"] == "corrected" else (f"{factors['protocol']}_protocol",)
    return "_".join((title[:80], str(factors["mode"]), *protocol, digest))


def remove_empty_folders(plan: Plan) -> None:
    """Remove the folders that planning made to test whether they can be written."""
    for folder in (plan.folder, plan.folder.parent):
        with suppress(OSError):  # rmdir refuses a folder that is not empty
            folder.rmdir()
