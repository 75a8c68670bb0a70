"""What a dry run says: sizes from the settings, times from earlier work of the same sizes alone."""

import json
import re
import shutil

import pytest
import torch

from headdyn.composition import plain_arguments
from headdyn.core.records import HeadTable
from headdyn.core.store import Store
from headdyn.estimate import (
    Measured,
    _analysis_sizes,
    bytes_of,
    dry_run,
    measured,
    parameters,
    seconds_at_matched_loss,
    seconds_of,
)
from headdyn.models.checkpoints.files import _downloaded
from headdyn.models.checkpoints.forecast import Forecast
from headdyn.models.checkpoints.hub import CheckpointError
from headdyn.models.config import DecoderConfig
from headdyn.models.decoder import Decoder
from headdyn.plan import make_plan
from headdyn.run import main
from tests.commands import TINY, only
from tests.small_checkpoints import FAMILIES, checkpoint

SMOKE = ("mode=smoke", "analysis=[loss,attention]")


def test_parameters_are_counted_as_the_decoder_has_them():
    for settings in ({"num_kv_heads": 4}, {"num_kv_heads": 2, "d_ff": 172, "vocab_size": 19}):
        sizes = {"vocab_size": 32, "num_layers": 2, "d_model": 64, "num_heads": 4, "head_dim": 16, "d_ff": 100}
        decoder = DecoderConfig(**sizes | settings)
        with torch.device("meta"):
            assert parameters(decoder) == sum(weight.numel() for weight in Decoder(decoder).parameters())


def test_a_training_that_arms_share_is_counted_once_and_times_are_those_of_the_same_sizes():
    rope, drope = make_plan(["-m", *SMOKE, "position_enc=rope,drope"]).jobs
    (larger,) = make_plan(["-m", *SMOKE, "model.num_layers=3"]).jobs
    assert seconds_of(rope, Measured({}, {}), trains=True) == (0, ["training", "loss", "attention"])
    sizes = json.dumps([2, 64, 4, 4, 16, 172, 16, False, 64])
    analyses = {_analysis_sizes(name, rope.resolved): s for name, s in (("loss", 1.5), ("attention", 2.5))}
    known = Measured({sizes: 1000.0}, analyses)
    # 80 steps of 16 sequences of 64 tokens; DroPE's 8 steps of recalibration are as fast.
    assert seconds_of(rope, known, trains=True) == (pytest.approx(80 * 16 * 64 / 1000 + 4), [])
    assert seconds_of(drope, known, trains=False) == (pytest.approx(8 * 16 * 64 / 1000 + 4), [])
    assert seconds_of(larger, known, trains=True)[1] == ["training", "loss", "attention"]
    (longer,) = make_plan(["-m", *SMOKE, "data.sequence_length=128"]).jobs  # as many tokens take longer
    assert seconds_of(longer, known, trains=True) == (0, ["training", "loss", "attention"])
    (other_seed,) = make_plan(["-m", *SMOKE, "seed=7"]).jobs  # as long, though its languages are others
    assert seconds_of(other_seed, known, trains=True) == seconds_of(rope, known, trains=True)


def test_what_is_measured_is_read_from_the_cache_and_from_records(tmp_path):
    entry = tmp_path / "store" / "training" / "0123"
    entry.mkdir(parents=True)
    sizes = {"num_layers": 2, "d_model": 64, "num_heads": 4, "num_kv_heads": 4, "head_dim": 16, "d_ff": 172}
    recipe = {"decoder": sizes, "train": {"batch_size": 16, "compile": False}, "corpus": "89ab"}
    corpus = tmp_path / "store" / "corpus" / "89ab"
    corpus.mkdir(parents=True)
    (corpus / "manifest.json").write_text(json.dumps({"recipe": {"sequence_length": 64}}))
    (entry / "manifest.json").write_text(json.dumps({"recipe": recipe}))
    (entry / "result.json").write_text(json.dumps({"tokens_per_second": 500.0}))
    damaged = tmp_path / "store" / "training" / "4567"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    run = tmp_path / "out" / "outputs" / "run"
    run.mkdir(parents=True)
    facts = {name: {} for name in ("factors", "machine", "versions", "stages")}
    facts |= dict.fromkeys(("name", "started", "python"), "x")
    facts |= {"config": {"analysis": {"loss": {}}, "model": {}, "data": {}}, "seconds": {"loss": 3.0, "total": 9.0}}
    (run / "manifest.json").write_text(json.dumps({"status": "complete", "glossary": {"loss": {}}, **facts}))
    (run / "summary.json").write_text("{}")
    HeadTable.concat([]).write(run / "heads.parquet")
    known = measured(tmp_path / "store", tmp_path / "out")
    assert known.tokens_per_second == {json.dumps([2, 64, 4, 4, 16, 172, 16, False, 64]): 500.0}
    assert list(known.analysis_seconds.values()) == [3.0]
    took = {"run": "../../outputs/run", "analysis": "loss", "seconds": 12.0, "checkpoints": 2}
    series = tmp_path / "out" / "multirun" / "sweep" / "series_seconds.json"
    series.parent.mkdir(parents=True)
    for damaged_content in ("[", "[1]", json.dumps([took | {"run": "gone"}])):  # those of another sweep stop no command
        series.write_text(damaged_content)
        assert measured(tmp_path / "store", tmp_path / "out") == known
    series.write_text(json.dumps([took]))
    assert list(measured(tmp_path / "store", tmp_path / "out").analysis_seconds.values()) == [4.5]  # median of 3 and 6


def test_disk_is_that_of_corpora_snapshots_and_patterns(tmp_path):
    jobs = make_plan(["-m", *SMOKE, "position_enc=rope,drope", "patterns_kept=4"]).jobs
    cache, folders, uncounted = bytes_of(jobs, Store(tmp_path))
    decoder = jobs[0].decoder_config(32)
    assert cache == 3 * (1024 + 256) * 64 + 4 * parameters(decoder) * 6  # one corpus, one training of six snapshots
    assert folders == 2 * 2 * 4 * 2 * 4 * 64**2  # of two runs: float16, four sequences, two layers, four heads
    assert uncounted == []


def test_the_disk_of_a_model_that_comes_trained_is_counted_where_its_sizes_are_here(tmp_path):
    """By hand: repeated tokens of 64 sequences of 64 tokens for both revisions, and the patterns of each run."""
    for step in (1, 2):
        folder = checkpoint(tmp_path / "suite" / f"step{step}", "llama")
    layers, heads = FAMILIES["llama"].num_layers, FAMILIES["llama"].num_heads
    arguments = ["model=huggingface", "data=repeated_tokens", "analysis=[loss]", "patterns_kept=4"]
    suite = make_plan(["-m", *arguments, f"model.name={tmp_path / 'suite'}", "model.revisions='step1,step2'"]).jobs
    store = Store(tmp_path / "store")
    assert bytes_of(suite, store) == (64 * 64 * 3, 2 * 4 * layers * heads * 64**2 * 2, [])
    (absent,) = make_plan([*arguments, "model.name=a/b"]).jobs
    cache, folders, (reason,) = bytes_of([absent], store)
    assert cache == folders == 0 and reason.startswith("corpora and attention patterns of a/b (its size is not known")
    downloaded = _downloaded("a/b", "main", store)
    downloaded.mkdir(parents=True)
    shutil.copy(folder / "config.json", downloaded)
    assert bytes_of([absent], store) == (64 * 64 * 3, 4 * layers * heads * 64**2 * 2, [])
    (prompts,) = make_plan(["model=huggingface", "model.name=a/b", "data=comparisons", "analysis=[circuits]"]).jobs
    assert bytes_of([prompts], store) == (0, 0, ["attention patterns of prompts"])


def test_a_dry_run_starts_nothing_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / "cache"))
    assert main(["-m", "--dry-run", *SMOKE, "seed=0,1"]) == 0
    printed = capsys.readouterr().out
    assert "2 runs in " in printed and "0 of them complete" in printed and "downloads: none" in printed
    assert printed.count("no estimate for training, loss, attention (never measured here at these sizes)\n") == 2
    assert "time: no estimate for attention, loss, training (never measured here at these sizes)\n" in printed
    assert "about" not in printed  # 0 s would be no estimate
    assert not list((tmp_path / "out").rglob("*")) and not list((tmp_path / "cache").rglob("*"))
    assert main(["--dry-run", "train.steps=-1"]) == 2


def test_a_dry_run_of_a_preset_on_a_suite_of_the_hub_answers_without_a_network(tmp_path, monkeypatch, capsys):
    for name, folder in (("HEADDYN_OUT", "out"), ("HEADDYN_CACHE", "cache")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert main(["-m", "experiment=even_odd_emergence", "model=polypythia_160m", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert (
        printed.startswith("11 runs in ") and printed.count(": no estimate for specialization, emergence (never") == 11
    )
    (downloads,) = re.findall(r"^downloads: (.*)$", printed, re.MULTILINE)
    assert downloads.startswith("not counted, for ") and "EleutherAI/pythia-160m-seed1 step143000" in downloads
    assert not list((tmp_path / "out").rglob("*")) and not list((tmp_path / "cache").rglob("*"))


def test_a_dry_run_leaves_a_record_as_it_is_though_its_study_is_another_now(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["headdyn"])
    command = [*TINY, "analysis=[loss]"]
    assert main(command) == 0
    record = only(tmp_path / "out" / "outputs") / "manifest.json"
    before, other = record.read_bytes(), "study=headdyn.studies.even_odd_emergence"
    capsys.readouterr()
    assert main([*command, other, "--dry-run"]) == 0
    assert "1 of them complete" in capsys.readouterr().out and record.read_bytes() == before
    assert main([*command, other]) == 0
    assert json.loads(record.read_text())["config"]["study"] == "headdyn.studies.even_odd_emergence"


def test_checkpoints_that_are_not_here_are_named_with_their_sizes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / "cache"))
    sizes = {f"step{step}": 3 * 2**20 + step for step in (1, 2, 3)}

    def ahead(name, revisions, store, done):
        return Forecast(
            name=name, revisions=tuple(revisions), to_download=sizes, shared={"step2": "its weights are those of step3"}
        )

    monkeypatch.setattr("headdyn.models.checkpoints.forecast.forecast", ahead)
    arguments = ["model=huggingface", "model.name=a/b", "data=comparisons", "analysis=[circuits]"]
    for keeps, disk in (("true", "9.0 MiB"), ("false", "6.0 MiB")):  # of which two lie on the disk at a time
        dry_run(make_plan(["-m", *arguments, "model.revisions='step1,step2,step3'", f"model.keep_downloads={keeps}"]))
        printed = capsys.readouterr().out
        assert (
            "downloads: a/b: 3 of 3 checkpoints to download, 0.0094 GB; a/b: 1 of the 3 will not count (st" in printed
        )
        assert f"disk: {disk} in " in printed


def test_the_revisions_that_a_forecast_lists_are_a_command():
    found = Forecast(name="a/b", revisions=("step1", "step2", "step3"), to_download={"step1": 1}, shared={"step2": "x"})
    arguments = ["model=huggingface", "model.name=a/b", "data=comparisons", "analysis=[circuits]"]
    (listed,) = re.findall(r"model.revisions=.*", found.lines()[1])
    assert [job.model.revision for job in make_plan(plain_arguments(["-m", *arguments, listed])).jobs] == [
        "step1",
        "step3",
    ]


def test_what_one_checkpoint_took_is_what_the_others_of_its_suite_will():
    suite = ("-m", "experiment=weight_cluster_emergence", "model=organism_planted", "model.revisions='step0,step1000'")
    jobs = make_plan([*suite]).jobs
    name = next(name for name, analysis in jobs[0].analysis.items() if "series" not in analysis.needs)
    assert _analysis_sizes(name, jobs[0].resolved) == _analysis_sizes(name, jobs[1].resolved)
    assert jobs[0].resolved["model"] != jobs[1].resolved["model"]


def test_without_a_hub_it_is_asked_once_for_each_model(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / "cache"))
    tries = []

    def absent(name, revision):
        tries.append(revision)
        raise CheckpointError(f"{name} {revision} cannot be had from the hub")

    monkeypatch.setattr("headdyn.models.checkpoints.forecast.describe", absent)
    arguments = ["model=huggingface", "model.name=a/b", "data=comparisons", "analysis=[circuits]"]
    dry_run(make_plan(["-m", *arguments, "model.revisions='step1,step2'"]))
    assert (
        tries == ["step2"]
        and "downloads: not counted, for a/b step2 cannot be had from the hub\n" in capsys.readouterr().out
    )


def test_what_analyses_of_series_and_of_snapshots_took_is_counted(tmp_path):
    """The first by checkpoint; the second twice for every pair of orderings: one arm, two snapshots."""
    steps = ("step0", "step1", "step2")
    jobs = make_plan(
        [
            "-m",
            "experiment=head_emergence",
            "mode=smoke",
            "model=trained",
            "model.revisions=null",
            f"model.revision={','.join(steps)}",
        ]
    ).jobs
    assert {"emergence", "head_roles"} <= set(seconds_of(jobs[0], Measured({}, {}), trains=False)[1])
    sweep, facts = tmp_path / "multirun" / "sweep", {name: {} for name in ("factors", "machine", "versions", "stages")}
    facts |= dict.fromkeys(("name", "started", "python"), "x")
    for job in jobs[:2]:
        (sweep / job.name).mkdir(parents=True)
        record = {"status": "complete", "glossary": {}, "seconds": {}, **facts, "config": job.resolved}
        (sweep / job.name / "manifest.json").write_text(json.dumps(record))
    took = {"run": jobs[0].name, "checkpoints": 2}
    entries = [{**took, "analysis": name, "seconds": s} for name, s in (("emergence", 6.0), ("head_roles", 1.0))]
    (sweep / "series_seconds.json").write_text(json.dumps(entries))
    known = measured(tmp_path / "store", tmp_path)
    seconds, unknown = seconds_of(jobs[2], known, trains=False)
    assert seconds == 3.5 and unknown == ["loss", "attention"]

    plan = ["-m", *SMOKE, "data_ordering=shuffled,topic", "position_enc=rope,drope", "seed=0,1"]
    arms = make_plan(plan).jobs
    known = Measured(
        {}, {_analysis_sizes("loss", arms[0].resolved): 2.0, _analysis_sizes("attention", arms[0].resolved): 0.5}
    )
    # Of two seeds a pair of orderings each, and two of DroPE and RoPE.
    assert seconds_at_matched_loss(arms, known) == (6 * 2 * 2.5, [])
    assert seconds_at_matched_loss(arms[:1], known) == (0, [])
    loss_alone = Measured({}, {_analysis_sizes("loss", arms[0].resolved): 2.0})
    assert seconds_at_matched_loss(arms, loss_alone) == (6 * 2 * 2.0, ["attention"])


def test_what_was_never_measured_at_matched_loss_is_no_upper_limit(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path / "out"))
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / "cache"))
    plan = make_plan(["-m", *SMOKE, "data_ordering=shuffled,topic"])
    known: dict[str, float] = {}
    monkeypatch.setattr("headdyn.estimate.measured", lambda *_: Measured({}, known))
    line = "snapshots at which arms have the same loss: "
    lacking = "no estimate for attention (never measured here at these sizes); the measured rest about 4 s\n"
    for name, says in (("loss", lacking), ("attention", "about 5 s, or less\n")):
        known[_analysis_sizes(name, plan.jobs[0].resolved)] = {"loss": 2.0, "attention": 0.5}[name]
        dry_run(plan)
        assert line + says in capsys.readouterr().out


def test_seconds_are_those_of_the_same_sizes_however_many_draws_and_whichever_text(tmp_path):
    for name in ("one", "other"):
        (tmp_path / f"{name}.txt").write_text("a b c")
    text = ("mode=smoke", "data=local_text", "analysis=[attention]")
    base = (*text, f"data.path={tmp_path / 'one.txt'}")

    def key(*arguments):
        (job,) = make_plan(arguments).jobs
        return _analysis_sizes(next(iter(job.analysis)), job.resolved)

    assert key(*base) == key(*base, "analysis.attention.bootstrap_draws=100", "analysis.attention.sign_flips=19999")
    assert key(*base) == key(*text, f"data.path={tmp_path / 'other.txt'}")
    for other in ("analysis.attention.sequences=24", "data.sequence_length=32", "model.num_layers=3"):
        assert key(*base) != key(*base, other)
    prompts = ("model=huggingface", "model.name=a/b", "analysis=[circuits]", "data=prompt_pairs")
    pairs = [tmp_path / f"{name}.jsonl" for name in ("few", "many")]
    for file in pairs:
        file.write_text('{"clean": "a b", "corrupted": "a c", "right": " d", "wrong": " e"}\n' * 4)
    assert key(*prompts, f"data.path={pairs[0]}") != key(*prompts, f"data.path={pairs[1]}")
