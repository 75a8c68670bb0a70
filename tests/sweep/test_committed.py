"""What experiments/ has on record is what its own tables say, recomputed by today's definitions."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from headdyn.core.run_folder import RunRecord
from headdyn.sweep.effects import INTERACTION, SLOPE, factor_effects
from headdyn.sweep.matched_loss import compared, pooled

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TESTED = [path.parent.name for path in sorted(EXPERIMENTS.glob("*/effects.json")) if json.loads(path.read_text())]
MATCHED = [path.parent.name for path in sorted(EXPERIMENTS.glob("*/matched_loss.json"))]
TESTS = ("contrast", SLOPE, INTERACTION)
FACTORS = ("model", "attention", "data", "data_ordering", "position_enc", "mode", "protocol", "experiment")


def runs(experiment: str) -> list[RunRecord]:
    """The runs of a committed summary, whose settings agree but for the factors and the seed."""
    with (EXPERIMENTS / experiment / "summary.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    records = []
    for row in rows:
        factors: dict[str, Any] = {name: row[name] for name in FACTORS if row.get(name)}
        factors["seed"] = int(row["seed"])
        scalars = {
            name: {"value": float(text)} for name, text in row.items() if text and name not in factors and _number(text)
        }
        records.append(RunRecord(Path(row["run"]), {"status": row["status"], "factors": factors}, scalars))
    return records


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("experiment", TESTED)
def test_effects_are_those_on_record(experiment: str) -> None:
    committed = [
        row
        for row in json.loads((EXPERIMENTS / experiment / "effects.json").read_text())
        if row.get("kind", "contrast") in TESTS
    ]
    outcomes = list(dict.fromkeys(row["outcome"] for row in committed))
    rows = factor_effects(runs(experiment), outcomes=outcomes)
    found = {key(row): row for row in rows if row["kind"] in TESTS}
    assert set(found) == {key(row) for row in committed}  # the family of q too is the same
    compared = 0
    for row in committed:
        for name in ("value", "ci_low", "ci_high", "p", "q"):
            assert found[key(row)][name] == pytest.approx(row[name], rel=1e-12, abs=1e-12), (key(row), name)
            compared += 1
        assert found[key(row)]["n"] == row["n"]
        if "detectable" in row:  # the oldest record has none
            assert (row["detectable"] is None) == (row["q"] < 0.05)
            assert found[key(row)]["detectable"] == (row["detectable"] and pytest.approx(row["detectable"], rel=1e-9))
    assert compared == 5 * len(committed)


@pytest.mark.parametrize("experiment", MATCHED)
def test_differences_at_matched_loss_are_those_on_record(experiment: str) -> None:
    committed = json.loads((EXPERIMENTS / experiment / "matched_loss.json").read_text())
    found = {(row["group"], row["factor"], row["outcome"]): row for row in pooled(committed["pairs"])}
    assert len(found) == len(committed["pooled"])
    for row in committed["pooled"]:
        for name in ("value", "ci_low", "ci_high"):
            recomputed, recorded = found[row["group"], compared(row), row["outcome"]][name], row.get(name)
            assert (recomputed is None) == (recorded is None)
            assert recorded is None or recomputed == pytest.approx(recorded, rel=1e-12, abs=1e-12)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["group"], row["outcome"], tuple(row["factors"]), json.dumps(row["levels"], sort_keys=True)
