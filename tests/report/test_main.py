import json
from collections.abc import Callable
from pathlib import Path

import pytest

from headdyn.core.json_files import write_json
from headdyn.report.__main__ import main
from headdyn.sweep.record import SweepRecord
from tests.report.folders import matrix, run, sweep
from tests.report.series_folders import emerging, followed, two_protocols
from tests.report.test_sweep_page import Text, pair
from tests.sweep.test_effects import selectivity


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


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no heads": (lambda run: (run / "heads.parquet").unlink(), "lacks heads.parquet"),
    "no summary": (lambda run: (run / "summary.json").unlink(), "lacks summary.json"),
    "torn heads": (lambda run: torn(run / "heads.parquet"), "heads.parquet is damaged"),
    "torn summary": (lambda run: torn(run / "summary.json"), "summary.json is damaged"),
    "torn manifest": (lambda run: torn(run / "manifest.json"), "manifest.json is damaged, it holds no JSON"),
    "foreign manifest": (
        lambda run: write_json(run / "manifest.json", {"factors": {"seed": 0}, "status": "complete"}),
        "manifest.json is no run's record: it lacks name",
    ),
    "a list for a manifest": (lambda run: write_json(run / "manifest.json", [1]), "manifest.json is no run's record"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_refused_by_the_name_of_its_file_and_is_not_complete_in_a_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    folder = tmp_path / "a"
    entries = [run(folder), run(folder, ordering="topic")]
    sweep(folder, entries)
    spoil, message = DAMAGES[damage]
    spoil(folder / entries[1]["name"])
    error = refused([str(folder / entries[1]["name"])], capsys)
    assert message in error and entries[1]["name"] in error and "run its command again" in error
    assert not (folder / entries[1]["name"] / "report.html").exists()
    assert main([str(folder)]) == 0
    record = SweepRecord.read(folder)
    assert [job.run.status for job in record.jobs] == ["complete", "damaged"]
    read = Text((folder / "report.html").read_text(encoding="utf-8")).text
    assert "1 of 2 runs complete" in read and message in read
    # Beside a whole run it is refused before anything is written.
    both = [str(folder / entry["name"]) for entry in entries]
    capsys.readouterr()
    assert message in refused([*both, "--out", str(tmp_path / "new")], capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("file", ["sweep.json", "matched_loss.json", "verdict.json"])
def test_a_torn_record_of_a_sweep_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    folders = two_protocols(tmp_path)
    torn(folders[1] / file)
    (folders[1] / "effects.json").unlink()  # a rebuild would write it again
    before = {path: path.read_bytes() for path in folders[1].iterdir() if path.is_file()}
    assert f"{folders[1] / file} is damaged" in refused([str(folders[1])], capsys)
    assert {path: path.read_bytes() for path in folders[1].iterdir() if path.is_file()} == before
    assert f"b/{file} is damaged" in refused([*map(str, folders), "--out", str(tmp_path / "new")], capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("file", ["timeline.parquet", "figures/rank.json"])
def test_what_a_verdict_names_is_looked_for_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    folders = two_protocols(tmp_path)
    followed(folders[1])
    if file.startswith("figures"):
        (folders[1] / file).unlink()
    else:
        torn(folders[1] / file)
    assert f"b/{file} is " in refused([str(folders[1])], capsys)
    assert f"b/{file} is " in refused([*map(str, folders), "--out", str(tmp_path / "new")], capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("entries", [{"series": 0}, [{"series": 0, "analysis": "emergence"}]])
def test_a_foreign_verdict_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: object) -> None:
    folder = emerging(tmp_path)
    write_json(folder / "verdict.json", entries)
    assert "verdict.json is no record of series" in refused([str(folder)], capsys)


def test_a_job_without_factors_is_no_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "sweep.json", {"name": "x", "jobs": [{"name": "a"}]})
    assert "a job lacks its name or factors" in refused([str(tmp_path)], capsys)


def test_merging_needs_a_new_folder_and_writes_nothing_when_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "a", [run(tmp_path / "a")])
    assert "--out=FOLDER" in refused([str(folder), str(folder)], capsys)
    assert "one of the folders to merge" in refused([str(folder), "--out", str(folder)], capsys)
    assert "holds neither" in refused([str(folder), str(tmp_path), "--out", str(tmp_path / "new")], capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("kind", "start"), [("pdf", b"%PDF-"), ("svg", b"<svg"), ("png", b"\x89PNG")])
def test_figures_of_a_sweep_are_drawn_as_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, start: bytes
) -> None:
    folder = sweep(tmp_path, [run(tmp_path), run(tmp_path, ordering="topic")])
    assert main([str(folder), "--figures", kind]) == 0
    files = sorted((folder / "figures").iterdir())
    assert {"held_out_loss", "effects_on_topic_selectivity", "probe_accuracy_rope"} <= {path.stem for path in files}
    assert all(path.suffix == f".{kind}" and path.read_bytes().startswith(start) for path in files)
    assert f"({len(files)} {kind} files)" in capsys.readouterr().out


def test_figures_of_a_run_and_of_a_merged_report_are_drawn(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    sweep(a, [run(a)])
    sweep(b, [run(b, ordering="topic", seed=1)])
    one = next(a.glob("mha*"))
    assert main([str(one), "--figures", "svg"]) == 0
    assert (one / "figures" / "training_loss.svg").is_file() and (one / "figures" / "training_loss.json").is_file()
    assert main([str(a), str(b), "--out", str(tmp_path / "c"), "--figures", "svg"]) == 0
    assert (tmp_path / "c" / "figures" / "held_out_loss.svg").is_file()


def test_an_unknown_format_is_refused_with_the_choices_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path, [run(tmp_path)])
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(SystemExit, match="2"):
        main([str(folder), "--figures", "eps"])
    assert "invalid choice: 'eps' (choose from 'pdf', 'svg', 'png')" in capsys.readouterr().err.replace(
        "pdf, svg, png", "'pdf', 'svg', 'png'"
    )
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
