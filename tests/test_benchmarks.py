"""Benchmarks still run: what two of them compare or command is checked here, since nobody runs them with the tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from headdyn.models.families import export_pretrained
from headdyn.plan import make_plan
from tests.benchmarks import __main__ as runner
from tests.benchmarks import attention_statistics, sweep_memory


def test_both_sides_of_attention_statistics_have_the_same_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_statistics, "LENGTH", 32)
    monkeypatch.setattr(attention_statistics, "SWAPS", 3)
    folder = export_pretrained(attention_statistics.our_decoder(), tmp_path, "qwen3")
    assert attention_statistics.agree(folder) < 1e-4


def test_the_commands_settings_of_sweep_memory_are_accepted() -> None:
    plan = make_plan(("-m", *sweep_memory.SETTINGS, "model=organism_null", "model.revisions=step1000"))
    assert len(plan.jobs) == 1


def test_a_benchmark_that_fails_is_named_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    one, real = runner.Benchmark("not run here"), runner.run
    monkeypatch.setattr(runner, "BENCHMARKS", {"is_not_there": one, "figures": one})
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--out", str(tmp_path / "new")])
    monkeypatch.setattr(runner, "run", lambda name, options: ["a line"] if name == "figures" else real(name, options))
    with pytest.raises(SystemExit, match="failed: is_not_there"):
        runner.main()
    assert "== figures" in capfd.readouterr().out
    assert '"figures"' in (kept := (tmp_path / "new" / "bench.json").read_text()) and "is_not_there" not in kept
