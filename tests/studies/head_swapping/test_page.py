"""Virtual permutation is explained where a run repeated it."""

from __future__ import annotations

from pathlib import Path

import pytest

from headdyn.report.run_page import write_run_page
from headdyn.studies.head_swapping import sections
from headdyn.sweep.record import SweepRecord, single_job
from tests.report.series_folders import run, scalars
from tests.report.test_sweep_page import Text

VERDICTS = {
    "original_identity_success": {"value": 1.0, "n": 1},
    "original_swap_success": {"value": 0.0, "n": 1},
    "swap_float64_logit_change": {"value": 2e-15},
}


@pytest.mark.parametrize(("more", "count"), [(VERDICTS, 1), ({}, 0)])
def test_virtual_permutation_is_explained_where_it_ran(tmp_path: Path, more: dict, count: int) -> None:
    name = run(tmp_path, 143_000, scalars(1.0, 0.25, 4.0, **more), protocol="original")["name"]
    found = sections(SweepRecord.of(single_job(tmp_path / name)))
    assert len(found) == count
    for section in found:
        read = Text(f"<body>{section.html}</body>").text
        assert "identity right, swap wrong" in read and "no logit by more than 2e-15 in float64" in read
        assert "all permutations of heads failed" in read


def test_the_page_of_the_run_says_so(tmp_path: Path) -> None:
    config = {"analysis": {"original": {"_target_": "headdyn.studies.head_swapping.permutation.OriginalPermutation"}}}
    name = run(tmp_path, 143_000, scalars(1.0, 0.25, 4.0, **VERDICTS), manifest={"config": {"model": {}, **config}})[
        "name"
    ]
    read = Text(write_run_page(tmp_path / name).read_text(encoding="utf-8")).text
    assert "identity right, swap wrong" in read
