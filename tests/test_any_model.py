"""Models that come trained, of every family, read sequences and prompts in their own tokens: from command to record."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from headdyn.core import kept_parts
from headdyn.core.run_folder import KEPT_PARTS, RunRecord
from headdyn.data.text import build
from headdyn.models.families import export_pretrained
from headdyn.pipeline import run
from headdyn.plan import make_plan
from headdyn.run import main
from tests.commands import TINY, environment
from tests.data.text.small_text import jsonl, planted
from tests.small_checkpoints import FAMILIES, checkpoint
from tests.small_models import drawn

FEW = ("mode=smoke", "tracking=none", "threads=1", "patterns_kept=2")
ATTENTION = ("analysis.attention.sequences=24", "analysis.attention.bootstrap_draws=100")
EVERY = "analysis=[loss,attention,probes,tensorlens]"
EVERY_FEW = (
    *ATTENTION,
    *("analysis.tensorlens.sequences=22", "analysis.tensorlens.bootstrap_draws=100", "analysis.tensorlens.targets=2"),
    *("analysis.probes.max_iterations=20", "analysis.probes.bootstrap_draws=100", "analysis.probes.penalties=[0.1]"),
)
FEW_PATCHES = ("analysis.specialization.sign_flips=999", "analysis.specialization.bootstrap_draws=100")
TEXT = ("data=local_text", "data.num_topics=3", "data.sequence_length=32", "data.val_share=0.3", "data.vocab_size=300")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A root for output, cache, a text and a checkpoint of every family."""
    root = tmp_path_factory.mktemp("any_model")
    jsonl(root / "text.jsonl", *planted(150, 3, words_each=60))
    for family in FAMILIES:
        checkpoint(root / family, family)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HEADDYN_OUT", "HEADDYN_CACHE", "HF_HUB_OFFLINE"):
            patch.setenv(name, environment(root)[name])
        patch.setattr(sys, "argv", ["headdyn"])
        patch.setattr(build.clusters, "_NULL_DRAWS", 3)
        yield root


def done(place: Path, *arguments: str) -> RunRecord:
    """The record of the run that this command makes."""
    outputs = place / "out" / "outputs"
    before = set(outputs.glob("*"))
    assert main([*FEW, *arguments]) == 0
    (made,) = set(outputs.glob("*")) - before
    return RunRecord.read(made)


def prompt_pairs() -> list[dict[str, str]]:
    """Twelve pairs of prompts as a user would write them."""
    return [
        {"clean": f"so {a} and {b}: {a}", "corrupted": f"so {a} and {b}: {b}", "right": f" {b}", "wrong": f" {a}"}
        for a in "abcd"
        for b in "efg"
    ]


def refusal(capsys: pytest.CaptureFixture[str], arguments: Sequence[str]) -> str:
    capsys.readouterr()
    assert main([*FEW, *arguments]) != 0
    return capsys.readouterr().err


def measured(record: RunRecord) -> set[tuple[str, bool, bool]]:
    """Every metric with whether it is of heads and whether any row has a value."""
    rows = record.heads().rows()
    present = {(row["metric"], row["head"] is not None) for row in rows if row["value"] is not None}
    return {
        (row["metric"], row["head"] is not None, (row["metric"], row["head"] is not None) in present) for row in rows
    }


@pytest.fixture(scope="module")
def trained_here(place: Path) -> set[tuple[str, bool, bool]]:
    """What a Mini-Qwen3 trained on the same text leaves."""
    sizes = [argument for argument in TINY if argument.startswith("train.")]
    path = f"data.path={place / 'text.jsonl'}"
    return measured(done(place, *TEXT, path, "precision=fp32", *sizes, EVERY, *EVERY_FEW))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_on_any_family_writes_the_metrics_of_a_mini_qwen3s(
    place: Path, family: str, trained_here: set[tuple[str, bool, bool]]
) -> None:
    model = ("model=huggingface", f"model.name={place / family}")
    record = done(place, *model, *TEXT, f"data.path={place / 'text.jsonl'}", EVERY, *EVERY_FEW)
    assert record.status == "complete" and measured(record) == trained_here
    patterns = load_file(record.folder / "patterns.safetensors")
    layers, heads = FAMILIES[family].num_layers, FAMILIES[family].num_heads
    assert {patterns[f"pattern.{layer}"].shape for layer in range(layers)} == {(2, heads, 32, 32)}
    np.testing.assert_allclose(patterns["pattern.0"].astype(float).sum(-1), 1, atol=2e-3)
    assert (record.folder / "figures" / "patterns_telling_heads.json").exists()


def test_repeated_tokens_are_read_where_no_data_are_named_and_what_does_not_apply_is_left_out(
    place: Path,
) -> None:
    model = ("model=huggingface", f"model.name={place / 'llama'}")
    record = done(place, *model, *ATTENTION, "analysis.circuits.null_draws=100")
    assert record.factors["data"] == "repeated_tokens"
    assert list(record.manifest["absent"]) == ["probes"] and "topics" in record.manifest["absent"]["probes"]
    assert "probes left out" in (record.folder / "report.html").read_text()
    metrics = {metric for metric, _, has_value in measured(record) if has_value}
    assert {
        "repeated_pairs_nats",
        "repeat_gain_nats",
        "in_context_nats",
        "induction",
        "induction_top",
        "sink_rate",
    } <= metrics
    assert not {metric for metric in metrics if "selectivity" in metric or "within" in metric}
    absent = {row["reason"] for row in record.heads().where(metric="selectivity").rows()}
    assert absent == {"repeated tokens have no topics"}
    assert record.manifest["config"]["outcomes"]["primary"] == "induction_top"


def test_a_run_on_prompts_keeps_their_patterns(place: Path) -> None:
    prompts = ("data=comparisons", "data.bug_pairs=4", "data.control_pairs=2", "analysis=[answer_lens]")
    record = done(place, "model=huggingface", f"model.name={place / 'gpt_neox'}", *prompts)
    patterns = load_file(record.folder / "patterns.safetensors")
    assert patterns["tokens"].shape == patterns["topics"].shape and len(patterns["tokens"]) == 2
    assert "writes most of the answer" in json.dumps(
        json.loads((record.folder / "figures" / "patterns_telling_heads.json").read_text())
    )


def test_prompt_pairs_serve_a_preset_of_prompts_and_an_edited_file_is_read_anew(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, rows = place / "pairs.jsonl", prompt_pairs()
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = (*FEW_PATCHES, "analysis.head_clusters.null_draws=200", "analysis.circuits.null_draws=100")
    model = ("model=huggingface", f"model.name={place / 'gpt_neox'}", "data=prompt_pairs", f"data.path={file}")
    record = done(place, *model, *few, "experiment=mechanistic")
    assert record.status == "complete" and record.manifest["prompts"]["pairs"] == 12
    metrics = {metric for metric, of_heads, has_value in measured(record) if of_heads and has_value}
    assert {"sufficiency_nats", "qk_effective_rank"} <= metrics
    answers = (*model, "analysis=[answer_lens]")
    first = done(place, *answers).manifest["prompts"]["sha256"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    assert main([*FEW, *answers]) == 0
    edited = [json.loads(path.read_text()) for path in (place / "out" / "outputs").glob("*/manifest.json")]
    assert {6} == {m["prompts"]["pairs"] for m in edited if m.get("prompts", {}).get("sha256", first) != first} - {12}
    assert "protocol=original repeats what the studies asked" in refusal(capsys, [*answers, "protocol=original"])
    file.write_text('{"clean": "a"}\n')
    assert "pairs.jsonl:1 has corrupted=None" in refusal(capsys, answers)


@pytest.mark.parametrize(
    ("settings", "limits"),
    [
        (
            ["num_topics=3", "val_share=0.007"],
            ["label_swaps=20 needs more validation sequences", "probes need at least 12"],
        ),
        (
            ["num_topics=200", "sequence_length=100_000"],
            ["data.num_topics=200, but of 150", "the train documents have", "the val documents have"],
        ),
    ],
)
def test_a_short_text_is_refused_before_anything_starts_with_all_limits_at_once(
    place: Path, capsys: pytest.CaptureFixture[str], settings: list[str], limits: list[str]
) -> None:
    text = ["data=local_text", f"data.path={place / 'text.jsonl'}", *(f"data.{each}" for each in settings)]
    capsys.readouterr()
    begun = sorted((place / "out").rglob("*"))
    for model in ((), ("model=huggingface", f"model.name={place / 'llama'}")):
        vocabulary = ["data.vocab_size=300"] if not model else []
        assert main([*FEW, *model, *text, *vocabulary, "analysis=[loss,attention,probes]"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("headdyn: ") and all(limit in line for limit in limits)
    assert sorted((place / "out").rglob("*")) == begun


@pytest.mark.parametrize("swaps", ["20,120", "120,20"])
def test_a_short_text_is_read_once_for_a_sweep_and_held_against_every_job(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, swaps: str
) -> None:
    sequences_of = build.sequences_of
    readings: list[object] = []

    def read(settings: Any, *others: Any) -> tuple[dict[str, int], list[str]]:
        readings.append(settings)
        return sequences_of(settings, *others)

    monkeypatch.setattr(build, "sequences_of", read)
    begun = sorted((place / "out").rglob("*"))
    text = (*TEXT[:3], "data.vocab_size=300", "data.val_share=0.06", f"data.path={place / 'text.jsonl'}")
    many = ("analysis=[attention]", "analysis.attention.sequences=200", f"analysis.attention.label_swaps={swaps}")
    for model in ((), ("model=huggingface", f"model.name={place / 'llama'}")):
        assert main(["-m", *FEW, *model, *text, *many]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "label_swaps=120 needs more validation sequences" in line and "label_swaps=20 " not in line
    assert len(readings) == 2
    assert sorted((place / "out").rglob("*")) == begun


def test_a_text_of_more_than_a_megabyte_is_read_before_anything_starts(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user's first text is often of a megabyte or so: 60 Wikipedia articles are 1,120,390 bytes."""
    file = place / "large.jsonl"
    jsonl(file, *planted(150, 3, words_each=1300))
    assert file.stat().st_size > 1_120_390
    text = ("data=local_text", "data.vocab_size=300", "data.num_topics=200", f"data.path={file}")
    assert "data.num_topics=200, but of 150 documents" in refusal(capsys, [*text, "analysis=[loss]"])


def test_a_local_model_that_is_not_what_the_command_needs_is_refused_before_anything_starts(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(place / "silent", "llama", with_tokenizer=False)
    shutil.copytree(place / "llama", place / "few_words")
    export_pretrained(
        drawn(dataclasses.replace(FAMILIES["llama"], vocab_size=50)).float(), place / "few_words", "llama"
    )
    shutil.copytree(place / "llama", place / "bloom")
    stated = json.loads((place / "bloom" / "config.json").read_text())
    (place / "bloom" / "config.json").write_text(json.dumps({**stated, "model_type": "bloom"}))
    lines = [{"clean": "abc def", "corrupted": other, "right": " 1", "wrong": " 2"} for other in ("abd def", "xyz")]
    (place / "apart.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "cut.gguf").write_bytes(b"GGUF" + bytes(40))
    text = ["data=local_text", f"data.path={place / 'text.jsonl'}"]
    begun = sorted((place / "out").rglob("*"))
    for name, data, words in (
        ("silent", text, "silent has no tokenizer, and text needs one"),
        ("silent", ["data=comparisons", "analysis=[answer_lens]"], "silent has no tokenizer, and prompts need one"),
        ("few_words", [], "its tokenizer has token 409, but its vocabulary ends at 49"),
        ("gpt2", ["data.sequence_length=65"], "longer than the 64 positions"),
        ("gpt2", [*text, "data.sequence_length=99"], "longer than the 64 positions"),
        (
            "llama",
            ["data=prompt_pairs", f"data.path={place / 'apart.jsonl'}"],
            "apart.jsonl:2: 'abc def' and 'xyz' do not",
        ),
        ("bloom", [], "unknown model family 'bloom'; the known ones are qwen3"),
        ("cut.gguf", [], "cut.gguf is no GGUF file, is cut off"),
        ("absent", [], "absent: there is no such folder or .gguf file"),
    ):
        analysis = [] if "analysis" in str(data) else [f"analysis=[{'patching' if 'pairs' in str(data) else 'loss'}]"]
        command = [*FEW, "model=huggingface", f"model.name={place / name}", *data, *analysis]
        for arguments in (command, ["-m", *command, "seed=0,1"]):
            assert main(arguments) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("headdyn: ") and words in line
    assert sorted((place / "out").rglob("*")) == begun


def test_a_folder_of_revisions_is_asked_when_heads_take_their_roles(place: Path) -> None:
    for step in (100, 20):
        checkpoint(place / "series" / f"checkpoint-{step}", "llama", seed=step)
    model = ("model=huggingface", f"model.name={place / 'series'}", "analysis.emergence.bootstrap_draws=100")
    assert main(["-m", "experiment=head_emergence", *FEW, *model, *ATTENTION]) == 0
    (sweep,) = (place / "out" / "multirun").glob("head_emergence*")
    verdicts = {entry["analysis"]: entry for entry in json.loads((sweep / "verdict.json").read_text())}
    assert list(verdicts["emergence"]["runs"]) == ["checkpoint-20", "checkpoint-100"]
    dated = set(verdicts["emergence"]["verdict"]["measures"])
    assert {"previous_token_top", "induction_top", "sink_rate_top", "repeat_gain_nats"} <= dated
    assert verdicts["head_roles"]["verdict"]["steps"] == [20, 100]
    roles = pq.read_table(sweep / "head_roles.parquet").to_pylist()
    assert {row["role"] for row in roles} == {"previous-token", "induction", "sink"}


def test_prompt_pairs_serve_the_presets_of_the_replicated_studies(place: Path) -> None:
    file = place / "replicated.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in prompt_pairs()))
    for step in (20, 100):
        checkpoint(place / "two" / f"checkpoint-{step}", "gpt_neox", seed=step)
    common = (*FEW, *FEW_PATCHES, "model=huggingface", "data=prompt_pairs", f"data.path={file}")
    model = (f"model.name={place / 'two'}", "model.revisions=series", "analysis.emergence.bootstrap_draws=100")
    assert main(["-m", "experiment=even_odd_emergence", *common, *model]) == 0
    (sweep,) = (place / "out" / "multirun").glob("even_odd_emergence*")
    (verdict,) = json.loads((sweep / "verdict.json").read_text())
    assert list(verdict["runs"]) == ["checkpoint-20", "checkpoint-100"]
    assert RunRecord.read(next(sweep.glob("*checkpoint-20*"))).manifest["prompts"]["pairs"] == 12
    record = done(place, "experiment=head_permutation", *common, f"model.name={place / 'gpt_neox'}")
    assert record.status == "complete" and record.manifest["prompts"]["pairs"] == 12


@pytest.fixture
def computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The file of every part that the test's runs compute; their output and cache lie in `tmp_path`."""
    for name in ("HEADDYN_OUT", "HEADDYN_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, environment(tmp_path)[name])
    computed: list[Path] = []
    add = kept_parts._Saver.add

    def counted(saver: kept_parts._Saver, path: Path, content: bytes) -> None:
        computed.append(path)
        add(saver, path, content)

    monkeypatch.setattr(kept_parts._Saver, "add", counted)
    return computed


def test_a_stopped_run_goes_on_where_its_analysis_was_unless_the_weights_are_others(
    tmp_path: Path, computed: list[Path]
) -> None:
    few = ("analysis.circuits.null_draws=100", "analysis=[circuits]", "data=repeated_tokens", "patterns_kept=0")
    command = (*FEW[:3], "model=huggingface", f"model.name={checkpoint(tmp_path / 'model', 'llama')}", *few)
    (job,) = make_plan(command).jobs

    def run_until(folder: str, stop_after: float) -> int:
        """How many parts are computed."""
        computed.clear()
        run(job, tmp_path / folder, lambda: len(computed) >= stop_after)
        return len(computed)

    every = run_until("whole", np.inf)
    for folder in ("stopped", "other weights"):
        with pytest.raises(KeyboardInterrupt):
            run_until(folder, 5)
        assert list((tmp_path / folder / KEPT_PARTS / "circuits").iterdir())
    assert run_until("stopped", np.inf) == every - 5 > 0
    tables = [(tmp_path / folder / "heads.parquet").read_bytes() for folder in ("whole", "stopped")]
    assert tables[0] == tables[1] and not (tmp_path / "stopped" / KEPT_PARTS).exists()
    checkpoint(tmp_path / "model", "llama", seed=1)
    assert run_until("other weights", np.inf) == every


OWN_ANALYSIS = """
import numpy as np
from headdyn.core.kept_parts import parts
from headdyn.core.records import Findings, HeadTable, Metric
from headdyn.core.settings import settings

@settings
class Own:
    'Adds up all that it is given, in four parts.'
    factor: float = 1.0
    rows, needs, metrics = "model", frozenset(), {"own": Metric(label="own", meaning="a sum")}

    def __call__(self, decoder, material, generator):
        read = repr(material.pairs) if hasattr(material, "pairs") else str(material.val.tokens_NT.sum())
        weight = float(decoder.embed.weight.detach().double().sum())
        own = np.array(self.factor * (weight + len(read) + sum(map(ord, read)) + generator.integers(1000)))
        done = parts("adding", "numbers", 4, 1, lambda at: {"own": own + at.start})
        return Findings(table=HeadTable.whole("own", float(sum(part["own"] for _, part in done)), n=4, unit="number"))
"""


@pytest.mark.parametrize(
    ("changed", "is_other_work"),
    [("nothing", False)]
    + [(name, True) for name in ("weights", "corpus", "pairs", "seed", "machine", "settings", "code", "library")],
)
def test_what_a_stopped_run_kept_serves_only_the_same_work(
    tmp_path: Path, computed: list[Path], monkeypatch: pytest.MonkeyPatch, changed: str, is_other_work: bool
) -> None:
    """The analysis names no inputs of its parts: that they are of the same work is for the run to tell."""
    module = tmp_path / "own_analysis.py"
    module.write_text(OWN_ANALYSIS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, module.stem, raising=False)
    model, pairs = tmp_path / "model", tmp_path / "pairs.jsonl"

    def write(*, seed: int = 0, right: str = "right", wrong: str = "wrong") -> None:
        checkpoint(model, "gpt_neox", seed=seed)
        rows = [{**row, "right": row[right], "wrong": row[wrong]} for row in prompt_pairs()]
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run_until(folder: str, stop_after: float = np.inf, **change: float) -> int:
        """How many parts are computed."""
        of_pairs = ("data=prompt_pairs", f"data.path={pairs}")
        corpus = ("data=repeated_tokens", f"data.seed={change.get('data_seed', 0)}")
        (job,) = make_plan(
            (
                *("mode=smoke", "tracking=none", "patterns_kept=0", "model=huggingface", f"model.name={model}"),
                *(of_pairs if changed == "pairs" else corpus),
                *(f"seed={change.get('seed', 0)}", f"threads={change.get('threads', 1)}", "analysis=[]"),
                f"+analysis={{own: {{_target_: own_analysis.Own, factor: {change.get('factor', 1)}}}}}",
            )
        ).jobs
        computed.clear()
        run(job, tmp_path / folder, lambda: len(computed) >= stop_after)
        return len(computed)

    write()
    with pytest.raises(KeyboardInterrupt):
        run_until("stopped", 3)
    more: dict[str, float] = {}
    match changed:
        case "weights":
            write(seed=1)
        case "pairs":
            write(right="wrong", wrong="right")
        case "corpus":
            more = {"data_seed": 1}
        case "seed":
            more = {"seed": 1}
        case "machine":
            more = {"threads": 2}
        case "settings":
            more = {"factor": 2}
        case "code":
            module.write_text(f"{OWN_ANALYSIS}# edited")
        case "library":
            monkeypatch.setattr(kept_parts, "version", lambda library: "0")
    assert run_until("stopped", **more) == (4 if is_other_work else 1)
    assert run_until("fresh", **more) == 4
    tables = [(tmp_path / folder / "heads.parquet").read_bytes() for folder in ("stopped", "fresh")]
    assert tables[0] == tables[1]
