"""What the doctor says of a machine, and when its exit status is 1."""

import json
import sys

import pytest
from filelock import FileLock

from headdyn import doctor
from headdyn.core.store import Store


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


def build(folder):
    (folder / "weights").write_bytes(b"x" * 2**20)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Stages of every condition: used by a run, unused, damaged, set aside, unfinished."""
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))
    store = Store(tmp_path / "cache")
    made = {name: store.get("training", {"name": name}, build) for name in ("used", "unused", "damaged")}
    (made["damaged"].path / "weights").write_bytes(b"y" * 2**20)
    (tmp_path / "cache" / "training" / "0123.damaged-1").mkdir()
    (tmp_path / "cache" / "training" / "4567.partial").mkdir()
    (tmp_path / "cache" / "inductor" / "code").mkdir(parents=True)  # the compiler's own, no stage
    run = tmp_path / "outputs" / "run"
    run.mkdir(parents=True)
    facts = {key: {} for key in ("factors", "machine", "config", "versions", "seconds")}
    facts |= dict.fromkeys(("name", "started", "python"), "x")
    stages = {"training": {"key": made["used"].key}}
    (run / "manifest.json").write_text(json.dumps({"status": "failed", "stages": stages, **facts}))
    return {name: entry.path for name, entry in made.items()}


def doctor_says(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["doctor", *arguments])
    status = doctor.main()
    return status, capsys.readouterr().out


def test_the_cache_is_checked_and_every_finding_has_its_fix(cache, monkeypatch, capsys):
    status, printed = doctor_says(monkeypatch, capsys, "--cache")
    assert status == 1
    assert f"{cache['damaged']}: damaged (weights does not match its checksum): the next run" in printed
    assert "0123.damaged-1: damaged (set aside" in printed and "4567.partial: unfinished: " in printed
    assert f"{cache['unused']}: unused: no run" in printed and f"{cache['used']}:" not in printed
    assert "1.0 MiB" in printed and "inductor" not in printed
    assert all(path.is_dir() for path in cache.values())


def test_only_what_is_named_is_pruned_and_nothing_that_a_job_holds(cache, monkeypatch, capsys):
    with FileLock(cache["damaged"].with_suffix(".lock")):
        status, printed = doctor_says(monkeypatch, capsys, "--prune", "damaged", "unfinished")
    left = {path.name for path in cache["used"].parent.iterdir() if path.is_dir()}
    assert left == {path.name for path in cache.values()}
    assert status == 1 and "a running job holds it" in printed
    assert doctor_says(monkeypatch, capsys, "--prune", "damaged", "unused")[0] == 0
    assert [path for path in cache["used"].parent.iterdir() if path.is_dir()] == [cache["used"]]


def test_what_is_used_must_be_known_before_the_rest_is_pruned(cache, monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        doctor_says(monkeypatch, capsys, "--prune", "unused", "--runs", str(tmp_path / "nowhere"))
    assert refused.value.code == 2 and "nowhere is no folder" in capsys.readouterr().err
    assert cache["unused"].is_dir()
