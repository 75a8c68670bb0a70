"""A sweep's own record, and what is none."""

from pathlib import Path

import pytest

from headdyn.sweep.record import single_job, sweep_json
from tests.report.folders import run


def test_a_complete_run_alone_is_a_job_of_its_own(tmp_path: Path) -> None:
    complete, failed = (run(tmp_path, seed=seed, status=status) for seed, status in ((0, "complete"), (1, "failed")))
    assert single_job(tmp_path / complete["name"]).factors == complete["factors"]
    with pytest.raises(ValueError, match=f"{failed['name']} is failed, not complete: .*; run its command again"):
        single_job(tmp_path / failed["name"])
    with pytest.raises(ValueError, match="is no run's folder"):
        single_job(tmp_path)


@pytest.mark.parametrize("content", ["{}", '{"name": "a"}', '["name", "jobs"]', "[1]"])
def test_a_record_without_its_name_or_its_jobs_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(ValueError, match=r"sweep.json is not a sweep's record: it lacks name or jobs"):
        sweep_json(tmp_path)


def test_a_record_of_jobs_says_what_varied(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(
        '{"name": "a", "jobs": [{"name": "x", "factors": {"seed": 0, "mode": "smoke"}}, '
        '{"name": "y", "factors": {"seed": 1, "mode": "smoke"}}]}'
    )
    assert sweep_json(tmp_path)["swept"] == ["seed"]
