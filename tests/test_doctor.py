"""What the doctor says of a machine, and when its exit status is 1."""

import sys

import pytest

from headdyn import doctor


@pytest.mark.parametrize("writable", [True, False])
def test_a_table_of_facts_and_1_where_a_run_lacks_something(tmp_path, monkeypatch, capsys, writable):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / ("cache" if writable else "file")))
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("headdyn.core.tracking.unreachable", lambda: "no network in tests")
    monkeypatch.setattr(sys, "argv", ["doctor"])
    assert doctor.main() == (0 if writable else 1)
    printed = " ".join(capsys.readouterr().out.split())
    for fact in ("device", "torch 2", "muon-optimizer", "offline only: no network in tests", "off by HF_HUB_OFFLINE"):
        assert fact in printed
    assert ("GiB free (HEADDYN_CACHE moves it)" in printed) == writable
    assert ("NO cache" in printed) == (not writable)
