"""One run: corpus → model → analyses → record. Everything is constructed here; read it to see what a run does."""

import dataclasses
import inspect
import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from headdyn.analysis.contract import require_model_rows
from headdyn.analysis.interventions.patch import chosen_layer
from headdyn.analysis.sequences import Sequences, within_memory
from headdyn.analysis.series.points import CIRCUITS
from headdyn.config import RunConfig
from headdyn.core import machine
from headdyn.core.kept_parts import identity_of, keeping
from headdyn.core.randomness import generator
from headdyn.core.records import Findings, HeadTable
from headdyn.core.run_folder import KEPT_PARTS, PATTERNS, RunFolder, write_snapshot_table
from headdyn.core.stopping import stop_on_signals
from headdyn.core.store import StageInterruptedError, disk_error
from headdyn.core.tracking import open_tracker
from headdyn.core.whole_files import whole_file
from headdyn.data.corpus import Corpus
from headdyn.data.prompts import Prompts
from headdyn.done import done_with
from headdyn.models.checkpoints import load
from headdyn.models.checkpoints.snapshots import state_hash
from headdyn.models.decoder import Decoder
from headdyn.models.revisions import step_of
from headdyn.report.run_page import write_run_page
from headdyn.report.sections.patterns import patterns_by_role
from headdyn.stages import (
    Subject,
    Work,
    find_corpus,
    open_checkpoint,
    open_corpus,
    open_store,
    train_subject,
    training_recipe,
)
from headdyn.sweep.series import judge_series as judge_series  # workers call functions of this module
from headdyn.training.settings import processes

log = logging.getLogger(__name__)


def run(config: RunConfig, folder: Path, should_stop: Callable[[], bool] | None = None) -> None:
    """Do one run and write its record to `folder`. A complete run is not done again.

    `should_stop` asks the run to stop; if it is None, SIGINT and SIGTERM do. The run then saves its state and raises
    KeyboardInterrupt. Any error of the run is raised after it is recorded.
    """
    if done_with(config, folder):
        return
    this_machine = machine.resolve(config.device, config.precision, config.threads)
    machine.return_freed_memory()
    if config.trains:
        machine.keep_freed_memory()  # not for checkpoints: one's memory would stay occupied while the next one loads
    store, settings, factors = open_store(), dict(config.resolved), dict(config.factors)
    facts = {
        "name": config.name,
        "hash": config.hash,
        "factors": factors,
        "seed": config.seed,
        "absent": dict(config.absent),
        "machine": {**dataclasses.asdict(this_machine), **({"processes": processes()} if processes() > 1 else {})},
        "config": settings,
    }
    checkpoint_step = step_of(str(factors.get("revision")))  # a number, so that W&B can plot over it
    with (
        stop_on_signals() if should_stop is None else nullcontext(should_stop) as should_stop,
        RunFolder(folder, facts) as record,
        open_tracker(
            config.tracking,
            folder,
            name=config.name,
            group=folder.parent.name,
            factors=factors,
            job_type="train" if config.trains else "analyse",
            config={**settings, "factors": factors, "checkpoint_step": checkpoint_step},
            staging=store.root / "wandb",
            commit=record.manifest["git"],
            shared=folder.parent.parent.name == "multirun",
        ) as record.tracker,
    ):
        with whole_file(folder / "config.yaml") as file:
            OmegaConf.save(OmegaConf.create(settings), file)
        if config.force:
            shutil.rmtree(folder / KEPT_PARTS, ignore_errors=True)
        try:
            _work(Work(config=config, store=store, machine=this_machine, record=record, should_stop=should_stop))
        except StageInterruptedError as stop:
            log.warning("%s: stopped as asked; the same command continues from here", config.name)
            raise KeyboardInterrupt(str(stop)) from stop
        except Exception as error:
            refused = disk_error(error, folder)
            if refused is None or refused is error:
                raise
            raise refused from error
    write_run_page(folder)


def _work(work: Work) -> None:
    """Do the stages and analyses of a run whose record is open."""
    config, record = work.config, work.record
    analyses = {name: analysis for name, analysis in config.analysis.items() if "series" not in analysis.needs}
    if config.trains:
        corpus, entry = open_corpus(work, config.data)
        subject = train_subject(work, corpus, entry.key)
    else:
        subject = open_checkpoint(work)
    weights = record.manifest.get("checkpoint", {}).get("state_hash") or state_hash(subject.decoder)
    material = subject.material
    material_key = material.digest() if isinstance(material, Prompts) else record.manifest["stages"]["corpus"]["key"]
    for name, analysis in analyses.items():
        if work.should_stop():
            raise StageInterruptedError(f"asked to stop before analysis {name}")
        identity = identity_of(analysis, work.machine, config.seed, weights, material_key)
        with record.timed(name), keeping(record.path / KEPT_PARTS / name, identity, work.should_stop) as saved_parts:
            findings = _findings(config, name, subject.decoder, material)
        record.count_earlier(name, saved_parts.seconds)
        if not isinstance(findings, Findings):
            raise TypeError(f"analysis {name} returned {type(findings).__name__}, not Findings")
        require_model_rows(name, analysis.metrics, findings.table)
        record.describe(name, inspect.getdoc(analysis) or "", analysis.metrics)
        record.add(name, findings, run=config.name, model=config.model.name, step=subject.step)
    _keep_internals(config, subject, record)
    shutil.rmtree(record.path / KEPT_PARTS, ignore_errors=True)


def _findings(config: RunConfig, name: str, decoder: Decoder, material: Corpus | Prompts) -> Findings:
    """Do the analysis, in smaller batches if memory runs out."""
    analysis = config.analysis[name]
    return within_memory(
        lambda: analysis(decoder, material, generator(config.seed, f"analysis/{name}")), f"analysis {name}"
    )


def _keep_internals(config: RunConfig, subject: Subject, record: RunFolder) -> None:
    """Save parts of the model that are read later: circuits for analyses of series, attention patterns for pages."""
    for analysis in config.analysis.values() if config.series else ():
        if "circuits" in analysis.needs:
            from headdyn.analysis.series.head_matching import save_circuits  # loads scipy's clustering, half a second

            layer = chosen_layer(getattr(analysis, "layer", None), subject.decoder.config.num_layers)
            save_circuits(subject.decoder, layer, record.path / CIRCUITS)
    if config.patterns_kept:
        patterns = record.path / PATTERNS
        save_patterns(subject.decoder, first_sequences(subject.material, config.patterns_kept), patterns)
        record.tracker.artifact(f"{config.name}-patterns", "attention", patterns)
        record.figure("patterns", "telling_heads", patterns_by_role(HeadTable.concat(record.tables), patterns))


def analyse_snapshot(
    config: RunConfig, step: int, folder: Path, names: Sequence[str], should_stop: Callable[[], bool]
) -> None:
    """Do the named analyses of a snapshot of a finished training; writes RUN/heads_step000400.parquet.

    Raises ValueError if the training is not in the cache.
    """
    store, this_machine = open_store(), machine.resolve(config.device, config.precision, config.threads)
    corpus, corpus_entry = find_corpus(config.data, store)
    entry = store.find("training", training_recipe(config, corpus, corpus_entry.key, this_machine))
    if entry is None:
        raise ValueError(
            f"the training of {config.name} is not in {store.root}; run it again, or set HEADDYN_CACHE to its cache"
        )
    decoder = load(entry.path / "snapshots", f"step{step}").decoder.to(this_machine.device)
    weights, parts, tables = state_hash(decoder), folder / KEPT_PARTS / f"step{step}", []
    for name in (name for name in names if name in config.analysis):
        identity = identity_of(config.analysis[name], this_machine, config.seed, weights, corpus_entry.key)
        with keeping(parts / name, identity, should_stop):
            findings = _findings(config, name, decoder, corpus)
        tables.append(findings.table.with_q().labelled(run=config.name, model=config.model.name, step=step))
    write_snapshot_table(folder, step, HeadTable.concat(tables))
    shutil.rmtree(parts, ignore_errors=True)
    with suppress(OSError):  # not empty while another process analyses another snapshot of this run
        parts.parent.rmdir()


def first_sequences(material: Corpus | Prompts, count: int) -> Sequences:
    """The first `count` validation sequences, or clean prompts of the largest group of prompts of one length."""
    if isinstance(material, Corpus):
        return Sequences.of(material, slice(count))
    clean_NT = max(material.groups, key=len).clean_NT[:count]
    return Sequences(clean_NT, np.zeros_like(clean_NT))


@torch.no_grad()
def save_patterns(decoder: Decoder, sequences: Sequences, path: Path) -> None:
    """Write the attention patterns of these sequences, in all layers and heads, with tokens and topics [N, T].

    `pattern.LAYER` is float16 [N, H, T, T]. Only one layer's patterns at a time are in memory unrounded.
    """
    device = decoder.embed.weight.device
    tokens_NT, topics_NT = (torch.from_numpy(ids) for ids in (sequences.tokens_NT, sequences.topics_NT))
    documents_NT = None if sequences.documents_NT is None else torch.from_numpy(sequences.documents_NT).to(device)
    tensors, start = {"tokens": tokens_NT, "topics": topics_NT}, None
    for layer in range(decoder.config.num_layers):
        trace = decoder.trace(
            tokens_NT.to(device),
            sites=("pattern", "resid_post"),
            layers=(layer,),
            start=start,
            logits=None,
            documents_BT=documents_NT,
        )
        start = (layer + 1, trace["resid_post", layer])
        tensors[f"pattern.{layer}"] = trace["pattern", layer].half().cpu().contiguous()
    with whole_file(path) as file:
        save_file(tensors, file)
