"""What a command would do: `--dry-run` prints jobs, downloads, disk and time, and begins nothing.

Times are what trainings and analyses of the same sizes took on this machine before, according to the cache and the
records of runs. Parts that were never measured are named and not estimated. Torch is imported only to read the sizes of
a pretrained model on this machine.
"""

import json
import os
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headdyn.config import RunConfig
from headdyn.core.json_files import read_json
from headdyn.core.numbers import count
from headdyn.core.run_folder import MANIFEST, read_manifest
from headdyn.core.settings import ConfigError
from headdyn.core.store import Store, cache_root
from headdyn.done import manifest_of_done
from headdyn.models.config import DecoderConfig
from headdyn.models.settings import Pretrained
from headdyn.plan import Plan
from headdyn.sweep.matched_loss import COMPARED, MATCHED_ANALYSES
from headdyn.sweep.record import SERIES_SECONDS
from headdyn.workers import environments, shared_stages

_SIZES = ("num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim", "d_ff")  # what a step's time depends on
_MACHINE = ("device", "precision", "threads")
_REPEATS = ("_draws", "_flips")  # endings of settings that say how often a random computation is repeated


@dataclass(frozen=True)
class Measured:
    """What earlier work took on this machine: speeds by `_training_sizes`, seconds by `_analysis_sizes`.

    For an analysis of a series these are the seconds for each of its checkpoints.
    """

    tokens_per_second: Mapping[str, float]
    analysis_seconds: Mapping[str, float]


def measured(store: Path, runs: Path) -> Measured:
    """The medians over the trainings in the store, and over the runs recorded somewhere below the folder `runs`."""
    speeds: dict[str, list[float]] = {}
    for path in store.glob(f"training/*/{MANIFEST}"):
        try:
            recipe = read_json(path)["recipe"]
            corpus = read_json(store / "corpus" / recipe["corpus"] / MANIFEST)["recipe"]
            sizes = _training_sizes(recipe["decoder"], recipe["train"], corpus["sequence_length"])
            speeds.setdefault(sizes, []).append(read_json(path.with_name("result.json"))["tokens_per_second"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # a damaged entry tells no speed; the run that needs it reports the damage
    seconds: dict[str, list[float]] = {}
    for path in runs.glob(f"*/*/**/{MANIFEST}"):
        manifest = read_manifest(path.parent, results=False)
        for name in manifest.get("glossary", {}) if manifest["status"] != "damaged" else ():
            seconds.setdefault(_analysis_sizes(name, manifest["config"]), []).append(manifest["seconds"][name])
    for path in runs.glob(f"*/*/{SERIES_SECONDS}"):
        try:
            for entry in read_json(path):
                manifest = read_manifest(path.parent / entry["run"], results=False)
                if manifest["status"] not in ("absent", "damaged"):
                    key = _analysis_sizes(entry["analysis"], manifest["config"])
                    seconds.setdefault(key, []).append(entry["seconds"] / entry["checkpoints"])
        except (ValueError, KeyError, TypeError):
            continue  # a damaged file tells no speed either; the command of its sweep writes it again
    return Measured(
        *({key: statistics.median(values) for key, values in by_sizes.items()} for by_sizes in (speeds, seconds))
    )


def _training_sizes(decoder: Mapping[str, Any], train: Mapping[str, Any], length: int) -> str:
    return json.dumps([*(decoder[name] for name in _SIZES), train["batch_size"], train["compile"], length])


def _analysis_sizes(name: str, settings: Mapping[str, Any]) -> str:
    """The key of an analysis's seconds: the settings of the analysis, of the model, of the data and of the machine.

    Seeds and the numbers of random draws and sign flips are left out, since they change the time little, and so is the
    name of a text that fills sequences of fixed length. The name of a file of prompts stays, because only the file says
    how many prompts there are.
    """
    ignored = ("path", "seed") if "sequence_length" in settings["data"] else ("seed",)
    data = {key: value for key, value in settings["data"].items() if key not in ignored}
    analysis = settings["analysis"].get(name)
    if analysis is not None:
        analysis = {key: value for key, value in analysis.items() if not key.endswith(_REPEATS)}
    # All checkpoints of a suite have the same size and take equally long.
    model = {key: value for key, value in settings["model"].items() if key not in ("revision", "revisions")}
    machine = [settings.get(key) for key in _MACHINE]
    return json.dumps([name, analysis, model, data, machine], sort_keys=True)


def seconds_of(job: RunConfig, known: Measured, *, trains: bool) -> tuple[float, list[str]]:
    """A job's estimated seconds, and its parts without an estimate. `trains`: no other job does the same training."""
    seconds, unknown = 0.0, []
    if job.trains:
        steps = job.train.steps if trains else 0
        if job.position_enc.recalibration is not None:
            steps += job.position_enc.recalibration.count(job.train.steps)
        length = getattr(job.data, "sequence_length", 0)
        sizes = _training_sizes(vars(job.decoder_config(2)), vars(job.train), length)
        if steps and sizes not in known.tokens_per_second:
            unknown.append("training")
        elif steps:
            seconds += steps * job.train.batch_size * length / known.tokens_per_second[sizes]
    for name, analysis in job.analysis.items():
        key = _analysis_sizes(name, job.resolved)
        if key not in known.analysis_seconds and (job.series or "series" not in analysis.needs):
            unknown.append(name)
        seconds += known.analysis_seconds.get(key, 0.0)
    return seconds, unknown


def seconds_at_matched_loss(jobs: Sequence[RunConfig], known: Measured) -> tuple[float, list[str]]:
    """At most how many seconds the comparisons at equal loss take, and the analyses in them without an estimate.

    Each pair of arms needs the analyses of at most two snapshots of one of the arms.
    """
    seconds, unknown = 0.0, set[str]()
    trained = [job for job in jobs if job.trains]
    for factor, pair in COMPARED.items():
        arms: dict[str, set[str]] = {}
        for job in trained:
            level = str(job.factors[factor])
            if level not in pair or (factor == "data_ordering" and job.position_enc.recalibration is not None):
                continue
            others = json.dumps({key: value for key, value in job.factors.items() if key != factor})
            levels = arms.setdefault(others, set())
            levels.add(level)
            if levels == set(pair):
                keys = {name: _analysis_sizes(name, job.resolved) for name in MATCHED_ANALYSES if name in job.analysis}
                seconds += 2 * sum(known.analysis_seconds.get(key, 0.0) for key in keys.values())
                unknown.update(name for name, key in keys.items() if key not in known.analysis_seconds)
    return seconds, sorted(unknown)


def bytes_of(jobs: Sequence[RunConfig], store: Store) -> tuple[float, float, list[str]]:
    """The bytes that jobs leave in the cache (corpora and snapshots) and in their folders (attention patterns).

    The third part lists what is not counted, with the reason: prompts, and models whose sizes cannot be read yet.
    """
    stages: dict[str, float] = {}
    patterns = 0.0
    on_corpus = [job for job in jobs if job.material == "corpus"]
    decoders, uncounted = _decoders([job for job in on_corpus if not job.trains], store)
    if len(on_corpus) < len(jobs):
        uncounted.append("attention patterns of prompts")
    for job in on_corpus:
        model = job.model.name
        if not job.trains and model not in decoders:
            continue
        decoder = job.decoder_config(getattr(job.data, "vocab_size", 0)) if job.trains else decoders[model]
        length = getattr(job.data, "sequence_length", 0)
        tables = getattr(job.data, "table_bytes", 0)  # other corpora have tables of a few KB
        token_bytes = 2 if decoder.vocab_size <= 2**16 else 4
        corpus, *training = shared_stages(job) if job.trains else [json.dumps([model, job.resolved["data"]])]
        stages[corpus] = _sequences(job) * length * (token_bytes + 1.0) + tables  # a token, and a topic of one byte
        for trained in training:
            stages[trained] = 4.0 * parameters(decoder) * job.train.snapshots
        patterns += 2.0 * job.patterns_kept * decoder.num_layers * decoder.num_heads * length**2
    return sum(stages.values()), patterns, uncounted


def _decoders(jobs: Sequence[RunConfig], store: Store) -> tuple[dict[str, DecoderConfig], list[str]]:
    """The decoder settings of pretrained models, by name (the same for all revisions), and why others are not known."""
    decoders: dict[str, DecoderConfig] = {}
    reasons: dict[str, str] = {}
    for job in jobs:
        if job.model.name not in decoders:
            try:
                decoders[job.model.name] = _decoder_here(job, store)
                reasons.pop(job.model.name, None)
            except ValueError as error:
                reasons[job.model.name] = str(error)
    return decoders, [f"corpora and attention patterns of {name} ({reason})" for name, reason in reasons.items()]


def _decoder_here(job: RunConfig, store: Store) -> DecoderConfig:
    """The decoder settings of a pretrained model. Raises ValueError if they are not on this machine."""
    from headdyn.models.checkpoints import gguf
    from headdyn.models.checkpoints.files import settings_here

    if not isinstance(job.model, Pretrained):
        raise ValueError("it is trained here first")
    here = settings_here(job.model.name, job.model.revision, store)
    if here is None:
        raise ValueError("its size is not known before it is downloaded")
    from headdyn.models.families import read_config

    with gguf.settings_of(here, store) as folder:
        return read_config(folder)


def parameters(decoder: DecoderConfig) -> int:
    """The number of weights of a Mini-Qwen3."""
    d = decoder
    attention = 2 * d.d_model * d.head_dim * (d.num_heads + d.num_kv_heads) + 2 * d.head_dim
    return d.vocab_size * d.d_model + d.num_layers * (attention + 3 * d.d_model * d.d_ff + 2 * d.d_model) + d.d_model


def require_memory(jobs: Sequence[RunConfig]) -> None:
    """Raise ConfigError where one part of a training alone takes more than this machine's memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for job in (job for job in jobs if job.trains):
        decoder = job.decoder_config(getattr(job.data, "vocab_size", 0))
        length = getattr(job.data, "sequence_length", 0)
        parts = (
            ("weights", 4.0 * parameters(decoder), "model.num_layers, model.d_model or data.vocab_size"),
            ("batches", 4.0 * job.train.batch_size * length * decoder.d_model, "train.batch_size"),
            ("corpus", 3.0 * _sequences(job) * length, "the number of sequences or data.sequence_length"),
        )
        for part, needed, keys in parts:
            if needed > memory:
                raise ConfigError(
                    f"{job.name}: its {part} alone take {_size(needed)}, and this machine has {_size(memory)} of "
                    f"memory; lower {keys}"
                )


def _sequences(job: RunConfig) -> int:
    amounts = ("train_sequences", "val_sequences", "sequences")
    return sum(getattr(job.data, amount, None) or 0 for amount in amounts)


def downloads(jobs: Sequence[RunConfig], todo: Sequence[RunConfig], store: Store) -> tuple[list[str], int]:
    """A line or two for each model with checkpoints to download, and the most bytes that they take at a time.

    Checkpoints are downloaded for the jobs `todo`; from all `jobs` follows which files they share. A model that the hub
    does not describe is not counted, and its line says why.
    """
    from headdyn.models.checkpoints.files import MOST_ON_DISK
    from headdyn.models.checkpoints.forecast import forecast
    from headdyn.models.checkpoints.hub import CheckpointError

    models = [job.model for job in jobs if isinstance(job.model, Pretrained)]
    needed = {(job.model.name, job.model.revision) for job in todo if isinstance(job.model, Pretrained)}
    lines, on_disk = [], 0
    for name, keeps in dict.fromkeys((model.name, model.keep_downloads) for model in models):
        series = [model.revision for model in models if model.name == name]
        done = [revision for revision in series if (name, revision) not in needed]
        try:
            ahead = forecast(name, series, store, done=done)
        except CheckpointError as error:
            lines.append(f"not counted, for {error}")
            continue
        lines += ahead.lines()
        sizes = sorted(ahead.to_download.values(), reverse=True)
        on_disk += sum(sizes if keeps else sizes[:MOST_ON_DISK])
    return lines, on_disk


def dry_run(plan: Plan) -> None:
    """Print what the command would do. Nothing is begun."""
    store = Store(cache_root())
    todo = [job for job in plan.jobs if manifest_of_done(job, plan.folder_of(job)) is None]
    known = measured(store.root, plan.folder.parent.parent)
    print(f"{count(len(plan.jobs), 'run')} in {plan.folder}, {len(plan.jobs) - len(todo)} of them complete")
    total, unknown, trained = 0.0, set[str](), set[str]()
    for job in todo:
        training = shared_stages(job)[-1:]
        seconds, unmeasured = seconds_of(job, known, trains=not trained.issuperset(training))
        trained.update(training)
        total += seconds
        unknown.update(unmeasured)
        print(f"  {job.name}: {_time(seconds, unmeasured)}")
    if not todo:
        return
    matched, unmeasured = seconds_at_matched_loss(plan.jobs, known)
    total += matched
    unknown.update(unmeasured)
    if matched or unmeasured:
        at_most = "" if unmeasured else ", or less"
        print(f"  snapshots at which arms have the same loss: {_time(matched, unmeasured)}{at_most}")
    lines, weights = downloads(plan.jobs, todo, store)
    print("downloads: " + ("; ".join(lines) or "none"))
    cache, folders, uncounted = bytes_of(todo, store)
    free = shutil.disk_usage(store.root).free
    print(
        f"disk: {_size(cache + weights)} in {store.root} ({_size(free)} free) for downloads, corpora and snapshots; "
        f"{_size(folders)} in {plan.folder} for attention patterns"
    )
    print(f"  not counted: {'; '.join([*uncounted, 'what a study trains, tables and pictures'])}")
    workers = len(environments(plan.jobs)) if plan.is_sweep else 1
    side = f", {workers} side by side" if workers > 1 else ""
    print(f"time: {_time(total / workers, sorted(unknown))}{side if total else ''}")
    if total:
        print(
            "  from what updates and analyses of the same sizes took here before, whatever their numbers of random "
            "draws; less where a training is in the cache already"
        )
    print("  not counted: the start of processes, corpora, evaluations, compiling and pages")


def _time(seconds: float, unmeasured: Sequence[str]) -> str:
    """`about 31 s`; with parts that were never measured, `no estimate for probes (…)` and the sum of the others."""
    about = f"about {_duration(seconds)}"
    if not unmeasured:
        return about
    rest = f"; the measured rest {about}" if seconds else ""
    return f"no estimate for {', '.join(unmeasured)} (never measured here at these sizes){rest}"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
