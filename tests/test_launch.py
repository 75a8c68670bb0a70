"""What is asked and printed before the jobs of a plan begin."""

import pytest

from headdyn import launch
from headdyn.core.settings import ConfigError
from headdyn.estimate import require_memory
from headdyn.models.decoder import Decoder
from headdyn.plan import make_plan


def test_checkpoints_of_finished_runs_are_not_among_the_downloads(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("headdyn.models.checkpoints.files.require_reachable", lambda *_: None)
    forecasts = []

    def forecast(name, revisions, store, done):
        forecasts.append((revisions, set(done)))
        return type("Nothing", (), {"lines": list})()

    monkeypatch.setattr("headdyn.models.checkpoints.forecast.forecast", forecast)
    series = ["-m", "mode=smoke", "model=huggingface", "model.name=a/b", "model.revisions='step0,step1,step2'"]
    few = [*series, "data=repeated_tokens", "data.seed=0,1", "analysis=[loss]"]
    plan = make_plan(few)
    every = ["step0", "step1", "step2"] * 2

    def complete(folder):
        """All runs of step0, and one of the two of step1."""
        (job,) = (job for job in plan.jobs if plan.folder_of(job).name == folder.name)
        revision, other = job.model.revision, job.data.seed
        return {"status": "complete" if revision == "step0" or (revision, other) == ("step1", 0) else "absent"}

    monkeypatch.setattr(launch, "read_manifest", complete)
    launch._require_possible(plan)
    launch._require_possible(make_plan([*few, "force=true"]))
    (revisions, done), (_, forced) = forecasts
    assert sorted(revisions) == sorted(every) and done == {"step0"} and forced == set()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["model.num_layers=100000000"],
            r"its weights alone take \d+\.\d GiB, and this machine has .* model.num_layers",
        ),
        (["data.train_sequences=2000000000"], "its corpus alone take .* lower the number of sequences"),
        (
            ["train.batch_size=100000000", "data.train_sequences=100000000"],
            "its batches alone take .* lower train.batch_size",
        ),
    ],
)
def test_what_no_memory_holds_is_refused_before_anything_starts(tmp_path, monkeypatch, overrides, words):
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))
    monkeypatch.setenv("HEADDYN_CACHE", str(tmp_path / "cache"))
    arguments = ["mode=smoke", "tracking=none"]
    launch._require_possible(make_plan(arguments))
    with pytest.raises(ConfigError, match=words):
        launch._require_possible(make_plan([*arguments, *overrides]))
    assert not (tmp_path / "cache" / "training").exists()


def test_a_training_may_take_the_last_byte_of_memory_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADDYN_OUT", str(tmp_path))
    (job,) = make_plan(["mode=smoke", "data.vocab_size=32"]).jobs
    decoder = Decoder(job.decoder_config(32))
    weights = 4 * sum(tensor.numel() for tensor in decoder.parameters())  # the most of the three
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": weights}.get)
    require_memory([job])
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": weights - 1}.get)
    with pytest.raises(ConfigError, match="weights alone"):
        require_memory([job])
