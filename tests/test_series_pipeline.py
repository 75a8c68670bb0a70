"""Series of checkpoints and prompt experiments end to end at toy size: from the command line to verdict and report."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch

from headdyn.core.records import HeadTable
from headdyn.core.run_folder import RunRecord
from headdyn.run import main
from tests.commands import TINY, environment, only, run

REVISIONS = ("step1000", "step72000", "step143000")
# One organism for all tests: four heads, 24 steps of training; every analysis with the fewest draws it takes.
ORGANISM = (
    *("model=organism_planted", "model.steps=24", "model.num_heads=4", "model.d_model=16", "model.batch_size=8"),
    f"model.kept={','.join(REVISIONS)}",
)
PROMPTS = ("tracking=none", "threads=1", "data.bug_pairs=6", "data.control_pairs=4")
SPECIALIZATION = (
    *("analysis.specialization.sign_flips=999", "analysis.specialization.bootstrap_draws=100"),
    *("analysis.specialization.groups_per_size=3", "analysis.specialization.fractions=[0.0,1.0]"),
)
EMERGENCE = ("analysis.emergence.bootstrap_draws=100", "analysis.emergence.relabellings=99")
CIRCUITS = ("analysis.circuits.null_draws=100", "analysis.circuits.offsets=[1]", "analysis.circuits.directions=1")
CLUSTERS = (
    *("analysis.head_clusters.null_draws=200", "analysis.head_clusters.relabellings=999"),
    *("analysis.head_clusters.sign_flips=999", "analysis.head_clusters.bootstrap_draws=100"),
    *("analysis.head_clusters.restarts=1", "analysis.head_clusters.kmeans_k=[2]", "analysis.head_clusters.ward_k=[2]"),
    "analysis.head_clusters.dbscan_eps=[0.5]",
)
EVEN_ODD = (*("-m", "experiment=even_odd_emergence"), *PROMPTS, *SPECIALIZATION, *EMERGENCE)
SERIES = (*EVEN_ODD, *ORGANISM, f"model.revisions={','.join(REVISIONS)}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root for output and cache, set for every test of this file."""
    root = tmp_path_factory.mktemp("series")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HEADDYN_OUT", "HEADDYN_CACHE", "HF_HUB_OFFLINE"):
            patch.setenv(name, environment(root)[name])
        patch.setattr(sys, "argv", ["headdyn"])
        yield root


def swept(place: Path, arguments: Sequence[str], status: int = 0) -> Path:
    """The folder of a sweep that this command makes, and nothing else."""
    before = set((place / "out" / "multirun").glob("*"))
    assert main(arguments) == status
    (made,) = set((place / "out" / "multirun").glob("*")) - before
    return made


def single(place: Path, arguments: Sequence[str]) -> RunRecord:
    before = set((place / "out" / "outputs").glob("*"))
    assert main(arguments) == 0
    (made,) = set((place / "out" / "outputs").glob("*")) - before
    return RunRecord.read(made)


def runs_of(sweep: Path) -> dict[str, RunRecord]:
    """The sweep's runs by revision."""
    found = [RunRecord.read(path.parent) for path in sweep.glob("*/manifest.json")]
    return {str(record.factors["revision"]): record for record in found}


def summary_of(sweep: Path) -> dict[str, dict[str, str]]:
    with (sweep / "summary.csv").open(newline="") as file:
        return {row["revision"]: row for row in csv.DictReader(file)}


def verdict_of(sweep: Path, analysis: str = "emergence") -> dict:
    entries = json.loads((sweep / "verdict.json").read_text())
    (entry,) = [entry for entry in entries if entry["analysis"] == analysis]
    return entry


def timeline_of(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "timeline.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def words_of(page: Path) -> str:
    """The page's text, tags and scripts left out."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def assert_kept(record: RunRecord, tables: set[str], figures: dict[str, set[str]]) -> None:
    """The run is whole: rows of each analysis that runs on one model, these tables with rows, these figures."""
    assert record.status == "complete"
    for name in figures:
        declared = set(record.manifest["glossary"][name]["metrics"])
        assert declared & set(record.heads().table["metric"].to_pylist()), f"{name} left no rows"
    for table in tables:
        assert pq.read_table(record.folder / f"{table}.parquet").num_rows, table
    drawn = {f"{name}_{title}.json" for name, titles in figures.items() for title in titles}
    drawn.add("patterns_telling_heads.json")  # of the first prompts, whatever the analyses
    stored = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in (record.folder / "figures").iterdir()}
    assert set(stored) == drawn and all("vega-lite" in spec["$schema"] for spec in stored.values())
    assert (record.folder / "report.html").stat().st_size > 10_000


SPECIALIZATION_FIGURES = {"fractions", "group_sizes", "heads", "layers", "null"}
SPECIALIZATION_TABLES = {"splits", "control_splits", "group_sizes", "fractions"}


# -- an organism's revisions ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(place: Path) -> Path:
    return swept(place, SERIES)


def test_there_is_one_complete_job_a_revision_in_the_order_of_training(sweep: Path) -> None:
    runs = runs_of(sweep)
    assert set(runs) == set(REVISIONS) and len(list(sweep.glob("*/manifest.json"))) == len(REVISIONS)
    for record in runs.values():
        assert_kept(record, SPECIALIZATION_TABLES, {"specialization": SPECIALIZATION_FIGURES})
    summary = summary_of(sweep)
    assert tuple(summary) == REVISIONS
    for revision, row in summary.items():
        scalar = runs[revision].scalars["strength_nats"]
        assert row["status"] == "complete" and not row["error"]
        assert float(row["strength_nats"]) == pytest.approx(scalar["value"])
        assert float(row["strength_nats_p"]) == pytest.approx(scalar["p"])


def test_the_organism_is_built_once_and_its_states_are_told_apart(place: Path, sweep: Path) -> None:
    records = list(runs_of(sweep).values())
    built = [record.manifest["stages"]["organism"]["built"] for record in records]
    assert sorted(built) == [False, False, True]
    (key,) = {record.manifest["stages"]["organism"]["key"] for record in records}
    assert only(place / "cache" / "organism", "*/organism.json").parent.name == key
    assert len({record.manifest["checkpoint"]["state_hash"] for record in records}) == len(REVISIONS)
    for record in records:
        assert record.manifest["checkpoint"]["revision"] == record.factors["revision"]
        assert record.manifest["truth"]["heads"] == [0, 2] and record.manifest["truth"]["layer"] == 1


def test_the_verdict_is_of_every_checkpoint_and_stands_in_timeline_and_report(sweep: Path) -> None:
    entry = verdict_of(sweep)
    own_verdict = entry["verdict"]
    assert (
        own_verdict["counted"] == list(REVISIONS)
        and not own_verdict["excluded"]
        and not own_verdict["failed"]
        and not own_verdict["unhashed"]
    )
    assert set(entry["runs"]) == set(REVISIONS) and "revision" not in entry["factors"]
    assert own_verdict["total_steps"] == 143_000
    assert own_verdict["split"]["splits"] == 6 and own_verdict["split"]["least_possible_p"] == pytest.approx(2 / 6)
    assert not own_verdict["split"]["found"]  # four heads have too few splits for p ≤ 0.05, whatever they do
    assert set(own_verdict["measures"]) >= {"strength", "strength_nats"}
    rows = timeline_of(sweep)
    assert [row["revision"] for row in rows] == list(REVISIONS)
    for row in rows:
        scalar = runs_of(sweep)[row["revision"]].scalars["strength_nats"]
        assert float(row["strength_nats"]) == pytest.approx(scalar["value"])
    page = words_of(sweep / "report.html")
    assert "Do even and odd heads specialise, and when?" in page
    assert "among all 6 balanced splits of layer 1" in page
    assert f"p = {own_verdict['split']['p']:.2f}" in page
    assert "3 of 3 checkpoints count" in page
    assert all((sweep / path).is_file() for path in entry["figures"].values()) and entry["figures"]
    assert {"head_matches.parquet", "timeline.parquet"} <= {path.name for path in sweep.iterdir()}


def test_a_second_call_does_nothing_again(place: Path, sweep: Path) -> None:
    def times() -> dict[Path, int]:
        done = [*sweep.glob("*/heads.parquet"), *sweep.glob("*/manifest.json"), *(place / "cache").rglob("*.json")]
        return {path: path.stat().st_mtime_ns for path in (*done, *(place / "cache").rglob("*.safetensors"))}

    before, verdict = times(), verdict_of(sweep)
    assert main(SERIES) == 0
    assert times() == before and verdict_of(sweep) == verdict
    assert only(place / "out" / "multirun") == sweep


# -- a local folder of revisions, two of them not what they should be -------------------------------------------------


@pytest.fixture(scope="module")
def damaged(place: Path, sweep: Path) -> Path:
    """The sweep over a folder where step36000 is truncated and step100000 holds the last revision's weights."""
    suite = only(place / "cache" / "organism", "*/organism.json").parent
    folder = place / "suite"
    for name, source in {
        **{name: name for name in REVISIONS},
        "step36000": "step72000",
        "step100000": "step143000",
    }.items():
        shutil.copytree(suite / source, folder / name)
    weights = folder / "step36000" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    names = "step1000,step36000,step72000,step100000,step143000"
    arguments = (*EVEN_ODD, "model=huggingface", f"model.name={folder}", f"model.revisions={names}")
    return swept(place, arguments, status=1)


def test_a_truncated_checkpoint_fails_alone_and_says_why(damaged: Path) -> None:
    summary = summary_of(damaged)
    assert {revision: row["status"] for revision, row in summary.items()} == {
        **dict.fromkeys((*REVISIONS, "step100000"), "complete"),
        "step36000": "failed",
    }
    error = summary["step36000"]["error"]
    assert "step36000" in error and len(error.splitlines()) == 1
    own_verdict = verdict_of(damaged)["verdict"]
    assert own_verdict["failed"] == {"step36000": error}
    assert "step36000" not in own_verdict["counted"] and "step36000" not in own_verdict["excluded"]
    (row,) = [row for row in timeline_of(damaged) if row["revision"] == "step36000"]
    assert row["reason"] == error and row["counts"] == "false" and not row["strength_nats"]


def test_a_duplicate_is_measured_but_does_not_count(damaged: Path) -> None:
    runs, own_verdict = runs_of(damaged), verdict_of(damaged)["verdict"]
    hashes = {name: run.manifest.get("checkpoint", {}).get("state_hash") for name, run in runs.items()}
    assert hashes["step100000"] == hashes["step143000"] != hashes["step72000"] and hashes["step36000"] is None
    assert own_verdict["excluded"] == {"step100000": "its weights are those of step143000, the end of training"}
    assert own_verdict["counted"] == list(REVISIONS)
    page = words_of(damaged / "report.html")
    assert "its weights are those of step143000" in page and summary_of(damaged)["step36000"]["error"] in page


def test_what_is_left_out_changes_no_verdict(sweep: Path, damaged: Path) -> None:
    """The three sound revisions are the organism's own files, so the verdict on them is the same."""
    ours, whole = verdict_of(damaged)["verdict"], verdict_of(sweep)["verdict"]
    assert ours["split"] == whole["split"] and ours["heads"] == whole["heads"]
    assert ours["measures"]["strength_nats"] == whole["measures"]["strength_nats"]


# -- as the studies ran it --------------------------------------------------------------------------------------------


def test_the_original_protocol_runs_the_studys_procedure_beside(place: Path, sweep: Path) -> None:
    arguments = (*EVEN_ODD, *ORGANISM, "model.revisions=step1000,step143000", "protocol=seed")
    companion = "protocol.companions.specialization.original_patching"
    made = swept(place, (*arguments, f"{companion}.trials=1", f"{companion}.tokens=4"))
    for record in runs_of(made).values():
        metrics = set(record.heads().table["metric"].to_pylist())
        own = {"original_strength", "original_plain_success", "original_even_success", "original_odd_success"}
        assert {name for name in metrics if name.startswith("original_")} == own and "strength_nats" in metrics
        assert record.heads().where(metric="original_strength").rows()[0]["n"] == 1  # greedy: equal trials are one
        assert pq.read_table(record.folder / "original_responses.parquet").num_rows == 3
        assert not record.manifest["stages"]["organism"]["built"]  # the protocol changes no training
    ours = {metric for record in runs_of(sweep).values() for metric in record.heads().table["metric"].to_pylist()}
    assert not any(name.startswith("original_") for name in ours)
    judged = verdict_of(made)["verdict"]
    assert "original_strength" in judged["measures"] and "original_strength" not in judged["unmeasured"]


# -- the other experiments --------------------------------------------------------------------------------------------

CLUSTER_FIGURES = {"assignments", "points", "silhouettes"}
CIRCUIT_FIGURES = {"clusters", "heads", "readouts", "similarity", "spectra"}
CLUSTER_TABLES = {"clusterings", "coordinates", "distances"}
CIRCUIT_TABLES = {"spectra", "readouts", "head_similarity"}


def test_weight_clusters_over_checkpoints(place: Path, sweep: Path) -> None:
    arguments = ("-m", "experiment=weight_cluster_emergence", *ORGANISM, *PROMPTS, *SPECIALIZATION, *EMERGENCE)
    made = swept(place, (*arguments, *CIRCUITS, *CLUSTERS, "model.revisions=step1000,step143000"))
    figures = {
        "specialization": SPECIALIZATION_FIGURES,
        "head_clusters": CLUSTER_FIGURES,
        "circuits": CIRCUIT_FIGURES,
    }
    for record in runs_of(made).values():
        assert_kept(record, SPECIALIZATION_TABLES | CLUSTER_TABLES | CIRCUIT_TABLES, figures)
    own_verdict = verdict_of(made)
    for metric in ("qk_best_silhouette", "ov_best_silhouette", "behaviour_best_silhouette"):
        valued = [record.value(metric) is not None for record in runs_of(made).values()]
        assert (metric in own_verdict["verdict"]["measures"]) == all(valued), metric
    assert {"behaviour_best_silhouette", "strength_nats"} <= set(own_verdict["verdict"]["measures"])
    divergence = HeadTable(pq.read_table(made / "cluster_divergence.parquet").drop_columns("series"))
    assert {row["step"] for row in divergence.rows()} == {143_000}
    assert "cluster_divergence" in own_verdict["figures"]


def test_what_the_heads_do(place: Path, sweep: Path) -> None:
    quick = (
        *("analysis.patching.sign_flips=999", "analysis.patching.bootstrap_draws=100"),
        *("analysis.ablation.texts=4", "analysis.ablation.donors=1", "analysis.ablation.random_groups=20"),
        *("analysis.ablation.splits=100", "analysis.ablation.bootstrap_draws=100"),
    )
    arguments = ("experiment=mechanistic", *ORGANISM, *PROMPTS, *SPECIALIZATION, *CIRCUITS, *CLUSTERS, *quick)
    record = single(place, arguments)
    figures = {
        "specialization": SPECIALIZATION_FIGURES,
        "patching": {"heads"},
        "ablation": {"groups", "heads"},
        "head_clusters": CLUSTER_FIGURES,
        "circuits": CIRCUIT_FIGURES,
    }
    assert_kept(record, SPECIALIZATION_TABLES | CLUSTER_TABLES | CIRCUIT_TABLES | {"groups"}, figures)
    patched = record.heads().table.to_pylist()
    assert len([row for row in patched if row["head"] is not None]) >= 3 * 4  # every head of every layer


def test_reordered_heads(place: Path, sweep: Path) -> None:
    quick = (
        "analysis.permutation.texts=2",
        "analysis.permutation.tokens=4",
        "analysis.permutation.bootstrap_draws=100",
    )
    record = single(place, ("experiment=head_permutation", *ORGANISM, *PROMPTS, *SPECIALIZATION, *quick))
    figures = {"specialization": SPECIALIZATION_FIGURES, "permutation": {"orders"}}
    assert_kept(record, SPECIALIZATION_TABLES | {"orders"}, figures)


def test_the_snapshots_of_one_training_are_a_series(place: Path) -> None:
    quick = (
        *("train.snapshots=2", "analysis.probes.bootstrap_draws=100"),
        *("analysis.probes.tokens_per_sequence=8", "analysis.probes.penalties=[0.1]"),
        *("analysis.attention.bootstrap_draws=100", "analysis.loss.bootstrap_draws=100"),
    )
    arguments = ("-m", "experiment=topic_head_emergence", *TINY, *EMERGENCE, *CIRCUITS, *quick)
    made = swept(place, arguments)
    runs = runs_of(made)
    assert sorted(record.manifest["stages"]["training"]["built"] for record in runs.values()) == [False, True]
    snapshots = only(place / "cache" / "training", "*/snapshots")
    assert set(runs) == {f"step{int(path.stem.removeprefix('step'))}" for path in snapshots.glob("*.safetensors")}
    assert len({record.manifest["checkpoint"]["state_hash"] for record in runs.values()}) == 2
    for revision, record in runs.items():
        assert {row["step"] for row in record.heads().rows()} == {int(revision.removeprefix("step"))}
        patterns = safetensors.torch.load_file(record.folder / "patterns.safetensors")
        assert np.isclose(patterns["pattern.0"].float().sum(-1), 1, atol=5e-3).all()
    own_verdict = verdict_of(made)["verdict"]
    assert set(own_verdict["counted"]) == set(runs) and own_verdict["total_steps"] == 12
    assert set(own_verdict["measures"]) == {"selectivity", "probe_accuracy_middle", "specialisation"}
    assert all("against_chance" in measure for measure in own_verdict["measures"].values())
    assert "Did the measures emerge, and when?" in words_of(made / "report.html")


# -- without a network ------------------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_had_is_one_line_and_nothing_else(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "experiment=even_odd_emergence")
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and not done.stdout
    assert line.startswith("headdyn: ") and "model=organism_planted" in line and "EleutherAI/pythia-160m" in line
    assert not list(tmp_path.glob("out/*")), "no folder is left of a sweep that never began"
