"""What a run's analyses stand on, each stage done at most once: corpus, training, recalibration, or a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from headdyn.config import RunConfig
from headdyn.core.machine import Machine
from headdyn.core.randomness import generator
from headdyn.core.run_folder import MetricsFollower, RunFolder, read_metrics
from headdyn.core.store import Entry, Store, cache_root, recipe_key
from headdyn.data.comparisons import Comparisons, Prompts
from headdyn.data.corpus import Corpus, Source, corpus_recipe
from headdyn.data.ordering import BatchSchedule, dominant_topics
from headdyn.models.checkpoints import load
from headdyn.models.checkpoints.snapshots import read_snapshot, snapshot_steps, state_hash
from headdyn.models.decoder import Decoder
from headdyn.models.revisions import step_of
from headdyn.models.settings import BuiltSuite, MiniQwen3, Pretrained, Trained
from headdyn.report.terminal import ProgressLine
from headdyn.training.drope import recalibrate
from headdyn.training.loop import Progress, train

# Raised when a stage's meaning changes, so that what an older version left is not mistaken for this one's.
SCHEMA = {"corpus": 1, "training": 1, "recalibration": 1}


def open_store() -> Store:
    """The cache of finished stages, with the compiler's own cache inside."""
    root = cache_root()
    # Compiled training steps are kept too, so that only a machine's first run of a shape waits for the compiler.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))
    return Store(root)


def recipe_of(source: Source) -> dict[str, Any]:
    """What the store keys a corpus by."""
    return {"schema": SCHEMA["corpus"], **corpus_recipe(source)}


def find_corpus(config: RunConfig, store: Store) -> tuple[Corpus, Entry]:
    """The corpus, built at most once for its settings."""
    source = config.data
    assert not isinstance(source, Comparisons)
    entry = store.get("corpus", recipe_of(source), source.build, resumable=getattr(source, "resumable", False))
    return source.open(entry.path), entry


def is_outdated(config: RunConfig, manifest: Mapping[str, Any]) -> bool:
    """Whether a run's corpus is another by now: the user's file was edited under the same path."""
    if isinstance(config.data, Comparisons):
        return False
    return bool(manifest["stages"]["corpus"]["key"] != recipe_key("corpus", recipe_of(config.data)))


def open_corpus(config: RunConfig, store: Store, record: RunFolder) -> tuple[Corpus, Entry]:
    """The corpus, and what it is in the run's record."""
    with record.timed("corpus"):
        corpus, entry = find_corpus(config, store)
    record.stage("corpus", entry)
    record.manifest["corpus"] = {
        "name": corpus.name,
        "topic_names": list(corpus.topic_names),
        "facts": dict(corpus.facts),
    }
    record.summarise(**{f"{name}_nats": value for name, value in corpus.reference_nats.items()})
    return corpus, entry


def open_checkpoint(
    config: RunConfig, store: Store, here: Machine, record: RunFolder, should_stop: Callable[[], bool]
) -> Subject:
    """A checkpoint that comes trained, with the comparison prompts in its own tokens."""
    model, data = config.model, config.data
    assert not isinstance(model, MiniQwen3)
    assert isinstance(data, Comparisons)
    name, keep = model.name, True
    if isinstance(model, Pretrained):
        keep = model.keep_downloads
    else:
        with record.timed("training"):
            name = str(open_suite(model, store, record, should_stop))
    with record.timed("checkpoint"):
        loaded = load(name, model.revision, store=store, dtype=model.dtype, keep=keep)
    if loaded.tokenizer is None:
        raise ValueError(f"model.name={model.name} has no tokenizer, and prompts need one; name a language model")
    record.manifest["checkpoint"] = {
        "name": model.name,
        "revision": loaded.revision,
        "commit": loaded.commit,
        "dtype": model.dtype,
        "state_hash": loaded.state_hash,
    }
    record.save_manifest()
    return Subject(loaded.decoder.to(here.device), data.prompts(loaded.tokenizer), loaded.step or 0)


def open_suite(model: BuiltSuite, store: Store, record: RunFolder, should_stop: Callable[[], bool]) -> Path:
    """The folder of a suite's revisions, trained at most once; what is known of it goes into the run's record."""

    def build(folder: Path) -> None:
        with ProgressLine(f"{model.name} training") as line:
            model.build(folder, observer=line, should_stop=should_stop)

    entry = store.get(model.stage, model.recipe(), build, resumable=True)
    record.stage(model.stage, entry)
    record.manifest["truth"] = model.truth()
    return entry.path


def training_recipe(config: RunConfig, corpus: Corpus, corpus_key: str, here: Machine) -> dict[str, Any]:
    """Exactly what the weights after training depend on. Arms that differ in position_enc alone share it."""
    assert isinstance(config.model, MiniQwen3)
    train = dataclasses.asdict(config.train)
    del train["resume_every_seconds"]  # how often a run is saved changes nothing it computes
    return {
        "schema": SCHEMA["training"],
        "corpus": corpus_key,
        "decoder": dataclasses.asdict(config.decoder_config(corpus.vocab_size)),
        "init_std": config.model.init_std,
        "ordering": [type(config.data_ordering).__qualname__, dataclasses.asdict(cast(Any, config.data_ordering))],
        "train": train,
        "seed": config.seed,
        "precision": here.precision,
    }


@dataclass(frozen=True)
class Subject:
    """What analyses are called on: the decoder on the run's device, what it reads, and how far it was trained."""

    decoder: Decoder
    material: Corpus | Prompts
    step: int


class Stages:
    """The training a configuration describes, and the recalibration where positions change, each done at most once."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        corpus_entry: Entry,
        store: Store,
        here: Machine,
        record: RunFolder,
        should_stop: Callable[[], bool],
    ) -> None:
        self.config, self.corpus, self.store, self.here = config, corpus, store, here
        self.record, self.should_stop = record, should_stop
        self.recipe = training_recipe(config, corpus, corpus_entry.key, here)

    def subject(self) -> Subject:
        """The decoder to analyse; what its stages measured goes into the run's record."""
        model, recalibration, steps = self.config.model, self.config.position_enc.recalibration, self.config.train.steps
        with self.record.timed("training"):
            snapshots = self.trained()
            if isinstance(model, Trained) and model.revision is not None:
                return self.snapshot(snapshots, model.revision)
            decoder = read_snapshot(snapshots[steps])[0].to(self.here.device)
            if recalibration is None:
                return Subject(decoder, self.corpus, steps)
            return Subject(self.recalibrated(decoder), self.corpus, steps + recalibration.count(steps))

    def snapshot(self, snapshots: Mapping[int, Path], revision: str) -> Subject:
        """The training's decoder as it was at one of its snapshots."""
        step = step_of(revision)
        if step is None or step not in snapshots:
            raise ValueError(
                f"model.revision={revision} is no snapshot of this training; there are "
                f"{', '.join(f'step{kept}' for kept in snapshots)} (train.snapshots={self.config.train.snapshots})"
            )
        decoder = read_snapshot(snapshots[step])[0]
        self.record.manifest["checkpoint"] = {"revision": revision, "state_hash": state_hash(decoder)}
        return Subject(decoder.to(self.here.device), self.corpus, step)

    def trained(self) -> dict[int, Path]:
        """The snapshots of the training, by step."""
        config, corpus, init_std = self.config, self.corpus, self.recipe["init_std"]
        schedule = BatchSchedule(
            ordering=config.data_ordering,
            dominant_N=dominant_topics(corpus.train.topics_NT, corpus.num_topics),
            batch_size=config.train.batch_size,
            seed=config.seed,
        )

        def build(folder: Path) -> None:
            init = torch.Generator().manual_seed(int(generator(config.seed, "init").integers(2**63)))
            decoder = Decoder(config.decoder_config(corpus.vocab_size)).initialise(init, init_std)
            with self.watch(folder, "training") as observer:
                train(
                    decoder,
                    corpus,
                    schedule,
                    config.train,
                    folder=folder,
                    precision=self.here.precision,
                    device=self.here.device,
                    observer=observer,
                    should_stop=self.should_stop,
                )

        entry = self.store.get("training", self.recipe, build, resumable=True)
        self.record.stage("training", entry)
        if not entry.built:
            MetricsFollower(entry.path / "metrics.jsonl", self.record).catch_up()
        losses = dict(read_metrics(entry.path / "metrics.jsonl")["val_loss_nats"])
        snapshots = snapshot_steps(entry.path / "snapshots")
        place = schedule.place_after(config.train.steps)
        self.record.summarise(
            snapshot_losses_nats={str(step): losses[step] for step in snapshots},
            train_passes=schedule.passes(config.train.steps),
            ended_in_pass=place.fraction,
            ended_in_topic=None if place.topic is None else corpus.topic_names[place.topic],
            **json.loads((entry.path / "result.json").read_text(encoding="utf-8")),
        )
        return snapshots

    def recalibrated(self, parent: Decoder) -> Decoder:
        config, settings = self.config, self.config.position_enc.recalibration
        assert settings is not None
        recipe = {
            "schema": SCHEMA["recalibration"],
            "parent": recipe_key("training", self.recipe),
            "keep_rotary": config.position_enc.keep_rotary,
            "settings": dataclasses.asdict(settings),
        }

        def build(folder: Path) -> None:
            with self.watch(folder, "recalibration") as observer:
                recalibrate(
                    parent,
                    self.corpus,
                    config.train,
                    settings,
                    keep_rotary=config.position_enc.keep_rotary,
                    seed=config.seed,
                    folder=folder,
                    precision=self.here.precision,
                    device=self.here.device,
                    observer=observer,
                    should_stop=self.should_stop,
                )

        entry = self.store.get("recalibration", recipe, build, resumable=True)
        self.record.stage("recalibration", entry)
        facts = json.loads((entry.path / "recalibration.json").read_text(encoding="utf-8"))
        self.record.summarise(recalibration=facts, recovered=facts["recovered"])
        decoder, _ = read_snapshot(snapshot_steps(entry.path / "snapshots")[facts["steps"]])
        return decoder.to(self.here.device)

    @contextmanager
    def watch(self, folder: Path, stage: str) -> Iterator[Callable[[Progress], None]]:
        """Show a stage's progress and carry its metrics into the run as they come."""
        follower = MetricsFollower(folder / "metrics.jsonl", self.record) if stage == "training" else None
        with ProgressLine(f"{self.config.name} {stage}") as line:

            def observe(progress: Progress) -> None:
                line(progress)
                if follower:
                    follower.catch_up()

            try:
                yield observe
            finally:
                if follower:  # of a training that was stopped or failed, too
                    follower.catch_up()
