"""How the jobs of a sweep are called: by what varies, and by their group where nothing else says it."""

from pathlib import Path

from headdyn.core.run_folder import RunRecord
from headdyn.sweep.jobs import Job, build_jobs, of_prompts
from tests.report.folders import run


def labels(sweep: Path, *settings: dict) -> list[str]:
    entries = [run(sweep, **each) for each in settings]
    return [job.label for job in build_jobs([(RunRecord.read(sweep / e["name"]), e["factors"]) for e in entries])]


def test_jobs_are_of_prompts_if_none_is_on_a_corpus():
    on_corpus, on_prompts = (Job(1, RunRecord(Path(), facts, {}), {}, "", "") for facts in ({"corpus": {}}, {}))
    assert of_prompts([on_prompts, on_prompts])
    assert not of_prompts([on_prompts, on_corpus]) and not of_prompts([on_corpus]) and not of_prompts([])


def test_a_group_is_named_in_front_of_the_label_that_does_not_hold_it(tmp_path):
    arms = [{"ordering": "shuffled"}, {"ordering": "topic"}]
    assert labels(tmp_path / "one", *arms) == ["shuffled", "topic"]
    more = [arm | {"seed": 1, "settings": {"train": {"steps": 400}}} for arm in arms]
    assert labels(tmp_path / "steps", *arms, *more) == [
        f"train.steps={steps}: {ordering} s{seed}"
        for seed, steps in ((0, 200), (1, 400))
        for ordering in ("shuffled", "topic")
    ]
    modes = [arm | {"mode": "smoke"} for arm in arms]  # which the label holds already
    assert labels(tmp_path / "modes", *arms, *modes) == [
        f"{ordering} {mode}" for mode in ("laptop", "smoke") for ordering in ("shuffled", "topic")
    ]
