"""A metric of a user's own analysis, in a package outside headdyn, is met wherever metrics are."""

import csv

import pytest
from rich.console import Console

from headdyn.dashboard.panels import of_sweep
from headdyn.report.terminal import print_summary
from headdyn.run import main
from headdyn.sweep.record import SweepRecord
from tests.commands import TINY

ANALYSIS = '''
"""How large a model's embedding is."""
from dataclasses import dataclass
from typing import ClassVar

from headdyn.core.records import Findings, HeadTable, Metric


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the embedding of tokens is."""

    power: int = 1
    needs: ClassVar = frozenset({"corpus"})
    metrics: ClassVar = {
        "embedding_size": Metric(
            meaning="mean size of the embedding's entries", label="size of the embedding", low=0, unit="thousandths",
            scale=1000, digits=2, outcome=True,
        )
    }

    def __call__(self, decoder, material, generator):
        size = float(decoder.embed.weight.detach().abs().pow(self.power).mean())
        table = HeadTable.whole("embedding_size", size, ci_low=size * 0.9, ci_high=size * 1.1, n=48, unit="sequence")
        return Findings(table=table)
'''


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> SweepRecord:
    place = tmp_path_factory.mktemp("own")
    package, conf = place / "own_measures", place / "conf" / "analysis"
    package.mkdir()
    conf.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "size.py").write_text(ANALYSIS)
    (conf / "size.yaml").write_text("# @package analysis.size\n_target_: own_measures.size.Size\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        patch.setattr("sys.argv", ["headdyn"])
        for name, value in {"HEADDYN_OUT": place / "out", "HEADDYN_CACHE": place / "cache", "COLUMNS": 200}.items():
            patch.setenv(name, str(value))
        swept = ("model.num_layers=1,2", "seed=0,1", "outcomes.primary=embedding_size", "outcomes.others=[loss_nats]")
        assert main(["-m", "--config-dir", str(place / "conf"), *TINY, "analysis=[loss,size]", *swept]) == 0
    (folder,) = (place / "out" / "multirun").iterdir()
    return SweepRecord.read(folder)


def test_it_is_in_the_summary_with_its_interval(sweep: SweepRecord) -> None:
    with (sweep.folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and all(float(row["embedding_size"]) > 0 for row in rows)
    assert all(row["embedding_size_ci_low"] and row["model.num_layers"] in ("1", "2") for row in rows)


def test_it_is_tested_and_said_in_its_own_words(sweep: SweepRecord, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.outcomes == ("embedding_size", "loss_nats") and sweep.primary == "embedding_size"
    (row,) = [row for row in sweep.effects if row["outcome"] == "embedding_size"]
    assert row["factors"] == ["model.num_layers"] and row["levels"] == {"model.num_layers": [1, 2]} and row["n"] == 2
    values = {
        (job.factors["model.num_layers"], job.factors["seed"]): job.run.value("embedding_size") for job in sweep.jobs
    }
    assert row["value"] == pytest.approx(sum(values[2, seed] - values[1, seed] for seed in (0, 1)) / 2)
    print_summary(Console(width=200), sweep, sweep.folder / "report.html")
    text = " ".join(capsys.readouterr().out.split())
    assert "size of the embedding" in text and "(thousandths)" in text
    assert "on size of the embedding detected" in text or "Effect on size of the embedding" in text
    assert "layers 2 less layers 1 is " in text


def test_it_is_on_the_page_and_in_the_dashboards(sweep: SweepRecord) -> None:
    page = (sweep.folder / "report.html").read_text(encoding="utf-8")
    assert "size of the embedding" in page and "mean size of the embedding&#39;s entries" in page
    (first, *_) = of_sweep(sweep, "someone").sections
    assert first.title == "Effects of model.num_layers"
    assert next(panel.title for panel in first.panels) == "size of the embedding (share)"
