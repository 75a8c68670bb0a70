"""What is asked and printed before the jobs of a plan begin."""

from headdyn import launch
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
