"""Long analyses that are stopped: they say how far they are, and go on to the same bits without doing a part twice."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headdyn.analysis import answer_lens_measure, probes_measure, sequences
from headdyn.analysis.answer_lens import AnswerLens
from headdyn.analysis.attention import AttentionStatistics
from headdyn.analysis.circuits import Circuits
from headdyn.analysis.head_clusters import HeadClusters
from headdyn.analysis.interventions import restart
from headdyn.analysis.interventions.ablation import Ablation
from headdyn.analysis.interventions.group_scan import GroupScan
from headdyn.analysis.interventions.patch_map import PatchMap
from headdyn.analysis.interventions.permutation import HeadPermutation
from headdyn.analysis.interventions.specialization import Specialization
from headdyn.analysis.loss import HeldOutLoss
from headdyn.analysis.probes import TopicProbes
from headdyn.analysis.tensorlens import TensorLens
from headdyn.core import kept_parts, progress
from headdyn.core.kept_parts import keeping
from headdyn.core.records import Findings
from headdyn.core.store import StageInterruptedError
from tests.analysis import tiny
from tests.small_models import GPT2, MHA, drawn
from tests.small_tokenizer import prompts

DRAWS: dict[str, Any] = {"bootstrap_draws": 100}
FLIPS: dict[str, Any] = {**DRAWS, "sign_flips": 9_999}
OF_SEQUENCES = {
    "loss": (HeldOutLoss(**DRAWS), "reading"),
    "attention": (AttentionStatistics(label_swaps=20, **FLIPS), "reading"),
    "tensorlens": (TensorLens(sequences=21, label_swaps=20, **FLIPS), "reading"),
    "probes": (TopicProbes(fit_sequences=8, choose_sequences=4, test_sequences=6, **FLIPS), "fitting probes"),
    "circuits": (Circuits(null_draws=100), "comparing heads"),
    "clusters of weights": (HeadClusters(null_draws=200, relabellings=999, **FLIPS), "clustering heads"),
    "ablation of sequences": (Ablation(texts=4, random_groups=20, splits=100, **DRAWS), "changing heads"),
}
OF_PROMPTS = {
    "answer lens": (AnswerLens(**FLIPS), "taking answers apart"),
    "patching": (PatchMap(**FLIPS), "changing heads"),
    "specialisation": (Specialization(**FLIPS), "changing heads"),
    "scan over groups": (GroupScan(relabellings=999, **FLIPS), "changing heads"),
    "permutation": (HeadPermutation(dtypes=("float32",), texts=2, tokens=4, **DRAWS), "reordering heads"),
    "ablation": (Ablation(texts=4, random_groups=20, splits=100, **DRAWS), "changing heads"),
    "clusters": (HeadClusters(null_draws=200, relabellings=999, **FLIPS), "clustering heads"),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that there are many."""
    monkeypatch.setattr(restart, "_CPU_BYTES", 2**16)
    monkeypatch.setattr(answer_lens_measure, "_MOST_FLOATS", 1)
    monkeypatch.setattr(probes_measure, "_BATCH_TOKENS", 64)
    before = sequences._batches.set(sequences._Batches(limit=2))
    yield
    sequences._batches.reset(before)


def content(findings: Findings) -> str:
    """Everything in the tables, to the last digit."""
    tables = {"heads": findings.table.table, **findings.tables}
    return repr({name: table.to_pydict() for name, table in tables.items()})


@pytest.mark.parametrize(
    ("name", "material"), [(name, "corpus") for name in OF_SEQUENCES] + [(name, "prompts") for name in OF_PROMPTS]
)
def test_a_stopped_analysis_goes_on_to_the_same_numbers(
    name: str, material: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    analysis, step = {**OF_SEQUENCES, **OF_PROMPTS}[name]
    decoder = drawn(MHA) if material == "corpus" else drawn(dataclasses.replace(GPT2, vocab_size=600, max_positions=64))
    read = tiny.corpus(rows=24, length=16) if material == "corpus" else prompts(bug_pairs=4, control_pairs=2)
    computed: list[Path] = []
    add = kept_parts._Saver.add
    monkeypatch.setattr(kept_parts._Saver, "add", lambda *given: (computed.append(given[1]), add(*given))[1])
    monkeypatch.setattr(progress, "LOG_EVERY_SECONDS", 0)

    def analysed(folder: str, stop_after: float = np.inf, identity: str = "commit") -> Findings:
        computed.clear()
        with keeping(tmp_path / folder, identity, lambda: len(computed) >= stop_after):
            return analysis(decoder, read, np.random.default_rng(0))

    with caplog.at_level(logging.INFO):
        whole = content(analysed("whole"))
    count, per_step = len(computed), [line for line in caplog.messages if line.startswith(f"{step}: ")]
    assert count > 3 and per_step and all(" s left" in line for line in per_step)
    for done in (1, count // 2, count - 1):
        folder = f"stopped after {done}"
        with pytest.raises(StageInterruptedError):
            analysed(folder, stop_after=done)
        assert len(computed) == done
        assert content(analysed(folder)) == whole
        assert len(computed) == count - done
    with pytest.raises(StageInterruptedError):
        analysed("other", stop_after=count - 1)
    assert content(analysed("other", identity="other weights")) == whole
    assert len(computed) == count  # nothing that was kept of other weights, settings or code is taken
