"""The stages before a run's analyses, each done at most once: corpus, training, recalibration, or a checkpoint."""

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from headdyn.config import RunConfig
from headdyn.core.json_files import read_json
from headdyn.core.machine import Machine
from headdyn.core.randomness import generator
from headdyn.core.run_folder import METRICS, MetricsFollower, RunFolder, read_metrics
from headdyn.core.store import Entry, Store, cache_root, recipe_key
from headdyn.data.corpus import Corpus, Source
from headdyn.data.model_tokens import ModelTokens
from headdyn.data.ordering import BatchSchedule, dominant_topics
from headdyn.data.prompts import Prompts, Tokenizer
from headdyn.done import recipe_of
from headdyn.models.checkpoints import load
from headdyn.models.checkpoints.snapshots import snapshot_steps
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.models.settings import BuiltSuite, MiniQwen3, Pretrained, Trained
from headdyn.sweep.words import worth_sentence
from headdyn.training.drope import recalibrate
from headdyn.training.loop import Observer, TrainingProgress
from headdyn.training.next_token import NextToken, train
from headdyn.training.progress_line import progress_line
from headdyn.training.settings import RecalibrationSettings

log = logging.getLogger(__name__)

# Increased when the meaning of a stage changes, so that results of an older version are not used.
SCHEMA = {"training": 2, "recalibration": 1}


@dataclass(frozen=True, kw_only=True)
class Work:
    """A run while it is done: its settings, and the store, machine, record and stop flag that its stages use."""

    config: RunConfig
    store: Store
    machine: Machine
    record: RunFolder
    should_stop: Callable[[], bool]


@dataclass(frozen=True)
class Subject:
    """What analyses are called with: the decoder on the run's device, what it reads, and its training step."""

    decoder: Decoder
    material: Corpus | Prompts
    step: int


def open_store() -> Store:
    """The cache of finished stages, with the compiler's own cache inside."""
    root = cache_root()
    # Compiled training steps are cached too, so that only the first run of each shape waits for the compiler.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))
    return Store(root)


# -- corpus -----------------------------------------------------------------------------------------------------------


def find_corpus(source: Source, store: Store) -> tuple[Corpus, Entry]:
    """The corpus, built at most once for its settings, and its entry in the store."""
    entry = store.get("corpus", recipe_of(source), source.build, resumable=getattr(source, "resumable", False))
    return source.open(entry.path), entry


def open_corpus(work: Work, source: Source) -> tuple[Corpus, Entry]:
    """The run's corpus and its entry in the store. Writes facts about the corpus into the run's record.

    Raises ValueError, with the reasons of all analyses, if one of them cannot use the corpus.
    """
    with work.record.timed("corpus"):
        corpus, entry = find_corpus(source, work.store)
    work.record.stage("corpus", entry)
    if refusals := work.config.refusals(corpus):
        raise ValueError("; and ".join(refusals))
    facts = {"name": corpus.name, "topic_names": list(corpus.topic_names), "facts": dict(corpus.facts)}
    facts["source"] = recipe_key("corpus", recipe_of(work.config.data))
    work.record.manifest["corpus"] = facts
    work.record.summarise(**{f"{name}_nats": value for name, value in corpus.reference_nats.items()})
    if {"selection_worth_nats", "selection_worth_absent"} & corpus.facts.keys():
        announce = log.info if entry.built else work.record.note  # on the terminal once, not for every run of a sweep
        announce(worth_sentence([corpus.facts]))
    return corpus, entry


# -- checkpoints that come trained ------------------------------------------------------------------------------------


def in_tokens_of(config: RunConfig, decoder: DecoderConfig, tokenizer: Tokenizer | None) -> Any:
    """The run's data in the tokens of a model that is already trained: the Source of a corpus, or Prompts.

    Raises ValueError if that is impossible: no tokenizer, tokens beyond the vocabulary, sequences beyond the learned
    positions, or prompts that do not align.
    """
    name, data = config.model.name, cast(Any, config.data)
    if config.material == "corpus":
        return data.in_tokens_of(ModelTokens(name, decoder.vocab_size, decoder.max_positions, tokenizer))
    if tokenizer is None:
        raise ValueError(f"model.name={name} has no tokenizer, and prompts need one; name a language model")
    return data.prompts(tokenizer)


def open_checkpoint(work: Work) -> Subject:
    """A checkpoint of a model that is already trained, with the prompts or the corpus in its own tokens."""
    model = work.config.model
    assert not isinstance(model, MiniQwen3)
    name, keep = model.name, True

    def prepare(decoder: DecoderConfig, tokenizer: Tokenizer | None) -> Corpus | Prompts:
        material = in_tokens_of(work.config, decoder, tokenizer)
        if work.config.material == "corpus":
            return open_corpus(work, cast(Source, material))[0]
        work.record.manifest["prompts"] = dict(material.facts)
        return material

    if isinstance(model, Pretrained):
        keep = model.keep_downloads
    else:
        with work.record.timed("training"):
            name = str(open_suite(work, model))
    with work.record.timed("checkpoint"):
        loaded = load(name, model.revision, store=work.store, dtype=model.dtype, keep=keep, prepare=prepare)
    work.record.manifest["checkpoint"] = {
        "name": model.name,
        "revision": loaded.revision,
        "commit": loaded.commit,
        "quantisation": loaded.quantisation,
        "dtype": model.dtype,
        "state_hash": loaded.state_hash,
    }
    work.record.save_manifest()
    if isinstance(model, Pretrained):
        checkpoint = f"{model.name.rstrip('/').rpartition('/')[2]}-{loaded.revision}"
        work.record.tracker.stands_on(checkpoint, "model", work.record.manifest["checkpoint"], built=False)
    return Subject(loaded.decoder.to(work.machine.device), loaded.material, loaded.step or 0)


def open_suite(work: Work, model: BuiltSuite) -> Path:
    """The folder of a suite's revisions, trained at most once. Records what is known of the suite by construction."""

    def build(folder: Path) -> None:
        with progress_line(f"{model.name} training") as line:
            model.build(folder, observer=line, should_stop=work.should_stop)

    entry = work.store.get(model.stage, model.recipe(), build, resumable=True)
    work.record.stage(model.stage, entry)
    work.record.manifest["truth"] = model.truth()
    return entry.path


# -- trainings --------------------------------------------------------------------------------------------------------


def training_recipe(config: RunConfig, corpus: Corpus, corpus_key: str, machine: Machine) -> dict[str, Any]:
    """Everything on which the trained weights depend, and nothing else. RoPE, DroPE and RoPE-control share it."""
    assert isinstance(config.model, MiniQwen3)
    settings = dataclasses.asdict(config.train)
    del settings["resume_every_seconds"], settings["accumulate"]  # they change results by rounding alone
    return {
        "schema": SCHEMA["training"],
        "corpus": corpus_key,
        "decoder": dataclasses.asdict(config.decoder_config(corpus.vocab_size)),
        "init_std": config.model.init_std,
        "ordering": [type(config.data_ordering).__qualname__, dataclasses.asdict(cast(Any, config.data_ordering))],
        "train": settings,
        "seed": config.seed,
        "precision": machine.precision,
    }


def train_subject(work: Work, corpus: Corpus, corpus_key: str) -> Subject:
    """The decoder that a run trains: at the end of training or recalibration, or at a snapshot of the training."""
    model, recalibration, steps = work.config.model, work.config.position_enc.recalibration, work.config.train.steps
    recipe = training_recipe(work.config, corpus, corpus_key, work.machine)
    with work.record.timed("training"):
        snapshots = _train(work, corpus, recipe)
        revision = model.revision if isinstance(model, Trained) else None
        trained = load(snapshots, revision or f"step{steps}")
        decoder, step = trained.decoder.to(work.machine.device), trained.step
        if revision is not None:
            work.record.manifest["checkpoint"] = {"revision": revision, "state_hash": trained.state_hash}
        elif recalibration is not None:
            decoder, more = _recalibrate(work, corpus, decoder, parent=recipe_key("training", recipe))
            step = steps + more
    assert step is not None
    return Subject(decoder, corpus, step)


def _train(work: Work, corpus: Corpus, recipe: Mapping[str, Any]) -> Path:
    """The folder of the training's snapshots, trained at most once. Writes the training's metrics into the record."""
    config, record = work.config, work.record
    labels_NT, label_names = corpus.order_labels()
    schedule = BatchSchedule(
        ordering=config.data_ordering,
        dominant_N=dominant_topics(labels_NT, len(label_names)),
        batch_size=config.train.batch_size,
        seed=config.seed,
        steps=config.train.steps,
    )

    def build(folder: Path) -> None:
        init = torch.Generator().manual_seed(int(generator(config.seed, "init").integers(2**63)))
        decoder = Decoder(config.decoder_config(corpus.vocab_size)).initialise(init, recipe["init_std"])
        precision, device = work.machine.precision, work.machine.device
        task = NextToken(decoder, corpus, schedule, config.train, folder, precision, device)
        with _watched(work, folder, "training") as observer:
            train(task, observer, work.should_stop)

    entry = work.store.get("training", recipe, build, resumable=True)
    record.stage("training", entry)
    if not entry.built:
        MetricsFollower(entry.path / METRICS, record).catch_up()
    losses = dict(read_metrics(entry.path / METRICS)["val_loss_nats"])
    ended_in_pass, topic = schedule.place_after(config.train.steps)
    record.summarise(
        snapshot_losses_nats={str(step): losses[step] for step in snapshot_steps(entry.path / "snapshots")},
        train_passes=schedule.passes(config.train.steps),
        ended_in_pass=ended_in_pass,
        ended_in_topic=None if topic is None else label_names[topic],
        **read_json(entry.path / "result.json"),
    )
    return entry.path / "snapshots"


def _recalibrate(work: Work, corpus: Corpus, decoder: Decoder, *, parent: str) -> tuple[Decoder, int]:
    """The decoder after recalibration, and the number of its steps.

    `parent` is the key of the training. RoPE-control is recalibrated for as many steps as the DroPE arm of the same
    training needed to recover; so the DroPE arm is recalibrated first, unless it is in the cache.
    """
    position_enc, settings = work.config.position_enc, work.config.position_enc.recalibration
    assert settings is not None

    def recalibrated(keep_rotary: bool, settings: RecalibrationSettings) -> tuple[Entry, dict[str, Any]]:
        recipe = {
            "schema": SCHEMA["recalibration"],
            "parent": parent,
            "keep_rotary": keep_rotary,
            "settings": dataclasses.asdict(settings),
        }

        def build(folder: Path) -> None:
            with _watched(work, folder, "recalibration") as observer:
                recalibrate(
                    decoder,
                    corpus,
                    work.config.train,
                    settings,
                    keep_rotary=keep_rotary,
                    seed=work.config.seed,
                    folder=folder,
                    precision=work.machine.precision,
                    device=work.machine.device,
                    observer=observer,
                    should_stop=work.should_stop,
                )

        entry = work.store.get("recalibration", recipe, build, resumable=True)
        return entry, read_json(entry.path / "recalibration.json")

    if position_enc.keep_rotary and settings.until_recovered:
        _, drope_facts = recalibrated(False, settings)
        settings = dataclasses.replace(settings, steps=drope_facts["steps"], until_recovered=False)
    entry, facts = recalibrated(position_enc.keep_rotary, settings)
    work.record.stage("recalibration", entry)
    work.record.summarise(recalibration=facts, recovered=facts["recovered"])
    return load(entry.path / "snapshots").decoder.to(work.machine.device), facts["steps"]


@contextmanager
def _watched(work: Work, folder: Path, stage: str) -> Iterator[Observer]:
    """The observer of a training, which shows its progress and copies its metrics into the run's record."""
    follower = MetricsFollower(folder / METRICS, work.record) if stage == "training" else None
    with progress_line(f"{work.config.name} {stage}") as line:

        def observe(progress: TrainingProgress) -> None:
            line(progress)
            if follower:
                follower.catch_up()

        try:
            yield observe
        finally:
            if follower:  # also if the training was stopped or failed
                follower.catch_up()
