"""Composes the jobs of a command line from conf/ by Hydra, and says in one line why Hydra refuses one."""

import argparse
import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from hydra import compose, initialize_config_dir
from hydra._internal import config_loader_impl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.defaults_list import DefaultsList
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from headdyn.checking import one_line
from headdyn.core.settings import ConfigError, unknown_key

Loaded = TypeVar("Loaded")

HYDRA_VERSION = "1.3"
PACKAGED = Path(__file__).parent / "conf"
CONF = PACKAGED if PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"


@contextmanager
def composing(arguments: Sequence[str]) -> Iterator[Callable[[Sequence[str]], DictConfig]]:
    """Yields a function that composes a job's configuration from its overrides. Searches --config-dir as well."""
    config_dir = parsed(arguments).config_dir
    extra = [f"hydra.searchpath=['file://{Path(config_dir).absolute()}']"] if config_dir else []

    def compose_job(job: Sequence[str]) -> DictConfig:
        names = " ".join(job)
        try:
            return compose("config", overrides=[*job, *extra], return_hydra_config=True)
        except HydraException:
            raise
        except UnicodeDecodeError as error:
            raise ConfigError(f"a YAML file that {names} chooses is not UTF-8 text ({error})") from error
        except AssertionError as error:  # raised by Hydra for a group without a name
            raise ConfigError(f"{names} names no group or key; write group=option or key=value") from error
        except YAMLError as error:
            raise ConfigError("a configuration file is no YAML: " + " ".join(str(error).split())) from error
        except OSError as error:  # the option's name is too long for a file, or its file may not be read
            problem = f"a file that cannot be read: {error.strerror}; --help lists groups"
            raise ConfigError(f"{names} chooses {problem}") from error
        except (ValueError, TypeError, AttributeError, OmegaConfBaseException) as error:
            raise ConfigError(_refused(job) or one_line(error)) from error

    with initialize_config_dir(str(CONF), version_base=HYDRA_VERSION, job_name="headdyn"):
        loader = GlobalHydra.instance().config_loader()
        for source in loader.get_sources():
            source.load_config = _once(source.load_config)  # type: ignore[method-assign]
        loader._compose_config_from_defaults_list = _once(  # type: ignore[attr-defined]
            loader._compose_config_from_defaults_list  # type: ignore[attr-defined]
        )
        with _shared_defaults_lists():
            yield compose_job


@contextmanager
def _shared_defaults_lists() -> Iterator[None]:
    """Inside, jobs with the same options share one list of defaults, which takes half of the time of composing a job.

    The list names the files that a job is composed of; it depends on the options of the job's groups alone.
    """
    create, by_options = config_loader_impl.create_defaults_list, dict[str, DefaultsList]()

    def create_once(*, repo: Any, overrides_list: list[Override], **how: Any) -> DefaultsList:
        values = [o for o in overrides_list if isinstance(o.value(), dict) or not repo.group_exists(o.key_or_group)]
        options = repr([o.input_line for o in overrides_list if o not in values])
        if options not in by_options:
            by_options[options] = create(repo=repo, overrides_list=overrides_list, **how)
        return dataclasses.replace(by_options[options], config_overrides=values)

    config_loader_impl.create_defaults_list = create_once  # type: ignore[assignment]
    try:
        yield
    finally:
        config_loader_impl.create_defaults_list = create


def _once(load: Callable[..., Loaded]) -> Callable[..., Loaded]:
    """`load` with a cache by its first argument, since the jobs of a sweep load the same files. Returns copies."""
    originals: dict[str, Loaded] = {}

    def load_once(*arguments: Any, **named: Any) -> Loaded:
        key = repr(next(iter((*arguments, *named.values()))))
        if key not in originals:
            originals[key] = load(*arguments, **named)
        return copy.deepcopy(originals[key])

    return load_once


def _refused(job: Sequence[str]) -> str | None:
    """The message for an override that makes Hydra or OmegaConf raise a bare Python error; None for unknown cases."""
    loader = GlobalHydra.instance().config_loader()
    for override in OverridesParser.create().parse_overrides(list(job)):
        key, value = override.get_key_element(), override.value()
        if key.startswith("hydra.sweeper.params"):
            return f"{override.input_line} is for presets; on the command line sweep with -m KEY=VALUE,VALUE"
        options = loader.get_group_options(key)
        if options and not all(isinstance(name, str) for name in (value if isinstance(value, list) else [value])):
            return f"{override.input_line} names no option; {key} is {', '.join(options)}"
    return None


def jobs_of(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of every job: one for each combination of the swept values."""
    for override in overrides:
        key, line = override.get_key_element(), override.input_line
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise ConfigError(f"{line} is no list of values; write {key}=VALUE,VALUE or {key}=range(START,STOP)")
        if override.is_sweep_override() and not list(override.sweep_string_iterator()):
            raise ConfigError(f"{line} names no value; write {key}=VALUE,VALUE")
    return BasicSweeper.split_arguments(list(overrides), None)[0]


def plain_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line with headdyn's own shorthands spelt out, as Hydra needs them. Raises ConfigError.

    `ordering=` becomes `data_ordering=`; giving both is refused, because Hydra would silently use only one.
    `protocol=seed` becomes `protocol=original`. Lists in `model.revisions` and `model.kept` are quoted, because Hydra
    reads an unquoted comma as a sweep. Options are moved to the front: after an option that follows an override, Hydra
    reads no further overrides.
    """
    overrides = parsed(arguments).overrides
    arguments = [*(a for a in arguments if a not in overrides), *overrides]
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
    args = vars(parsed(arguments))
    return any(args[name] for name in ("help", "hydra_help", "cfg", "info", "shell_completion", "experimental_rerun"))


def explain(error: Exception, arguments: Sequence[str]) -> str:
    """A composition error in one line with its fix. Hydra's own hint would be to append the unknown key."""
    if isinstance(error, ConfigError):
        return " ".join(str(error).split())  # a value may contain line breaks
    launcher = re.search(r"Could not find 'hydra/launcher/(joblib|ray|submitit)", str(error))
    if launcher:
        extra = launcher[1].replace("submitit", "slurm")
        return f"cluster={extra} needs an extra; pip install 'headdyn[{extra}]'"
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        with composing(arguments):
            options = GlobalHydra.instance().config_loader().get_group_options(group)
        return f"{group}={option} names no option; {group} is {', '.join(options)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read; give KEY=VALUE, and a value of several words as 'KEY=\"a b\"'"
    refused = re.match(r"Could not override '([^']+)'", str(error))
    if refused and "not in struct" in f"{error}{error.__cause__}":
        # Longer than the override's key if the override sets a group.
        key = getattr(error.__cause__, "full_key", None) or ""
        return _unknown(max(key, refused[1], key=len), arguments)
    cause = str(error.__cause__ or "")
    text = f"{error} {'' if cause in str(error) else cause}".partition("Config search path")[0]
    return " ".join(text.split())


def _unknown(key: str, arguments: Sequence[str]) -> str:
    """The message for an unknown key: the known ones, or the options of other groups with which it would exist."""
    with composing(arguments) as compose_job:
        # Which keys exist depends on the options alone; the command's other overrides may be invalid themselves.
        options = GlobalHydra.instance().config_loader().get_group_options
        overrides = [
            o for o in overrides_of(arguments) if options(o.get_key_element()) and not isinstance(o.value(), dict)
        ]
        # Eight jobs are enough to have two values of a swept group, and take less than two seconds to compose.
        keys = {tuple(job): _keys(compose_job(job)) for job in jobs_of(overrides)[:8]}
    having = next((set(job) for job in keys if key in keys[job]), set())
    lacking = next((set(job) for job in keys if key not in keys[job]), set())
    if having and lacking:
        with_it, without_it = (" ".join(sorted(choices)) for choices in (having - lacking, lacking - having))
        return f"{key} exists with {with_it}, not with {without_it}; sweep each in a command of its own"
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


def overrides_of(arguments: Sequence[str]) -> list[Override]:
    """The command's overrides. Call it inside `composing`: a `glob(...)` among them is resolved against the options."""
    loader = GlobalHydra.instance().config_loader()
    return OverridesParser.create(config_loader=loader).parse_overrides(parsed(arguments).overrides)


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options and overrides of the command line. Raises ConfigError for an option that Hydra does not have."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists the options")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(list(arguments))
