"""Every conf/analysis option keeps the contract of headdyn/analysis/contract.py."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from headdyn.analysis.circuit_factors import folded
from headdyn.analysis.contract import Analysis, require_model_rows
from headdyn.analysis.series.circuit_course import FOLLOWED
from headdyn.analysis.series.head_roles import ROLES
from headdyn.analysis.series.points import SeriesPoint
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.settings import targeted
from headdyn.data.corpus import Corpus, Split
from headdyn.data.prompts import Prompts
from headdyn.models.decoder import Decoder
from tests import small_models, small_tokenizer
from tests.analysis import tiny
from tests.analysis.series.test_emergence import planted
from tests.figure_checks import alike, clipped, overlapping

FOLDER = Path(__file__).parents[2] / "conf" / "analysis"
LISTS = {"all": "corpus", "all_prompts": "prompts"}  # options that name others
OPTIONS = sorted(option for option in FOLDER.glob("*.yaml") if option.stem not in LISTS)
HEAVY = ("torch", "scipy", "sklearn", "transformers", "altair")
HEAD_ROWS = ("ablation", "answer_lens", "attention", "circuits", "head_clusters", "patching", "tensorlens")
# What the rows describe besides the model; those of other analyses describe nothing else.
ROWS = dict.fromkeys(HEAD_ROWS, "head") | {"probes": "layer", "specialization": "split"}


def node(option: Path) -> dict[str, Any]:
    """What the option's file says, settings of other analyses that it refers to being absent."""
    text = option.read_text(encoding="utf-8")
    assert text.startswith(f"# @package analysis.{option.stem}\n")
    return yaml.safe_load(re.sub(r"\$\{oc.select:.*\}", "null", text))


def load(option: Path) -> Analysis:
    """The analysis as the option's file gives it, without Hydra: `_target_` and settings of the declared types."""
    analysis = targeted(node(option), f"analysis.{option.stem}")
    assert node(option).keys() - {"_target_"} == {f.name for f in dataclasses.fields(analysis)}, (
        "the file states every setting"
    )
    return analysis


def materials(option: Path) -> list[str]:
    """What the analysis is given here: what it needs, or both kinds where it needs neither."""
    return sorted(load(option).needs - {"circuits", "topics"} or {"corpus", "prompts"})


CASES = [(option, material) for option in OPTIONS for material in materials(option)]
Material = Corpus | Prompts | list[SeriesPoint]


class Guess:
    """An oracle that gives every topic the same probability, a little more to the first."""

    def filter(self, tokens_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        posterior = np.broadcast_to([0.34, 0.33, 0.33], (*tokens_NT.shape, 3))
        return np.full((len(tokens_NT), tokens_NT.shape[1] - 1), 3.0), posterior


def series() -> list[SeriesPoint]:
    """Three checkpoints of a planted onset, with circuits that turn slowly and head rows that rise by 0.1 a step."""
    points = []
    for number, step in enumerate((1000, 64000, 143000)):
        made = planted(step, onset=64000)
        value_LH = np.random.default_rng(0).uniform(1.1, 1.2, (3, 4)) + 0.1 * number
        rows = [
            {"metric": metric, "layer": layer, "head": head, "value": value, "n": 1, "unit": "head"}
            for metric in FOLLOWED
            for (layer, head), value in np.ndenumerate(value_LH)
        ]
        rows += [{"metric": m, "value": value_LH.mean(), "null": 1.0, "n": 12, "unit": "head"} for m in FOLLOWED]
        rows += [
            {
                "metric": metric,
                "layer": layer,
                "head": head,
                "value": value - 1,
                "null": 0.0,
                "n": 1,
                "unit": "sequence",
            }
            for metric in ROLES
            for (layer, head), value in np.ndenumerate(value_LH)
        ]
        turned = small_models.drawn(small_models.MHA, dtype=torch.float32)
        with torch.no_grad():
            for parameter in turned.parameters():
                parameter += 0.1 * number * torch.ones_like(parameter).cumsum(-1).cos()
        assert made.table is not None
        table = HeadTable.concat([made.table, HeadTable.from_rows(rows)])
        points.append(dataclasses.replace(made, table=table, circuits=folded(turned, 1)))
    return points


def called(analysis: Any, decoder: Decoder, material: Material) -> Findings:
    """The analysis of one model on what it reads, or that of a series on its points, under the same draws."""
    about = (material,) if isinstance(material, list) else (decoder, material)
    return analysis(*about, np.random.default_rng(5))


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0].stem}-{case[1]}")
def case(request) -> tuple[Path, str]:
    return request.param


@pytest.fixture(scope="module")
def analysis(case) -> Analysis:
    return load(case[0])


@pytest.fixture(scope="module")
def corpus(case) -> Material:
    option, material = case
    if material == "series":
        return series()
    if material == "prompts":
        return small_tokenizer.prompts(bug_pairs=12, control_pairs=12)  # with few, BCa's ties turn on rounding
    assert material == "corpus", f"give this test the {material} that {option.stem} needs"
    return tiny.corpus(rows=256, length=64, vocab_size=small_models.MHA.vocab_size, tell=0.3, oracle=Guess())


@pytest.fixture(scope="module", params=["mha", "gqa"])
def decoder(request, corpus) -> Decoder:
    config = small_models.CONFIGS[request.param]
    if isinstance(corpus, Prompts):
        config = dataclasses.replace(config, vocab_size=len(small_tokenizer.byte_level()))
    return small_models.drawn(config, dtype=torch.float32)


@pytest.fixture(scope="module")
def findings(analysis, decoder, corpus) -> Findings:
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    found = called(analysis, decoder, corpus)
    after = decoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the analysis changed the model"
    assert not any(parameter.grad is not None for parameter in decoder.parameters())
    return found


def test_there_are_options():
    assert {"attention", "probes", "circuits"} <= {option.stem for option in OPTIONS}


@pytest.mark.parametrize(("name", "material"), LISTS.items())
def test_a_list_names_every_analysis_that_can_run_on_its_material(name, material):
    listed = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))["defaults"]
    assert sorted(listed) == [option.stem for option in OPTIONS if load(option).needs <= {material, "topics"}]


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.stem)
def test_it_declares_what_it_is(option):
    analysis = load(option)
    assert isinstance(analysis, Analysis)
    assert dataclasses.is_dataclass(analysis) and type(analysis).__dataclass_params__.frozen
    assert isinstance(analysis.needs, frozenset)
    assert all(metric.meaning and metric.low < metric.high for metric in analysis.metrics.values())


def test_checking_an_analysis_imports_nothing_heavy():
    """Its module is imported when a command is checked: settings and metrics; what computes is in its sibling."""
    nodes = {option.stem: node(option) for option in OPTIONS}
    code = (
        "import json, sys; from headdyn.core.settings import targeted\n"
        "for name, node in json.loads(sys.argv[1]).items(): targeted(node, f'analysis.{name}')\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code, json.dumps(nodes)], capture_output=True, text=True, check=True)
    assert len(nodes) >= 6 and shown.stdout == "[]\n"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.stem)
def test_every_metric_has_a_label_of_its_own(option):
    labels = [metric.label for metric in load(option).metrics.values()]
    assert all(labels) and len(set(labels)) == len(labels)
    assert not any("_" in label for label in labels)


def test_it_is_deterministic_under_its_generator(analysis, findings, decoder, corpus):
    again = called(analysis, decoder, corpus)
    assert findings.table.rows() and again.table.rows() == findings.table.rows()
    assert getattr(again, "verdict", None) == getattr(findings, "verdict", None)
    assert {name: table.to_pydict() for name, table in again.tables.items()} == {
        name: table.to_pydict() for name, table in findings.tables.items()
    }


def test_values_lie_in_their_declared_range(analysis, findings):
    for row in findings.table.rows():
        metric = analysis.metrics[row["metric"]]
        if row["value"] is None:
            assert row["reason"]
            continue
        assert metric.low - 1e-6 <= row["value"] <= metric.high + 1e-6, row
        if row["ci_low"] is not None:
            assert row["ci_low"] <= row["value"] + 1e-9 and row["value"] <= row["ci_high"] + 1e-9, row
        assert row["p"] is None or 0 < row["p"] <= 1
        assert row["n"] and row["unit"], "a value says how many of which units stand behind it"
    assert set(findings.table.table["metric"].to_pylist()) == set(analysis.metrics), "every metric declared is given"


def test_every_outcome_has_a_row_for_the_whole_model(case, analysis, findings):
    require_model_rows(case[0].stem, analysis.metrics, findings.table)


@pytest.mark.parametrize("makes", [HeadTable.per_head, HeadTable.per_layer])
def test_an_outcome_with_rows_of_heads_or_layers_alone_is_refused(makes):
    parts = makes("own", np.ones((2, 3) if makes == HeadTable.per_head else 2), n=1, unit="head")
    metrics = {name: Metric(meaning="a number", outcome=True) for name in ("own", "not_given")}
    with pytest.raises(ValueError, match=r'analysis mine: its metric own has outcome=True.*HeadTable.whole\("own"'):
        require_model_rows("mine", metrics, parts)
    require_model_rows("mine", {"own": Metric(meaning="a number")}, parts)
    for value in ({"value": 1.0, "n": 6, "unit": "head"}, {"value": None, "reason": "no head reads anything"}):
        require_model_rows("mine", metrics, HeadTable.concat([parts, HeadTable.whole("own", **value)]))


def test_every_value_carries_a_null_or_an_interval(findings, corpus):
    if isinstance(corpus, list):
        pytest.skip("a date's doubt is the interval between checkpoints and the verdict's probabilities")
    bare = [row for row in findings.table.rows() if row["value"] is not None and row["null"] is row["ci_low"] is None]
    assert not bare


def test_one_row_a_unit(case, analysis, findings, decoder):
    c, rows = decoder.config, ROWS.get(case[0].stem)
    places = [(row["metric"], row["layer"], row["head"]) for row in findings.table.rows()]
    assert len(set(places)) == len(places)
    by_head = {(layer, head) for layer in range(c.num_layers) for head in range(c.num_heads)}
    by_layer = {(layer, None) for layer in range(c.num_layers)}
    middle = {(layer, head) for layer, head in by_head if layer == c.num_layers // 2}
    for metric in analysis.metrics:
        units = {place[1:] for place in places if place[0] == metric} - {(None, None)}
        if rows == "head":
            assert units in (set(), by_head, by_layer)
        elif rows == "layer":
            assert units in (set(), {(layer, None) for layer in range(c.num_layers + 1)})
        elif rows == "split":  # splits themselves stand in a table of their own
            assert units in (set(), by_layer, middle, {(c.num_layers // 2, None)})
        else:
            assert not units


def heads_of(table: HeadTable, order: list[int] | None = None) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Head rows of layer 1 by metric and head, as they would stand if head i were `order[i]`."""
    rows = [row for row in table.where(layer=1).rows() if row["head"] is not None]
    back = {h: h if order is None else order.index(h) for h in range(4)}
    return {(row["metric"], back[row["head"]]): row for row in rows}


def test_permuting_heads_permutes_rows(case, analysis, findings, decoder, corpus):
    order = [3, 2, 0, 1]  # keeps pairs together, as grouped queries need
    if isinstance(corpus, list):
        pytest.skip("its points are of several models")
    permuted = analysis(decoder.permuted(1, order), corpus, np.random.default_rng(5))
    ours, expected = heads_of(permuted.table), heads_of(findings.table, order)
    assert set(ours) == set(expected) and bool(ours) == (ROWS.get(case[0].stem) in ("head", "split"))
    for place, row in expected.items():
        for column, tolerance in (("value", 2e-4), ("null", 2e-4), ("ci_low", 2e-4), ("ci_high", 2e-4), ("p", 2e-3)):
            if row[column] is not None:
                scale = max(1.0, abs(row[column]))
                assert abs(ours[place][column] - row[column]) < tolerance * scale, (place, column)
    if expected:  # mutant: without the reordering they differ
        unmoved = heads_of(findings.table)
        assert max(abs((ours[at]["value"] or 0) - (unmoved[at]["value"] or 0)) for at in ours) > 1e-2


def test_figures_are_few_and_named(findings, corpus):
    assert 1 <= len(findings.figures) <= (8 if isinstance(corpus, list) else 5)
    assert all(name.isidentifier() for name in (*findings.figures, *findings.tables))


def test_figures_are_fit_for_print(findings):
    for name, figure in findings.figures.items():
        assert clipped(figure) == [] and overlapping(figure) == [] and alike(figure) == [], name


def test_a_small_corpus_is_taken_whole_or_refused_in_words(analysis, decoder, corpus):
    if not isinstance(corpus, Corpus):
        pytest.skip("it reads no corpus")
    few = Split(tokens_NT=corpus.val.tokens_NT[:5], topics_NT=corpus.val.topics_NT[:5])
    few = dataclasses.replace(corpus, val=few)
    if not hasattr(analysis, "check"):
        rows = analysis(decoder, few, np.random.default_rng(0)).table.rows()
        assert rows and {row["n"] for row in rows if row["unit"] == "sequence"} <= {5}
        return
    analysis.check(corpus)
    with pytest.raises(ValueError, match="the corpus has 5; bring more text"):
        analysis.check(few)
    with pytest.raises(ValueError, match="the corpus has 5; bring more text"):
        analysis(decoder, few, np.random.default_rng(0))
