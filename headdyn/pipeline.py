"""One run: corpus → model → analyses → record. The only place that constructs; read it to see what a run does."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file

from headdyn.analysis.contract import Analysis
from headdyn.config import AnalysisChoice, RunConfig
from headdyn.core import machine
from headdyn.core.machine import Machine
from headdyn.core.randomness import generator
from headdyn.core.records import HeadTable
from headdyn.core.run_folder import MetricsFollower, RunFolder, is_complete, read_metrics
from headdyn.core.store import Entry, StageInterruptedError, Store, cache_root, explain_os_error, recipe_key
from headdyn.core.tracking import open_tracker
from headdyn.data.corpus import Corpus, corpus_recipe
from headdyn.data.ordering import BatchSchedule, dominant_topics
from headdyn.models.checkpoints import load_snapshot, snapshot_steps
from headdyn.models.decoder import Decoder
from headdyn.report.run_page import write_run_page
from headdyn.report.terminal import ProgressLine
from headdyn.training.drope import recalibrate
from headdyn.training.loop import Progress, train

log = logging.getLogger(__name__)

# Raised when a stage's meaning changes, so that what an older version left is not mistaken for this one's.
SCHEMA = {"corpus": 1, "training": 1, "recalibration": 1}


def run(config: RunConfig, folder: Path) -> None:
    """Do one run and leave its record in `folder`; nothing, where that is complete already and not forced.

    Raises KeyboardInterrupt when asked to stop (SIGINT, SIGTERM) after saving where it was, and whatever failed.
    """
    if is_complete(folder) and not config.force:
        log.info("%s: already complete (force=true runs it again)", config.name)
        return
    here = machine.resolve(config.device, config.precision, config.threads)
    machine.keep_freed_memory()
    store = open_store()
    facts = {
        "name": config.name,
        "hash": config.hash,
        "factors": dict(config.factors),
        "seed": config.seed,
        "machine": dataclasses.asdict(here),
        "config": dict(config.resolved),
    }
    with (
        stop_on_signals() as should_stop,
        RunFolder(folder, facts) as record,
        open_tracker(
            config.tracking,
            folder,
            name=config.name,
            group=folder.parent.name,
            tags=[f"{name} {value}" for name, value in config.factors.items()],
            job_type="train",
            config={**config.resolved, "factors": dict(config.factors)},
            staging=store.root / "wandb",
        ) as record.tracker,
    ):
        try:
            work(config, store, here, record, should_stop)
        except StageInterruptedError as stop:
            log.warning("%s: stopped as asked; the same command continues from here", config.name)
            raise KeyboardInterrupt(str(stop)) from stop
        except OSError as error:
            raise OSError(error.errno, explain_os_error(error, folder)) from error
    write_run_page(folder)


def work(config: RunConfig, store: Store, here: Machine, record: RunFolder, should_stop: Callable[[], bool]) -> None:
    """The run itself: corpus → model → analyses → record."""
    with record.timed("corpus"):
        corpus, entry = open_corpus(config, store)
    record.stage("corpus", entry)
    record.manifest["corpus"] = {
        "name": corpus.name,
        "topic_names": list(corpus.topic_names),
        "facts": dict(corpus.facts),
    }
    record.summarise(**{f"{name}_nats": value for name, value in corpus.reference_nats.items()})
    analyses = {name: build_analysis(choice) for name, choice in config.analysis.items()}
    for analysis in analyses.values():
        if hasattr(analysis, "check"):
            analysis.check(corpus)  # a corpus too small is said before anything is trained on it
    stages = Stages(config, corpus, entry, store, here, record, should_stop)
    with record.timed("training"):
        decoder = stages.final_decoder()
    for name, analysis in analyses.items():
        with record.timed(name):
            findings = analysis(decoder, corpus, generator(config.seed, f"analysis/{name}"))
        record.describe(name, inspect.getdoc(analysis) or "", analysis.metrics)
        record.add(name, findings, run=config.name, model=config.model.name, step=stages.last_step)
    patterns = record.path / "patterns.safetensors"
    save_patterns(decoder, corpus, config.patterns_kept, patterns)
    record.tracker.artifact(f"{config.name}-patterns", "attention", patterns)


def open_store() -> Store:
    """The cache of finished stages, with the compiler's own cache inside."""
    root = cache_root()
    # Compiled training steps are kept too, so that only a machine's first run of a shape waits for the compiler.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(root / "inductor"))
    return Store(root)


def open_corpus(config: RunConfig, store: Store) -> tuple[Corpus, Entry]:
    """The corpus, built at most once for its settings."""
    source = config.data
    recipe = {"schema": SCHEMA["corpus"], **corpus_recipe(source)}
    entry = store.get("corpus", recipe, source.build, resumable=getattr(source, "resumable", False))
    return source.open(entry.path), entry


def training_recipe(config: RunConfig, corpus: Corpus, corpus_key: str, here: Machine) -> dict[str, Any]:
    """Exactly what the weights after training depend on. Arms that differ in position_enc alone share it."""
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

    @property
    def last_step(self) -> int:
        """How many updates the final decoder has seen, those of a recalibration included."""
        recalibration = self.config.position_enc.recalibration
        return self.config.train.steps + (recalibration.count(self.config.train.steps) if recalibration else 0)

    def final_decoder(self) -> Decoder:
        """The decoder to analyse, on the run's device; what its stages measured goes into the run's record."""
        decoder = self.trained()
        return decoder if self.config.position_enc.recalibration is None else self.recalibrated(decoder)

    def trained(self) -> Decoder:
        config, corpus = self.config, self.corpus
        schedule = BatchSchedule(
            ordering=config.data_ordering,
            dominant_N=dominant_topics(corpus.train.topics_NT, corpus.num_topics),
            batch_size=config.train.batch_size,
            seed=config.seed,
        )

        def build(folder: Path) -> None:
            init = torch.Generator().manual_seed(int(generator(config.seed, "init").integers(2**63)))
            decoder = Decoder(config.decoder_config(corpus.vocab_size)).initialise(init, config.model.init_std)
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
        decoder, _ = load_snapshot(snapshots[config.train.steps])
        return decoder.to(self.here.device)

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
        decoder, _ = load_snapshot(snapshot_steps(entry.path / "snapshots")[facts["steps"]])
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

            yield observe
        if follower:
            follower.catch_up()


def analyse_snapshot(config: RunConfig, step: int, folder: Path, names: Sequence[str]) -> HeadTable:
    """The named analyses of a finished training's snapshot, kept in the run's folder as heads_step000400.parquet."""
    path = folder / f"heads_step{step:06d}.parquet"
    if path.exists():
        return HeadTable.read(path)
    store, here = open_store(), machine.resolve(config.device, config.precision, config.threads)
    corpus, corpus_entry = open_corpus(config, store)
    entry = store.find("training", training_recipe(config, corpus, corpus_entry.key, here))
    if entry is None:
        raise ValueError(
            f"the training of {config.name} is not in {store.root}; run it again, or set HEADDYN_CACHE to its cache"
        )
    decoder, _ = load_snapshot(snapshot_steps(entry.path / "snapshots")[step])
    tables = []
    for name in names:
        if name in config.analysis:
            rng = generator(config.seed, f"analysis/{name}")
            findings = build_analysis(config.analysis[name])(decoder.to(here.device), corpus, rng)
            tables.append(findings.table.with_q().labelled(run=config.name, model=config.model.name, step=step))
    table = HeadTable.concat(tables)
    table.write(path)
    return table


def build_analysis(choice: AnalysisChoice) -> Analysis:
    """The analysis a configuration names; its settings were checked already."""
    module, _, name = choice.target.rpartition(".")
    return getattr(importlib.import_module(module), name)(**choice.settings)


@torch.no_grad()
def save_patterns(decoder: Decoder, corpus: Corpus, count: int, path: Path) -> None:
    """Attention patterns of the first `count` validation sequences, all layers and heads, with tokens and topics.

    float16, `pattern.LAYER` [N, H, T, T]; one layer's patterns are in memory at a time before they are rounded.
    """
    tokens_NT = torch.from_numpy(corpus.val.tokens_NT[:count].astype("int64"))
    tensors = {"tokens": tokens_NT, "topics": torch.from_numpy(corpus.val.topics_NT[:count].astype("int64"))}
    resid_BTD = None
    for layer in range(decoder.config.num_layers):
        start = None if resid_BTD is None else (layer, resid_BTD)
        sites = ("pattern", "resid_post")
        trace = decoder.trace(
            tokens_NT.to(decoder.embed.weight.device), sites=sites, layers=(layer,), start=start, logits=None
        )
        resid_BTD = trace["resid_post", layer]
        tensors[f"pattern.{layer}"] = trace["pattern", layer].half().cpu().contiguous()
    save_file(tensors, path)


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM only set a flag, so that a training can finish its step and save; twice is at once."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping.is_set  # signals reach the main thread alone
        return

    def note(number: int, frame: Any) -> None:
        if stopping.is_set():
            raise KeyboardInterrupt
        stopping.set()
        log.warning("%s: stopping at the next safe point (again to stop at once)", signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
