import json
from pathlib import Path

import pyarrow.parquet as pq

from headdyn.core.json_files import write_json
from headdyn.report.__main__ import build
from headdyn.sweep.merge import merge
from headdyn.sweep.record import VERDICT, SweepRecord
from headdyn.sweep.series_record import read_series
from tests.report.folders import matrix, sweep
from tests.report.series_folders import STEPS, emerging, followed, run, scalars, series, two_protocols, verdict
from tests.report.test_sweep_page import Text


def test_checkpoints_are_one_group_named_by_revision(tmp_path: Path) -> None:
    record = SweepRecord.read(emerging(tmp_path))
    assert list(record.groups) == [""]  # revisions are no settings that keep runs apart
    assert [job.label for job in record.jobs] == [f"step{step}" for step in STEPS]
    assert record.effects == []


def test_a_series_has_its_points_in_order(tmp_path: Path) -> None:
    (one,) = read_series(SweepRecord.read(emerging(tmp_path)))
    points = one.points("strength")
    assert points is not None
    assert (points.steps, points.value) == (list(STEPS), [0.0, 0.0, 0.75, 1.0])
    assert points.low == [-0.125, -0.125, 0.625, 0.875]
    assert one.points("selectivity") is None
    assert one.model == "some/suite" and one.title == "" and one.primary == "strength_nats"


def test_checkpoints_that_do_not_count_have_no_points(tmp_path: Path) -> None:
    own_verdict = verdict(excluded={"step32000": "its weights are those of step1000"}, failed={"step64000": "cut off"})
    values = [scalars(0.25, 0.25, 0.0), scalars(0.25, 0.25, 0.0), None, scalars(1.0, 0.0, 8.0)]
    entries = [run(tmp_path, step, value) for step, value in zip(STEPS, values, strict=True)]
    (one,) = read_series(SweepRecord.read(series(tmp_path, entries, own_verdict, values)))
    points = one.points("strength")
    assert points is not None and points.steps == [1_000, 143_000]
    assert [job.label for job in one.complete] == ["step1000", "step143000"]


def test_a_sweep_without_a_verdict_has_no_series(tmp_path: Path) -> None:
    assert read_series(SweepRecord.read(sweep(tmp_path, matrix(tmp_path)))) == []


def test_merged_series_are_numbered_anew_and_count_once(tmp_path: Path) -> None:
    one, other = two_protocols(tmp_path)
    out = tmp_path / "c"
    merge([one, other, one], out)
    assert [entry["series"] for entry in json.loads((out / VERDICT).read_text())] == [0, 1]
    assert pq.read_table(out / "timeline.parquet")["series"].to_pylist() == [0] * 4 + [1] * 4
    found = read_series(SweepRecord.read(out))
    assert [each.title for each in found] == ["protocol=corrected", "protocol=original"]
    assert [len(each.complete) for each in found] == [4, 4]
    assert [job.factors["protocol"] for job in found[1].complete] == ["original"] * 4


def test_analyses_of_one_series_are_merged_under_one_number_with_their_figures_and_tables(tmp_path: Path) -> None:
    one, other = two_protocols(tmp_path)
    followed(one)
    followed(other)
    out = tmp_path / "c"
    merge([one, other], out)
    own_verdict = json.loads((out / VERDICT).read_text())
    assert [(entry["series"], entry["analysis"]) for entry in own_verdict] == [
        (0, "emergence"),
        (0, "circuit_course"),
        (1, "emergence"),
        (1, "circuit_course"),
    ]
    assert pq.read_table(out / "timeline.parquet")["series"].to_pylist() == [0] * 4 + [1] * 4
    assert pq.read_table(out / "ranks.parquet")["series"].to_pylist() == [0, 0, 1, 1]
    files = [entry["figures"]["rank"] for entry in own_verdict if entry["figures"]]
    assert len(set(files)) == 2 and all((out / file).is_file() for file in files)


def test_sweeps_recorded_before_meanings_and_tables_are_rebuilt_and_merged(tmp_path: Path) -> None:
    folders = []
    for name, protocol in (("a", "corrected"), ("b", "original")):
        (tmp_path / name).mkdir()
        folder = emerging(tmp_path / name, protocol=protocol)
        followed(folder)
        own_verdict = json.loads((folder / VERDICT).read_text())
        old = [{part: entry[part] for part in entry if part not in ("meanings", "tables")} for entry in own_verdict]
        write_json(folder / VERDICT, old)
        folders.append(folder)
    build([folders[0]], None)
    read = Text((folders[0] / "report.html").read_text(encoding="utf-8")).text
    assert "rank_change −1.25 [−1.50, −1.00] null 0 12 heads copying_change" in read  # no meaning between them
    out = tmp_path / "c"
    build(folders, out)
    # Both analyses of a series stand on its timeline, which is there once.
    assert pq.read_table(out / "timeline.parquet")["series"].to_pylist() == [0] * 4 + [1] * 4
    assert "Series side by side" in Text((out / "report.html").read_text(encoding="utf-8")).text


def test_a_verdict_under_its_former_names_says_the_same(tmp_path: Path) -> None:
    folder = emerging(tmp_path)
    (now,) = read_series(SweepRecord.read(folder))
    former = (folder / VERDICT).read_text().replace('"split"', '"even_odd"')
    (folder / VERDICT).write_text(former.replace('"is_strongest"', '"even_odd_is_strongest"'))
    (then,) = read_series(SweepRecord.read(folder))
    assert '"even_odd"' in former and then.verdict == now.verdict and then.split["is_strongest"]
