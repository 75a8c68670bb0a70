"""A page is kept only where its records, the code that draws it and the page itself are what they were."""

import os
from pathlib import Path
from unittest.mock import patch

import pytest

from headdyn.finish import finish
from headdyn.report.page import is_current, made_of, sealed
from headdyn.sweep.record import SweepRecord
from tests.report.folders import run
from tests.test_finish import Workers, jobs_of


def finished(folder: Path) -> SweepRecord:
    entries = [run(folder, ordering=ordering) for ordering in ("shuffled", "topic")]
    with patch("headdyn.finish.now", return_value="2026-01-01T00:00:00+00:00"):
        assert finish(folder, jobs_of(entries), Workers()) == 0
    return SweepRecord.read(folder)


def test_a_finished_sweep_keeps_its_page_and_its_date(tmp_path: Path) -> None:
    page, sweep = tmp_path / "report.html", finished(tmp_path)
    before = page.stat().st_mtime_ns, page.read_bytes()
    entries = [{"name": job.run.name, "factors": job.factors} for job in sweep.jobs]
    assert finish(tmp_path, jobs_of(entries), Workers()) == 0
    assert (page.stat().st_mtime_ns, page.read_bytes()) == before
    assert SweepRecord.read(tmp_path).written == "2026-01-01T00:00:00+00:00"


def test_a_page_that_was_damaged_is_drawn_again(tmp_path: Path) -> None:
    page, sweep = tmp_path / "report.html", finished(tmp_path)
    whole = page.read_text()
    entries = jobs_of([{"name": job.run.name, "factors": job.factors} for job in sweep.jobs])
    for damaged in (whole[: len(whole) // 2], whole.replace("shuffled", "Shuffled", 1), "", whole + "more"):
        page.write_text(damaged)
        assert finish(tmp_path, entries, Workers()) == 0
        assert is_current(page, made_of(SweepRecord.read(tmp_path)))
    page.unlink()
    assert finish(tmp_path, entries, Workers()) == 0
    assert page.exists()


def test_every_record_counts(tmp_path: Path) -> None:
    sweep = finished(tmp_path)
    known = {made_of(sweep)}
    records = [path for path in sorted(tmp_path.rglob("*")) if path.is_file() and path != tmp_path / "report.html"]
    assert len(records) > 8
    for path in records:
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        digest = made_of(sweep)
        assert digest not in known, f"{path.name} does not count"
        known.add(digest)
        path.write_bytes(content)
    (tmp_path / "other.txt").touch()  # the page lists the files beside it
    assert made_of(sweep) not in known


def test_a_large_record_counts_by_its_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = finished(tmp_path)
    large, digest = tmp_path / "effects.json", made_of(sweep)
    monkeypatch.setattr("headdyn.report.page._MOST_READ", 100)
    by_time = made_of(sweep)
    assert by_time != digest and made_of(sweep) == by_time
    os.utime(large, ns=(0, 0))
    assert made_of(sweep) != by_time


def test_what_no_page_shows_does_not_count(tmp_path: Path) -> None:
    sweep = finished(tmp_path)
    digest = made_of(sweep)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "run.wandb").touch()
    for name in (".lock", "report.html", "report.html.tmp"):
        (tmp_path / name).touch()
    (tmp_path / sweep.jobs[0].run.name / "log.txt").write_text("a line more")
    assert made_of(sweep) == digest


def test_the_code_and_the_libraries_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, package = finished(tmp_path / "sweep"), tmp_path / "package"
    package.mkdir()
    (package / "page.py").write_text("one")
    monkeypatch.setattr("headdyn.core.source_code.PACKAGE", package)
    digests = {made_of(sweep)}
    (package / "page.py").write_text("two")
    digests.add(made_of(sweep))
    (package / "names.json").write_text("{}")
    digests.add(made_of(sweep))
    monkeypatch.setattr("headdyn.report.page.version", lambda name: f"{name} 0.0")
    digests.add(made_of(sweep))
    assert len(digests) == 4


def test_the_last_line_tells_of_what_a_page_was_made(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(sealed("<html></html>\n", "a"))
    assert page.read_text().startswith("<html></html>\n<!-- ") and page.read_text().endswith(" -->\n")
    assert is_current(page, "a") and not is_current(page, "b") and not is_current(tmp_path / "none.html", "a")
