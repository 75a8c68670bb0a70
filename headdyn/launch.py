"""Does the jobs of a plan: side by side in worker processes (workers.py), or by the launcher that `cluster=` names.

When all jobs of a sweep have ended, failed ones included, the sweep's report is written.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from headdyn.checking import check
from headdyn.composition import CONF, HYDRA_VERSION
from headdyn.config import RunConfig
from headdyn.core.numbers import count
from headdyn.core.run_folder import read_manifest
from headdyn.core.settings import ConfigError
from headdyn.core.stopping import queue_again
from headdyn.core.store import MANIFEST, Store, cache_root, disk_error, modified, require_writable
from headdyn.data.corpus import Corpus, Split
from headdyn.data.model_tokens import ModelTokens
from headdyn.data.text.corpus import LocalText
from headdyn.models.settings import Pretrained
from headdyn.plan import Plan, remove_empty_folders
from headdyn.process_state import torch_as_before
from headdyn.training.settings import process
from headdyn.workers import Workers

SHORT_TEXT_BYTES = 2**23  # 8 MiB take 6 s on one core, 1.1 MB of Wikipedia articles 1.3 s


class JobError(CompactHydraException):
    """A job's failure in one line. Hydra prints it without the traceback, which is in the run's log.txt."""


class Obstacle(RuntimeError):
    """Says in one line why this machine can do none of a plan's jobs."""


def launch(plan: Plan, arguments: Sequence[str]) -> int:
    """Do the jobs of a plan and write the report. `arguments` are those of the command, for the record.

    Returns the exit status of the command line. Before anything starts, raises ConfigError if a local model does not
    fit the command, and Obstacle if this machine can do no job. A single run changes logging and `sys.argv` for Hydra;
    headdyn/api.py restores them.
    """
    if process() > 0:
        from headdyn.training.next_token import help_process_0

        help_process_0()
        return 0
    try:
        _require_possible(plan)
    except ConfigError:
        remove_empty_folders(plan)
        raise
    except ValueError as error:
        remove_empty_folders(plan)
        raise Obstacle(str(error)) from error
    with _alone_in(plan.folder):
        return _do(plan, arguments)


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that two processes do not write to the same records. A kill releases it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Obstacle(f"another process works in {folder}; wait for it, or choose another folder") from None
    except OSError as error:
        raise Obstacle(str(disk_error(error, folder) or error)) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _do(plan: Plan, arguments: Sequence[str]) -> int:
    """Do the jobs of a plan after all checks. Returns the exit status."""
    for name, reason in {item for each in plan.jobs for item in each.absent.items()}:
        print(f"headdyn: analysis {name} is left out: it {reason}", file=sys.stderr)
    print(f"headdyn: {count(len(plan.jobs), 'run')} → {plan.folder}", file=sys.stderr)
    if plan.is_sweep:
        return _sweep(plan, arguments)
    with torch_as_before():  # imports torch, so it comes after the first line of output
        status = by_hydra(plan.arguments)
    if status == 0:
        from headdyn.report.terminal import print_run

        print_run(plan.folder)
    return status


def _sweep(plan: Plan, arguments: Sequence[str]) -> int:
    """Do the jobs of a sweep that are not done yet, and write its report."""
    from headdyn.done import done_with
    from headdyn.finish import finish

    with Workers(plan.jobs) as workers:
        if plan.launcher:
            with torch_as_before():
                status = _elsewhere(plan)
        else:
            waiting = [job for job in plan.jobs if not done_with(job, plan.folder / job.name)]
            if done := len(plan.jobs) - len(waiting):
                print(f"headdyn: {done} of them complete already (force=true runs them again)", file=sys.stderr)
            status = 130 if workers.run(waiting, plan.folder) else 0
        try:
            finished = finish(plan.folder, plan.jobs, workers, arguments)
        except OSError as error:
            print(f"headdyn: the sweep has no report: {disk_error(error, plan.folder)}", file=sys.stderr)
            return status or 1
    return status or finished


def _elsewhere(plan: Plan) -> int:
    """Let the launcher that `cluster=` names do the jobs. Raises ConfigError if it fails before any has begun."""
    manifests = [plan.folder / job.name / MANIFEST for job in plan.jobs]

    before, verbose = [*map(modified, manifests)], os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # then Hydra raises a launcher's error, and prints no traceback
    try:
        return by_hydra(plan.arguments)
    except CompactHydraException as error:
        print(error, file=sys.stderr)
    except Exception as error:
        if verbose == "1":
            raise
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        failed = f"{plan.launcher.rpartition('.')[2]} failed: {type(error).__name__}: {reason}"
        if [*map(modified, manifests)] == before:
            (plan.folder / "multirun.yaml").unlink(missing_ok=True)
            remove_empty_folders(plan)
            raise ConfigError(f"{failed}; leave cluster= out to run on this machine") from error
        print(f"headdyn: {failed}", file=sys.stderr)
    finally:
        os.environ["HYDRA_FULL_ERROR"] = verbose
    return 1


def by_hydra(arguments: Sequence[str]) -> int:
    """Give the arguments to Hydra, which calls `job` for every run or prints --help. Returns the exit status."""
    sys.argv = [sys.argv[0], *arguments]
    try:
        hydra.main(version_base=HYDRA_VERSION, config_path=str(CONF), config_name="config")(job)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def job(cfg: DictConfig) -> None:
    """Do one run; Hydra's launchers call this function."""
    hydra_config = HydraConfig.get()
    folder = Path(hydra_config.runtime.output_dir)
    config = check(cfg, hydra_config.runtime.choices, hydra_config.overrides.task)

    from headdyn.core.machine import choose_gpu
    from headdyn.pipeline import run
    from headdyn.training.replicas import release

    if hydra_config.mode == RunMode.MULTIRUN:
        choose_gpu(hydra_config.job.num)
    try:
        run(config, folder)
        release()
    except KeyboardInterrupt:
        queue_again()
        raise
    except Exception as error:
        failed = f"{config.name} failed: {type(error).__name__}: {error}\n(traceback in {folder}/log.txt)"
        if hydra_config.mode == RunMode.MULTIRUN:
            raise JobError(failed) from error
        print(f"headdyn: {failed}", file=sys.stderr)  # Hydra would put lines of its own around it
        raise SystemExit(1) from error


def _require_possible(plan: Plan) -> None:
    """Raise, before anything starts, if no job of the plan can be done.

    ConfigError: a training needs more memory than this machine has, a checkpoint on this machine cannot be read, its
    tokens cannot express the data, or a text is too short. ValueError: the cache cannot be written, the hub does not
    give the model, or the device is absent. Each model is checked once, with one revision: another revision that is bad
    fails only its own job. If a launcher sends the jobs to another machine, memory and device are not checked.
    """
    for jobs_of_one_text in _by_data([job for job in plan.jobs if job.trains and not _begun(plan, job)]):
        _require_enough_text(jobs_of_one_text)
    if not plan.launcher:
        from headdyn.estimate import require_memory

        require_memory(plan.jobs)
        require_writable(cache_root(), "cache folder", "HEADDYN_CACHE")
    models = {job.model.name: job.model for job in reversed(plan.jobs) if isinstance(job.model, Pretrained)}
    for model in models.values():
        from headdyn.models.checkpoints.files import is_local, require_reachable
        from headdyn.models.checkpoints.forecast import forecast

        store, jobs = Store(cache_root()), [job for job in plan.jobs if job.model.name == model.name]
        try:
            require_reachable(model.name, model.revision, store)
            _require_material(model, [job for job in jobs if not _begun(plan, job)], store)
        except ValueError as error:
            if not is_local(model.name):
                raise
            raise ConfigError(str(error)) from error
        waiting = [job for job in jobs if job.force or read_manifest(plan.folder_of(job))["status"] != "complete"]
        revisions, needed = ([str(job.factors["revision"]) for job in group] for group in (jobs, waiting))
        for line in forecast(model.name, revisions, store, done={*revisions}.difference(needed)).lines():
            print(f"headdyn: {line}", file=sys.stderr)
    for job in plan.jobs:
        if job.device == "cuda" and not plan.launcher:
            from headdyn.core import machine

            machine.resolve(job.device, job.precision, job.threads)


def _begun(plan: Plan, job: RunConfig) -> bool:
    return (plan.folder_of(job) / MANIFEST).exists()


def _require_material(model: Pretrained, jobs: Sequence[RunConfig], store: Store) -> None:
    """Raise ValueError if a model on this machine cannot read these jobs' data in its own tokens."""
    from headdyn.models.checkpoints.files import folder_here

    location = folder_here(model.name, model.revision)
    if not jobs or location is None:
        return
    from headdyn.models.checkpoints import gguf, read_tokenizer
    from headdyn.models.families import read_config
    from headdyn.stages import in_tokens_of

    with gguf.settings_of(location, store) as folder:
        decoder, tokenizer = read_config(folder), read_tokenizer(folder, model.name)
    for jobs_of_one_text in _by_data(jobs):
        material = in_tokens_of(jobs_of_one_text[0], decoder, tokenizer)
        _require_enough_text(jobs_of_one_text, getattr(material, "tokens", None))


def _by_data(jobs: Sequence[RunConfig]) -> list[list[RunConfig]]:
    by_data: dict[str, list[RunConfig]] = {}
    for job in jobs:
        by_data.setdefault(repr(job.data), []).append(job)
    return list(by_data.values())


def _require_enough_text(jobs: Sequence[RunConfig], tokens: ModelTokens | None = None) -> None:
    """Raise ConfigError if a short text on this machine gives no corpus, or one that is too small for one of the jobs.

    All jobs read the same text. It is read once, and one message lists everything that it lacks. A text of more than
    SHORT_TEXT_BYTES is not read here; whether it suffices is checked when its corpus is built.
    """
    text = jobs[0].data
    if not isinstance(text, LocalText) or text.bytes > SHORT_TEXT_BYTES:
        return
    import numpy as np

    from headdyn.data.text.build import sequences_of

    with TemporaryDirectory() as folder:
        sequences, problems = sequences_of(text, text.reader(), Path(folder), tokens)
    if not problems:
        zeros_NT = np.zeros((sequences["val"], text.sequence_length), np.uint8)
        split, topics = Split(tokens_NT=zeros_NT, topics_NT=zeros_NT), tuple(map(str, range(text.num_topics)))
        corpus = Corpus(
            name="text", train=split, val=split, vocab_size=1, topic_names=topics, reference_nats={}, facts={}
        )
        problems = list(dict.fromkeys(refusal for job in jobs for refusal in job.refusals(corpus)))
    if problems:
        raise ConfigError("; and ".join(problems))
