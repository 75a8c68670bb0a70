"""The matrix end to end at toy size: what it leaves, what it shares, and what a second call does not do again."""

import csv
import json
import os
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from headdyn.core import kept_parts
from headdyn.core.records import SCHEMA, HeadTable
from headdyn.core.run_folder import KEPT_PARTS, RunRecord, read_metrics, snapshot_table, write_snapshot_table
from headdyn.core.store import StageInterruptedError
from headdyn.data.micro_languages import MicroLanguages
from headdyn.models.checkpoints.snapshots import read_snapshot, snapshot_steps
from headdyn.pipeline import analyse_snapshot
from headdyn.plan import make_plan
from headdyn.run import main
from tests.commands import TINY, computed, only
from tests.data.text.small_text import jsonl, planted

MATRIX = ("-m", "experiment=matrix", *TINY)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A root for output and cache, set for every test of this file."""
    root = tmp_path_factory.mktemp("matrix")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEADDYN_OUT", str(root / "out"))
        patch.setenv("HEADDYN_CACHE", str(root / "cache"))
        patch.setattr(sys, "argv", ["headdyn"])
        yield root


@pytest.fixture(scope="module")
def sweep(place):
    assert main(MATRIX) == 0
    return only(place / "out" / "multirun")


@pytest.fixture(scope="module")
def runs(sweep):
    return {path.name: RunRecord.read(path) for path in sweep.iterdir() if path.is_dir()}


def test_there_are_eight_complete_runs_of_eight_conditions(runs):
    assert len(runs) == 8
    assert {run.status for run in runs.values()} == {"complete"}
    names = ("attention", "data_ordering", "position_enc")
    assert len({tuple(run.factors[name] for name in names) for run in runs.values()}) == 8


def test_every_run_leaves_the_whole_record(runs):
    for run in runs.values():
        left = {path.name for path in run.folder.iterdir()}
        expected = {"config.yaml", "manifest.json", "metrics.jsonl", "summary.json", "heads.parquet"}
        assert left >= expected | {"patterns.safetensors", "figures", "report.html", "log.txt"}
        assert run.manifest["versions"]["torch"].startswith(torch.__version__.split("+")[0])
        assert set(run.manifest["seconds"]) >= {"corpus", "training", "attention", "probes", "circuits", "total"}
        assert run.manifest["peak_memory_bytes"] > 1e8


def test_every_runs_log_says_what_selecting_is_worth(runs):
    for run in runs.values():
        first, *others = (run.folder / "log.txt").read_text().splitlines()
        assert first.endswith(f"headdyn INFO {run.name} begins")
        assert sum("Selecting by topic is worth" in line for line in others) == 1


def test_the_head_table_names_run_model_and_step(runs):
    for run in runs.values():
        table = HeadTable.read(run.folder / "heads.parquet")
        assert table.table.schema == SCHEMA
        row = table.where(metric="within_ratio", layer=1, head=3).rows()[0]
        assert (row["run"], row["model"]) == (run.name, "mini_qwen3")
        assert row["step"] == 12 + run.scalars.get("recalibration", {"steps": 0})["steps"]
        assert row["unit"] == "sequence" and row["null"] is not None and row["ci_low"] <= row["value"] <= row["ci_high"]


def test_eight_conditions_cost_four_trainings_and_one_corpus(place, runs):
    built = [path for path in (place / "cache" / "training").iterdir() if path.is_dir()]
    assert len(built) == 4
    assert len([path for path in (place / "cache" / "corpus").iterdir() if path.is_dir()]) == 1
    assert len([path for path in (place / "cache" / "recalibration").iterdir() if path.is_dir()]) == 4
    keys = {}
    for run in runs.values():
        pair = (run.factors["attention"], run.factors["data_ordering"])
        keys.setdefault(pair, set()).add(run.manifest["stages"]["training"]["key"])
    assert all(len(shared) == 1 for shared in keys.values()) and len(keys) == 4


def test_metrics_are_the_trainings_own_and_both_arms_have_them(place, runs):
    for run in runs.values():
        key = run.manifest["stages"]["training"]["key"]
        theirs = read_metrics(place / "cache" / "training" / key / "metrics.jsonl")
        assert run.metrics()["val_loss_nats"] == theirs["val_loss_nats"]


def test_saved_patterns_are_the_decoders(place, runs):
    run = next(run for run in runs.values() if run.factors["position_enc"] == "rope")
    saved = safetensors.torch.load_file(run.folder / "patterns.safetensors")
    key = run.manifest["stages"]["training"]["key"]
    decoder, _ = read_snapshot(snapshot_steps(place / "cache" / "training" / key / "snapshots")[12])
    with torch.no_grad():
        trace = decoder.trace(saved["tokens"], sites=("pattern",), logits=None)
    for layer in range(2):
        torch.testing.assert_close(saved[f"pattern.{layer}"].float(), trace["pattern", layer], atol=1e-3, rtol=0)


def test_the_summary_has_a_row_a_run_with_nulls_and_intervals(sweep, runs):
    with (sweep / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 == pq.read_table(sweep / "summary.parquet").num_rows
    for row in rows:
        scalar = runs[row["run"]].scalars["within_ratio"]
        assert float(row["within_ratio"]) == pytest.approx(scalar["value"])
        assert float(row["within_ratio_null"]) == pytest.approx(scalar["null"])
        assert row["status"] == "complete"


def test_the_sweep_has_effects_contrasts_at_matched_loss_and_a_report(sweep):
    effects = json.loads((sweep / "effects.json").read_text())
    assert {effect["outcome"] for effect in effects} >= {"loss_nats", "selectivity", "probe_accuracy_middle"}
    assert all(effect["ci_low"] is None for effect in effects)  # one seed: no interval
    pairs = json.loads((sweep / "matched_loss.json").read_text())["pairs"]
    assert {(pair["factor"], pair["factors"]["attention"]) for pair in pairs} >= {
        ("data_ordering", "mha"),
        ("data_ordering", "gqa"),
    }
    assert (sweep / "report.html").stat().st_size > 50_000


def test_a_finished_matrix_is_not_trained_or_analysed_again(place, sweep, runs, capsys):
    before = {path: path.stat().st_mtime_ns for path in (place / "cache").rglob("*.safetensors")}
    heads = {name: (run.folder / "heads.parquet").stat().st_mtime_ns for name, run in runs.items()}
    begun = sum(os.times()[:4])  # of this process and of workers, if any were started, whatever else the machine does
    assert main(MATRIX) == 0
    seconds = sum(os.times()[:4]) - begun
    assert {path: path.stat().st_mtime_ns for path in (place / "cache").rglob("*.safetensors")} == before
    assert {name: (run.folder / "heads.parquet").stat().st_mtime_ns for name, run in runs.items()} == heads
    assert only(place / "out" / "multirun") == sweep
    assert seconds < 12


def test_a_stopped_analysis_of_a_snapshot_goes_on_to_the_same_table(place, runs, monkeypatch):
    job, computed, add = make_plan(MATRIX).jobs[0], [], kept_parts._Saver.add
    monkeypatch.setattr(kept_parts, "SAVE_EVERY_SECONDS", 0)
    monkeypatch.setattr(kept_parts._Saver, "add", lambda *given: (computed.append(given[1]), add(*given))[1])

    def analyse(name, stop_after=np.inf):
        """How many parts are computed."""
        computed.clear()
        analyse_snapshot(job, 0, place / name, ("loss", "attention"), lambda: len(computed) >= stop_after)
        return len(computed)

    every = analyse("whole")
    with pytest.raises(StageInterruptedError):
        analyse("stopped", every - 1)
    assert analyse("stopped") == 1
    tables = [snapshot_table(place / name, 0).read_bytes() for name in ("whole", "stopped")]
    assert tables[0] == tables[1]
    assert not list(place.glob(f"*/{KEPT_PARTS}"))


def test_no_trained_model_beats_the_bayes_floor(runs):
    for run in runs.values():
        assert run.scalars["excess_nats"]["ci_high"] > 0
        assert run.scalars["gap_closed"]["ci_low"] < 1


def test_a_failing_job_leaves_the_others_running_and_is_reported(place, capsys):
    # Every learning rate is valid as a number; the second one diverges.
    arguments = ("-m", *TINY, "train.adamw_lr=0.003,1e37", "analysis=[loss]")
    assert main(arguments) == 1
    folders = [path for path in (place / "out" / "multirun").iterdir() if (path / "sweep.json").exists()]
    folder = max(folders, key=lambda path: (path / "sweep.json").stat().st_mtime_ns)
    with (folder / "summary.csv").open() as file:
        rows = {row["status"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"complete", "failed"}
    assert "diverged" in rows["failed"]["error"]
    page = (folder / "report.html").read_text()
    assert "diverged" in page and "1 of 2 runs complete" in page
    failed = RunRecord.read(folder / rows["failed"]["run"])
    assert "Traceback" in failed.manifest["traceback"]


@pytest.fixture
def run_that_fails(place, monkeypatch):
    """A function that does a run with an analysis of one's own, which must fail it, and returns the run's record."""

    def run(name, *lines):
        (place / f"their_{name}.py").write_text("\n".join(("from dataclasses import dataclass", *lines)))
        monkeypatch.syspath_prepend(place)
        own = f"hydra.run.dir={place}/out/{name}"
        assert main((*TINY, own, "analysis=[loss]", f"+analysis.own={{_target_: their_{name}.Own}}")) == 1
        (failed,) = (RunRecord.read(path.parent) for path in (place / "out" / name).rglob("manifest.json"))
        return failed

    return run


def test_an_analysis_that_returns_no_findings_fails_its_run_by_name(run_that_fails, capsys):
    failed = run_that_fails(
        "nothing",
        "@dataclass(frozen=True)",
        "class Own:",
        "    rows, needs, metrics = 'model', frozenset(), {}",
        "    def __call__(self, decoder, material, generator): ...",
    )
    assert failed.status == "failed" and "analysis own returned NoneType, not Findings" in failed.manifest["error"]
    assert "analysis own returned NoneType, not Findings" in capsys.readouterr().err


def test_an_outcome_without_a_row_for_the_model_fails_its_run_with_the_cure(run_that_fails, capsys):
    failed = run_that_fails(
        "heads_alone",
        "import numpy as np",
        "from headdyn.core.records import Findings, HeadTable, Metric",
        "@dataclass(frozen=True)",
        "class Own:",
        "    rows, needs, metrics = 'head', frozenset(), {'width': Metric(meaning='a width', outcome=True)}",
        "    def __call__(self, decoder, material, generator):",
        "        return Findings(table=HeadTable.per_head('width', np.ones((1, 2)), n=1, unit='head'))",
    )
    assert failed.status == "failed" and "its metric width has outcome=True" in failed.manifest["error"]
    assert 'add HeadTable.whole("width", value)' in capsys.readouterr().err


def test_analyses_and_positions_can_be_chosen(place):
    assert main([*TINY, "analysis=[attention]", "position_enc=nope"]) == 0
    record = RunRecord.read(only(place / "out" / "outputs", "mha_shuffled_nope*"))
    assert "selectivity" in record.scalars and "probe_accuracy_middle" not in record.scalars
    assert not read_snapshot(
        snapshot_steps(place / "cache" / "training" / record.manifest["stages"]["training"]["key"] / "snapshots")[12]
    )[0].config.rotary_dim


def test_the_same_command_repairs_a_damaged_run(place):
    command = [*TINY, "analysis=[loss]", "position_enc=nope", "seed=7"]
    assert main(command) == 0
    folder = only(place / "out" / "outputs", "mha_shuffled_nope*s7*")
    for file in ("heads.parquet", "manifest.json"):
        (folder / file).write_text("{")
        assert RunRecord.read(folder).status == "damaged"
        assert main(command) == 0
        assert RunRecord.read(folder).status == "complete"


def test_the_raw_drop_and_the_control_arm(place):
    assert main([*TINY, "analysis=[loss]", "position_enc=drope", "position_enc.recalibration.steps=0"]) == 0
    assert main([*TINY, "analysis=[loss]", "position_enc=rope_control"]) == 0
    raw = RunRecord.read(only(place / "out" / "outputs", "mha_shuffled_drope*"))
    control = RunRecord.read(only(place / "out" / "outputs", "mha_shuffled_rope_control*"))
    assert raw.scalars["recalibration"]["steps"] == 0
    assert raw.manifest["stages"]["training"]["key"] == control.manifest["stages"]["training"]["key"]
    assert not raw.scalars["recalibration"]["until_recovered"]  # a count of its own is kept
    assert not raw.scalars["recalibration"]["keep_rotary"] and control.scalars["recalibration"]["keep_rotary"]


def test_the_control_arm_trains_for_as_many_steps_as_drope_needed(place):
    never = "+position_enc.recalibration.recovered_within_nats=-10.0"
    for arm, seed in (("rope_control", 3), ("drope", 3)):
        assert main([*TINY, "analysis=[loss]", f"position_enc={arm}", never, f"seed={seed}"]) == 0
    arms = {
        arm: RunRecord.read(only(place / "out" / "outputs", f"mha_shuffled_{arm}_s3*"))
        for arm in ("rope_control", "drope")
    }
    facts = {arm: run.scalars["recalibration"] for arm, run in arms.items()}
    assert facts["drope"]["steps"] == facts["rope_control"]["steps"] == 12  # 8, then 4 more: as many as training had
    assert facts["drope"]["until_recovered"] and not facts["drope"]["recovered"]
    row = HeadTable.read(arms["rope_control"].folder / "heads.parquet").rows()[0]
    assert row["step"] == 24
    reused = arms["drope"].manifest["stages"]["recalibration"]["built"]
    assert not reused  # the control's run recalibrated that arm to know its length


def test_the_originals_protocol_runs_with_its_own_generator_and_recipe(place):
    assert main([*TINY, "protocol=seed", "ordering=topic", "position_enc=drope", "analysis=[loss]"]) == 0
    record = RunRecord.read(only(place / "out" / "outputs", "mha_topic_drope*"))
    resolved = record.manifest["config"]
    assert resolved["data"]["generator"] == "original" and resolved["data_ordering"]["within_block"] == "fixed"
    assert record.scalars["recalibration"]["steps"] == 0  # 1 % of 12 steps
    assert MicroLanguages.__name__ in resolved["data"]["_target_"]


def test_saved_patterns_of_a_masked_corpus_stay_inside_documents(place):
    path = jsonl(place / "documents.jsonl", planted(1200, 4)[0])
    text = ("data=local_text", f"data.path={path}", "data.num_topics=4", "data.mask_documents=true")
    assert main([*TINY, *text, "data.vocab_size=400", "analysis=[loss]"]) == 0
    found = [RunRecord.read(path) for path in (place / "out" / "outputs").iterdir()]
    (run,) = [run for run in found if run.factors["data"] == "local_text"]
    saved = safetensors.torch.load_file(run.folder / "patterns.safetensors")
    stages = {kind: place / "cache" / kind / run.manifest["stages"][kind]["key"] for kind in ("corpus", "training")}
    documents_NT = np.load(stages["corpus"] / "val_documents.npy")[: len(saved["tokens"])]
    other_NTT = torch.from_numpy(documents_NT[:, :, None] != documents_NT[:, None, :])
    assert other_NTT.any((1, 2)).all(), "every sequence holds several documents"
    decoder, _ = read_snapshot(snapshot_steps(stages["training"] / "snapshots")[12])
    with torch.no_grad():
        blind = decoder.trace(saved["tokens"], sites=("pattern",), logits=None)
    length = int((documents_NT[0] == documents_NT[0, -1]).sum())
    with torch.no_grad():  # the last document of the first sequence, read alone
        alone = decoder.trace(saved["tokens"][:1, -length:], sites=("pattern",), logits=None)
    for layer in range(2):
        pattern_NHTT = saved[f"pattern.{layer}"].float()
        assert (pattern_NHTT * other_NTT[:, None]).max() == 0
        assert (blind["pattern", layer] * other_NTT[:, None]).max() > 0.01  # mutant: the mask forgotten
        torch.testing.assert_close(pattern_NHTT.sum(-1), torch.ones(pattern_NHTT.shape[:3]), atol=5e-3, rtol=0)
        own_HTT = pattern_NHTT[0, :, -length:, -length:]
        torch.testing.assert_close(own_HTT, alone["pattern", layer][0], atol=1e-3, rtol=0)


def test_a_forced_sweep_measures_its_snapshots_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / "cache"))
    command = ("-m", *TINY, "ordering=shuffled,topic", "analysis=[loss,attention]")
    assert main(command) == 0
    tables = sorted((tmp_path / "out").rglob("heads_step*.parquet"))
    kept = [HeadTable.read(path).rows() for path in tables]
    assert tables
    for path, rows in zip(tables, kept, strict=True):  # sound by its checksum, as one of other settings would be
        forged = HeadTable.from_rows([row for row in rows if row["metric"] != "entropy_nats"])
        write_snapshot_table(path.parent, int(path.stem.removeprefix("heads_step")), forged)
    assert main(command) == 0
    assert [HeadTable.read(path).rows() for path in tables] != kept, "a sound table is not measured again"
    assert main((*command, "force=true")) == 0
    assert [HeadTable.read(path).rows() for path in tables] == kept


def test_of_an_edited_text_nothing_old_stays(tmp_path, monkeypatch):
    """The same sweep on a text that was edited in place leaves what it leaves in an empty folder, to the bit."""
    text = ("data=local_text", f"data.path={tmp_path / 'documents.jsonl'}", "data.num_topics=4", "data.vocab_size=400")
    command = ["-m", *TINY, *text, "ordering=shuffled,topic", "analysis=[loss,attention]"]

    def swept(root):
        monkeypatch.setenv("HEADDYN_OUT", str(tmp_path / root / "out"))
        monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / root / "cache"))
        assert main(command) == 0
        found = computed(tmp_path / root)
        matched = only(tmp_path / root / "out" / "multirun").joinpath("matched_loss.json").read_bytes()
        return {name: content for name, content in found.items() if name.startswith("out")} | {"matched": matched}

    jsonl(tmp_path / "documents.jsonl", planted(1200, 4)[0])
    first = swept("edited")
    assert any("heads_step" in name for name in first)
    jsonl(tmp_path / "documents.jsonl", planted(1200, 4, seed=1)[0])
    again, fresh = swept("edited"), swept("fresh")
    assert again == fresh and not any(again.get(name) == content for name, content in first.items())
