"""headdyn from Python: what it returns is what the records say, and the process is left as it was."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas
import polars
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from safetensors.numpy import load_file

import headdyn
from headdyn.__main__ import main
from headdyn.api import Run, Sweep
from headdyn.core.settings import ConfigError
from headdyn.models.checkpoints.snapshots import state_hash
from headdyn.plan import Plan
from tests.commands import TINY, environment

SWEPT = ("position_enc=rope,drope", "seed=0,1")


def state() -> dict[str, Any]:
    """What a library must leave alone."""
    loggers = {name: logging.getLogger(name) for name in logging.root.manager.loggerDict} | {"root": logging.root}
    return {
        "process": (list(sys.argv), list(sys.path), dict(os.environ), Path.cwd(), os.umask(os.umask(0o22))),
        "streams": (sys.stdout, sys.stderr, sys.excepthook, sys.displayhook, sys.exit),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "logging": {name: (logger.level, list(logger.handlers), logger.disabled) for name, logger in loggers.items()},
        "logging is off": logging.root.manager.disable,
        "warnings": list(warnings.filters),
        "random": (random.getstate(), np.random.get_state()[1].sum(), torch.random.get_rng_state().sum().item()),
        "torch": (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype()),
        "determinism": (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        "numpy": (np.geterr(), np.get_printoptions()),
        "hydra": (HydraConfig.instance().cfg, GlobalHydra.instance().is_initialized()),
        "progress bars": are_progress_bars_disabled(),
        "altair": (alt.data_transformers.active, alt.renderers.active, alt.theme.active),
        "children": multiprocessing.active_children(),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What differs; what modules of others set as they are imported (loggers, filters of warnings) is no change."""
    new = {name: value for name, value in after["logging"].items() if name not in before["logging"]}
    after = after | {
        "logging": {name: value for name, value in after["logging"].items() if name in before["logging"]},
        "warnings": [rule for rule in after["warnings"] if rule in before["warnings"]],
    }
    differing = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    return differing | {
        name: value for name, value in new.items() if name.startswith(("headdyn", "hydra")) and value[1]
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sweep, list[dict[str, Any]]]]:
    """A sweep of four runs made by the API, and the process's state before and after it."""
    root = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(root).items():
            patch.setenv(name, value)
        patch.chdir(root)
        torch.set_num_threads(2)  # the runs compute on one
        before = state()
        sweep = headdyn.sweep(*SWEPT, *TINY)
        after = state()
        torch.set_num_threads(1)
        yield sweep, [before, after]


def test_importing_it_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, time; begun = time.process_time(); import headdyn; seconds = time.process_time() - begun\n"
        "print(seconds, sorted({'torch', 'hydra', 'numpy', 'pyarrow', 'transformers'} & set(sys.modules)))\n"
        "headdyn.compose('experiment=matrix', 'mode=smoke')\n"
        "print(sorted({'torch', 'transformers', 'scipy.special', 'scipy.optimize', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, heavy = done.stdout.splitlines()
    seconds, _, modules = first.partition(" ")
    assert float(seconds) < 0.3 and modules == heavy == "[]"


def test_composing_checks_every_job_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))
    before = state()
    jobs = headdyn.compose("experiment=matrix", "mode=smoke", "seed=0,1")
    assert changed(before, state()) == {}
    assert len({job.name for job in jobs}) == 16
    assert {(job.attention.name, job.position_enc.name, job.seed) for job in jobs} == {
        (attention, positions, seed)
        for attention in ("mha", "gqa")
        for positions in ("rope", "drope")
        for seed in (0, 1)
    }
    with pytest.raises(ConfigError, match=r"unknown key train\.stps; did you mean train\.steps"):
        headdyn.compose("train.stps=3")
    with pytest.raises(ConfigError, match="mode=tiny names no option; mode is landmark"):
        headdyn.compose("mode=tiny")
    assert changed(before, state()) == {} and not list(tmp_path.iterdir())


def test_modules_of_the_same_names_are_still_modules() -> None:
    import headdyn.run
    import headdyn.sweep.words

    assert headdyn.run.main.__module__ == "headdyn.run" and headdyn.sweep.words.statements
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        headdyn.walk  # noqa: B018


def test_a_sweep_leaves_the_process_as_it_was(made: tuple[Sweep, list[dict[str, Any]]]) -> None:
    assert changed(*made[1]) == {}


def test_a_single_run_leaves_the_process_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done in this process, tracking included; and so where it fails."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    tracked = [override for override in TINY if override != "tracking=none"]
    torch.set_num_threads(2)
    before = state()
    try:
        headdyn.run(*tracked)
        once = changed(before, state())
        with pytest.raises(RuntimeError, match="is failed"):
            headdyn.run(*tracked, "data.val_sequences=11", "train.eval_sequences=8")
        assert (once, changed(before, state())) == ({}, {})
    finally:
        torch.set_num_threads(1)


def test_the_command_line_and_the_api_go_one_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))
    planned: list[Plan] = []
    monkeypatch.setattr("headdyn.api.launch", lambda plan, arguments: planned.append(plan) or 130)
    overrides = ("mode=smoke", "ordering=shuffled,topic", "seed=0,1")
    with pytest.raises(KeyboardInterrupt):
        headdyn.sweep(*overrides)
    assert main(["run", "-m", *overrides]) == 130
    with pytest.raises(KeyboardInterrupt):
        headdyn.run("mode=smoke")
    assert main(["run", "mode=smoke"]) == 130
    assert planned[0] == planned[1] and planned[2] == planned[3] and len(planned) == 4


def test_a_sweep_is_what_its_records_say(made: tuple[Sweep, list[dict[str, Any]]]) -> None:
    sweep = made[0]
    assert not sweep.failed and len(sweep.runs) == 4 and sweep.report.is_file()
    effects = json.loads((sweep.path / "effects.json").read_text())
    table = sweep.effects.to_pylist()
    assert len(table) == len(effects) > 10
    for row in effects:
        same = [r for r in table if json.loads(r["levels"]) == row["levels"] and r["outcome"] == row["outcome"]]
        assert [(r["value"], r["ci_low"], r["q"], r["n"]) for r in same] == [
            (row["value"], row["ci_low"], row["q"], row["n"])
        ]
    assert {row["effect"] for row in table} == {"DroPE", "mean of RoPE", "mean of DroPE"}
    losses = dict(zip(sweep.summary["run"].to_pylist(), sweep.summary["loss_nats"].to_pylist(), strict=True))
    assert losses == {run.name: run.summary["loss_nats"]["value"] for run in sweep.runs}
    assert set(sweep.metrics["run"].to_pylist()) == set(losses) == set(sweep.heads.table["run"].to_pylist())
    assert sweep.answers["Did the models learn?"]


def test_a_run_is_what_its_records_say(made: tuple[Sweep, list[dict[str, Any]]]) -> None:
    run = made[0].runs[1]
    assert run.status == "complete" and run.factors["position_enc"] == "rope" and run.config["train"]["steps"] == 12
    assert run.heads.table.equals(pq.read_table(run.path / "heads.parquet"))
    logged = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert sorted(map(tuple, (row.values() for row in run.metrics.to_pylist()))) == sorted(
        (entry["step"], entry["name"], entry["value"]) for entry in logged
    )
    kept = load_file(run.path / "patterns.safetensors")
    assert np.array_equal(run.pattern(1, 2, sequence=1), kept["pattern.1"][1, 2].astype(np.float32))
    tokens_T, topics_T = run.sequence(1)
    assert np.array_equal(tokens_T, kept["tokens"][1]) and np.array_equal(topics_T, kept["topics"][1])
    for place, words in (((2, 0), "layer=2"), ((0, 4), "head=4"), ((0, 0, 2), "sequence=2")):
        with pytest.raises(ValueError, match=f"{words} is out of range; this run"):
            run.pattern(*place)
    for sequence in (-1, 2):
        with pytest.raises(ValueError, match=f"sequence={sequence} is out of range; this run has 0 to 1"):
            run.sequence(sequence)
    assert repr(run.heads.where(metric="selectivity")) == "<HeadTable: 9 rows of selectivity>"  # 8 heads, the model


def test_its_model_and_corpus_are_those_that_were_measured(made: tuple[Sweep, list[dict[str, Any]]]) -> None:
    rope, drope = (next(r for r in made[0].runs if r.factors["position_enc"] == name) for name in ("rope", "drope"))
    for run, rotary in ((rope, 1.0), (drope, 0.0)):
        decoder, (tokens_T, _) = run.decoder(), run.sequence(0)
        assert decoder.config.rotary_fraction == rotary
        with torch.no_grad():
            trace = decoder.trace(torch.from_numpy(tokens_T)[None], sites=("pattern",), layers=(1,), logits=None)
        assert np.allclose(trace["pattern", 1][0, 2].numpy(), run.pattern(1, 2), atol=1e-3)
        assert np.array_equal(run.corpus().val.tokens_NT[0], tokens_T)
    assert state_hash(drope.decoder("step12")) == state_hash(rope.decoder()) != state_hash(rope.decoder("step0"))


def test_figures_are_altair_charts_of_the_stored_specifications(made: tuple[Sweep, list[dict[str, Any]]]) -> None:
    sweep = made[0]
    run = sweep.runs[0]
    assert set(run.figures) == {file.stem for file in (run.path / "figures").glob("*.json")}
    for name, chart in {**run.figures, "pattern": run.pattern_chart(0, 1)}.items():
        spec = chart.to_dict()  # Altair's own check against the grammar
        if name != "pattern":
            stored = json.loads((run.path / "figures" / f"{name}.json").read_text())
            assert all(spec[key] == stored[key] for key in stored if key not in ("$schema", "config"))
            assert stored["config"].items() <= (spec["config"] | {"view": stored["config"]["view"]}).items()
    assert any(name.startswith("effects_on") for name in sweep.figures) and "held_out_loss" in sweep.figures
    assert f"{sweep.figures!r}" == f"<headdyn.Charts: {', '.join(sweep.figures)}>" and len(sweep.figures) > 5
    for chart in sweep.figures.values():
        assert chart.to_dict()["datasets"]


def test_a_complete_run_is_only_read(made: tuple[Sweep, list[dict[str, Any]]]) -> None:
    loaded = headdyn.load(made[0].path)
    assert isinstance(loaded, Sweep) and loaded.effects.equals(made[0].effects)
    run = loaded.runs[0]
    before = (run.path / "heads.parquet").stat().st_mtime_ns
    again = headdyn.sweep(*SWEPT, *TINY)
    assert again.path == loaded.path and (run.path / "heads.parquet").stat().st_mtime_ns == before
    assert isinstance(headdyn.load(run.path), Run)
    with pytest.raises(ValueError, match="neither a run"):
        headdyn.load(run.path / "figures")


def test_what_cannot_be_run_raises_in_one_line(made: tuple[Sweep, list[dict[str, Any]]]) -> None:
    with pytest.raises(ConfigError, match=r"seed=0,1 names several values"):
        headdyn.run("seed=0,1", *TINY)
    with pytest.raises(RuntimeError, match=r"is failed: .*see .*log\.txt"):
        headdyn.run(*TINY, "data.val_sequences=11", "train.eval_sequences=8")
    wrong: Any  # what only the command line takes, and a list where it takes each by itself
    for wrong in ("-m", "--help", "--dry-run", ["mode=smoke", "seed=1"]):
        for start in (headdyn.compose, headdyn.run, headdyn.sweep):
            with pytest.raises(ConfigError, match="is no override; give each as a string such as 'mode=smoke'"):
                start(wrong, *TINY)
    if not torch.cuda.is_available():
        for start in (headdyn.run, headdyn.sweep):  # each says what stands in the way, and leaves no folder
            with pytest.raises(RuntimeError, match="CUDA"):
                start(*TINY, "device=cuda")


def test_tables_go_to_pandas_and_polars(made: tuple[Sweep, list[dict[str, Any]]]) -> None:
    sweep = made[0]
    heads = sweep.heads
    frame, same = pandas.DataFrame.from_arrow(heads), polars.DataFrame(heads)
    total = pytest.approx(np.nansum(heads.table["value"].to_numpy()))
    assert len(frame) == len(same) == len(heads) and frame["value"].sum() == total
    assert same["value"].fill_nan(None).sum() == total
    assert list(frame.columns) == same.columns == heads.table.column_names
    for table in (sweep.effects, sweep.summary, sweep.metrics, *sweep.runs[0].tables.values()):
        columns: Any = polars.from_arrow(table)
        assert repr(columns.to_dict(as_series=False)) == repr(table.to_pydict())  # in which NaN is equal to NaN
        assert table.to_pandas().shape == table.shape
