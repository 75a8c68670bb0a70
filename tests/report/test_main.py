import json
from pathlib import Path

import pytest

from headdyn.report.__main__ import main
from headdyn.report.sweep_record import SweepRecord
from tests.report.folders import matrix, run, sweep
from tests.report.test_effects import selectivity
from tests.report.test_sweep_page import pair


def test_a_sweeps_report_is_rebuilt_from_its_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [run(tmp_path), run(tmp_path, ordering="topic")]
    folder = sweep(tmp_path, entries, pair(selectivity=(0.12, 0.1)))
    before = {name: json.loads((folder / name).read_text()) for name in ("effects.json", "matched_loss.json")}
    (folder / "effects.json").unlink()
    assert main([str(folder)]) == 0
    assert (folder / "report.html").exists()
    assert {name: json.loads((folder / name).read_text()) for name in before} == before
    assert "report:" in capsys.readouterr().out


def test_a_runs_report_is_rebuilt(tmp_path: Path) -> None:
    folder = tmp_path / run(tmp_path)["name"]
    assert main([str(folder)]) == 0
    assert (folder / "report.html").exists()


def test_merged_seeds_give_the_effects_of_one_sweep(tmp_path: Path) -> None:
    for seed in (0, 1):
        sweep(tmp_path / f"seed{seed}", matrix(tmp_path / f"seed{seed}", seeds=(seed,), selectivity=selectivity))
    sweep(tmp_path / "both", matrix(tmp_path / "both", seeds=(0, 1), selectivity=selectivity))
    out = tmp_path / "merged"
    assert main([str(tmp_path / "seed0"), str(tmp_path / "seed1"), "--out", str(out)]) == 0
    assert json.loads((out / "effects.json").read_text()) == json.loads(
        (tmp_path / "both" / "effects.json").read_text()
    )
    record = SweepRecord.read(out)
    assert [source["name"] for source in record.sources] == ["seed0", "seed1"]
    assert len(record.complete) == 16
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'href="../seed1/' not in page  # no run page was written there to link to
    # The tree moves as a whole: folders are kept relative to the merged one.
    assert not any(Path(job["folder"]).is_absolute() for job in json.loads((out / "sweep.json").read_text())["jobs"])


def test_a_run_in_two_sweeps_counts_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        sweep(
            tmp_path / name,
            [run(tmp_path / name), run(tmp_path / name, ordering="topic")],
            pair(selectivity=(0.2, 0.1)),
        )
    out = tmp_path / "merged"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    record = SweepRecord.read(out)
    assert len(record.jobs) == 2 and len(record.notes) == 2
    assert [(row["n"], round(row["value"], 9)) for row in record.pooled] == [(1, 0.1)]


def test_a_failed_copy_gives_way_to_the_complete_one(tmp_path: Path) -> None:
    for name, status in (("a", "failed"), ("b", "complete")):
        sweep(tmp_path / name, [run(tmp_path / name, status=status)])
    out = tmp_path / "merged"
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    (job,) = SweepRecord.read(out).jobs
    assert job.complete and job.run.folder.resolve() == (tmp_path / "b" / job.run.name).resolve()


def test_single_runs_can_be_put_beside_each_other(tmp_path: Path) -> None:
    folders = [
        str(tmp_path / name / run(tmp_path / name, ordering=o)["name"])
        for name, o in (("a", "shuffled"), ("b", "topic"))
    ]
    assert main([*folders, "--out", str(tmp_path / "merged")]) == 0
    assert [job.label for job in SweepRecord.read(tmp_path / "merged").jobs] == ["shuffled", "topic"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1  # one line, no traceback
    return error


def test_folders_that_no_report_can_be_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds neither a run" in refused([str(tmp_path)], capsys)
    assert "is no folder" in refused([str(tmp_path / "nothing")], capsys)
    entry = run(tmp_path / "unfinished", status="failed")
    assert "is an unfinished sweep" in refused([str(tmp_path / "unfinished")], capsys)
    error = refused([str(tmp_path / "unfinished" / entry["name"])], capsys)
    assert "is failed, not complete: RuntimeError: the loss is no number" in error
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "sweep.json").write_text("[1]")
    assert "is not a sweep's record" in refused([str(tmp_path / "foreign")], capsys)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "sweep.json").write_text("{")
    assert "torn/sweep.json" in refused([str(tmp_path / "torn")], capsys)


def test_merging_needs_a_new_folder_and_writes_nothing_when_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "a", [run(tmp_path / "a")])
    assert "--out=FOLDER" in refused([str(folder), str(folder)], capsys)
    assert "one of the folders to merge" in refused([str(folder), "--out", str(folder)], capsys)
    assert "holds neither" in refused([str(folder), str(tmp_path), "--out", str(tmp_path / "new")], capsys)
    assert not (tmp_path / "new").exists()
