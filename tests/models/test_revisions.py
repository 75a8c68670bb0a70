"""Names of training steps: what there is, what there is not, and that asking costs nothing."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headdyn.models.revisions import (
    FINAL,
    LISTS,
    PYTHIA,
    check_integrity,
    in_order,
    is_pythia,
    parse,
    read_name,
    require_pythia,
    step_of,
    steps_of,
)


def test_pythia_has_154_revisions() -> None:
    assert len(PYTHIA) == len(set(PYTHIA)) == 154
    assert PYTHIA[:4] == ("step0", "step1", "step2", "step4") and PYTHIA[10:13] == ("step512", "step1000", "step2000")
    assert PYTHIA[-1] == FINAL == "step143000"
    assert all(set(revisions) <= set(PYTHIA) for revisions in LISTS.values())


def test_the_seeds_lists() -> None:
    """The steps in the timeline of seed 002 and in the silhouettes of seed 000's study, typed from their tables."""
    eleven = [1000, 2000, 4000, 8000, 16000, 32000, 64000, 80000, 100000, 120000, 143000]
    eight = [1000, 5000, 10000, 20000, 40000, 80000, 120000, 143000]
    assert [step_of(revision) for revision in parse("original_11")] == eleven
    assert [step_of(revision) for revision in parse("original_8")] == eight
    log = [step_of(revision) for revision in parse("pythia_log")]
    assert len(log) == 20 and log[0] == 0 and log[-1] == 143000
    assert all(b <= 2 * a for a, b in itertools.pairwise(log[1:]))


def test_a_series_stands_in_the_order_of_training() -> None:
    assert parse("step143000, step512,step1000") == ("step512", "step1000", "step143000")
    assert parse(["step2", "step1", "step2"]) == ("step1", "step2")
    assert len(parse("original_11,original_8")) == len(set(LISTS["original_11"]) | set(LISTS["original_8"]))
    assert in_order(["main", "step20", "v1", "step3"]) == ("step3", "step20", "main", "v1")
    assert parse("pythia_all") == PYTHIA


@pytest.mark.parametrize(
    ("revision", "told"),
    [
        ("step256000", "does not exist: Pythia's training ends at step 143000; the nearest is step143000"),
        ("step512000", "the nearest is step143000"),
        ("step1000000", "the nearest is step143000"),
        ("step130500", "does not exist; the nearest of Pythia's are step130000 and step131000"),
        ("step3", "the nearest of Pythia's are step2 and step4"),
        ("step700", "the nearest of Pythia's are step512 and step1000"),
        ("1000", "the nearest of Pythia's are step1000$"),
        ("143k", "the nearest of Pythia's are step143000$"),
        ("stepp1000", "is none of Pythia's; did you mean step1000"),
        ("original11", "did you mean original_11"),
        ("", "names no revision"),
        ("step1000,,step2000", "names no revision"),
        ("step1000,main", r"holds main, .* the last one is step143000 \(model.allow_main=true"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest(revision: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        parse(revision)
    assert "\n" not in str(caught.value)


def test_every_other_step_up_to_a_million_is_refused() -> None:
    for step in (*range(0, 3000, 7), *range(3000, 1_000_000, 997)):
        if f"step{step}" in PYTHIA:
            assert require_pythia(f"step{step}") == f"step{step}"
        else:
            with pytest.raises(ValueError, match="the nearest"):
                require_pythia(f"step{step}")


def test_main_and_other_suites() -> None:
    assert parse("step1000,main", main=True) == ("step1000", "main")
    assert parse("step7,checkpoint-3", pythia=False) == ("checkpoint-3", "step7")
    with pytest.raises(ValueError, match=r"model.revisions=a-branch states no training step"):
        parse("step7,a-branch", pythia=False)
    with pytest.raises(ValueError, match=r"holds the training seeds 1, 2, but a series comes from one training"):
        parse("step7-seed1,step7-seed2", pythia=False)
    with pytest.raises(ValueError, match=r"holds the training ingredients 1, 3, but a series comes from one training"):
        parse("stage1-step9-tokens1B,stage2-ingredient1-step2-tokens1B,stage2-ingredient3-step2-tokens1B", pythia=False)
    with pytest.raises(ValueError, match=r"holds main.*name the step"):
        parse("main", pythia=False)
    with pytest.raises(ValueError, match="lists Pythia's steps"):
        parse("original_11", pythia=False)
    names = ("EleutherAI/pythia-160m", "EleutherAI/pythia-160m-seed3", "/models/pythia-2.8b-deduped/", "pythia-70m")
    assert all(map(is_pythia, names))
    assert not any(map(is_pythia, ("EleutherAI/pythia-160m-v0", "gpt2", "someone/my-pythia-160m")))


@pytest.mark.parametrize(
    ("revision", "step"),
    [
        ("step0", 0),
        ("step143000", 143000),
        ("stage1-step1000-tokens5B", 1000),
        ("step_20", 20),
        ("step-240000", 240_000),
        ("checkpoint-100", 100),
        ("ckpt_000", 0),
        ("global_step12", 12),
        ("stage2-ingredient1-step2000-tokens9B", 2000),
        ("step5k", 5000),
        ("step1.5", None),
        ("main", None),
        ("misstep5", None),
        ("2f1c9", None),
    ],
)
def test_the_step_a_name_states(revision: str, step: int | None) -> None:
    assert step_of(revision) == step


def test_stages_follow_one_another_and_their_steps_are_counted_on() -> None:
    names = [
        "stage2-step1000-tokens4B",
        "stage1-step10000-tokens42B",
        "main",
        "stage1-step2000",
        "stage2-step0-tokens0B",
    ]
    ordered = ("stage1-step2000", "stage1-step10000-tokens42B", "stage2-step0-tokens0B", "stage2-step1000-tokens4B")
    assert in_order(names) == (*ordered, "main")
    assert steps_of(names) == dict(zip((*ordered, "main"), (2000, 10_000, 10_000, 11_000, None), strict=True))
    assert steps_of(["step3", "step1"]) == {"step1": 1, "step3": 3}
    assert read_name("stage2-step1000-tokens4B_seed3") == {"stage": 2, "step": 1000, "tokens": 4 * 10**9, "seed": 3}


def test_the_series_of_a_folder_is_all_it_has(tmp_path: Path) -> None:
    for name in ("step-20", "step-3", "main"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    (tmp_path / "ckpt_007.gguf").touch()
    assert parse("series", pythia=False, folder=tmp_path) == ("step-3", "ckpt_007", "step-20")
    assert parse("series") == LISTS["pythia_log"]
    with pytest.raises(ValueError, match=r"model.revisions=series needs a local folder"):
        parse("series", pythia=False)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, json, headdyn.models.revisions; print(json.dumps(sorted(sys.modules)))"
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout
    assert not {"torch", "numpy", "transformers", "huggingface_hub"} & set(json.loads(out))


def test_every_model_that_has_a_preset_is_in_the_table_of_suites() -> None:
    root = Path(__file__).parents[2]
    table = (root / "docs" / "checkpoints.md").read_text(encoding="utf-8").split("| `model=` |")[1].split("\n\n")[0]
    starts: list[str] = []
    for name in re.findall(r"`(\w[\w.]*)`", "\n".join(row.split("|")[1] for row in table.splitlines()[2:])):
        starts.append(f"{starts[-1].rpartition('_')[0]}{name}" if name.startswith("_") else name)
    presets = {path.stem for path in (root / "conf" / "model").glob("*.yaml")} - {"mini_qwen3"}  # trained by the run
    assert set(starts) == presets


# -- integrity --------------------------------------------------------------------------------------------------------


def test_revisions_that_differ_all_count() -> None:
    assert check_integrity({"step0": "a", "step1": "b", "step143000": "c"}, "step143000") == ([], {})


def test_the_end_of_training_keeps_its_name_and_its_copies_lose_theirs() -> None:
    hashes = {"step0": "a", "step1000": "z", "step2000": "b", "step143000": "z"}
    duplicates, excluded = check_integrity(hashes, "step143000")
    assert duplicates == [["step1000", "step143000"]]
    assert excluded == {"step1000": "its weights are those of step143000, the end of training"}


def test_of_two_others_nothing_tells_which_is_right() -> None:
    _, excluded = check_integrity({"step0": "a", "step1": "a", "step2": "a", "step4": "b"}, "step143000")
    assert list(excluded) == ["step0", "step1", "step2"]
    assert excluded["step1"] == "its weights are those of step0, step2, so one of the names is wrong"


def test_without_a_trusted_end_no_copy_counts() -> None:
    hashes = {"step8": "z", "step16": "z", "step1": "a", "step2": "a"}
    assert list(check_integrity(hashes)[1]) == ["step8", "step16", "step1", "step2"]
    assert list(check_integrity(hashes, "step16")[1]) == ["step8", "step1", "step2"]
