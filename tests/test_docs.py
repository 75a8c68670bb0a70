"""The pages of docs/: what is generated is complete, what is printed there works."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import headdyn
from docs.tools import results, scale
from docs.tools.keys import GROUPS, Key, Section, comments, reference, sections
from headdyn.composition import CONF
from headdyn.models.decoder import Decoder
from headdyn.plan import make_plan

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def keys() -> list[Section]:
    return sections()


def job_keys(*overrides: str) -> Iterator[str]:
    """Every key that `headdyn run --cfg job` prints, groups that are empty included."""

    def below(value: Any, prefix: str) -> Iterator[str]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from below(inner, f"{prefix}.{key}".lstrip("."))
        else:
            yield prefix

    with initialize_config_dir(str(CONF), version_base="1.3", job_name="headdyn"):
        yield from below(OmegaConf.to_container(compose("config", overrides=list(overrides))), "")


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data=local_text", "model=trained", "position_enc=drope", "data_ordering=topic", "tracking=none"),
        ("model=organism_null", "data=comparisons", "analysis=[all_prompts]", "protocol=original"),
        ("data=wikipedia", "analysis=[all]"),
        ("data=conversations", "model=gpt2", "attention=gqa", "position_enc=nope", "mode=v2"),
        *((f"experiment={file.stem}",) for file in sorted((CONF / "experiment").glob("*.yaml"))),
    ],
)
def test_the_reference_has_every_key_of_a_job(keys: list[Section], overrides: tuple[str, ...]) -> None:
    known = {key.name for section in keys for key in section.keys}
    by_metric = {key.name for section in keys for key in section.keys if key.default == "{}"}  # its keys are metrics
    printed = {key for key in job_keys(*overrides) if key.rpartition(".")[0] not in by_metric}
    assert len(printed) > 60 and printed <= known


def test_it_has_every_option_and_every_key_says_what_it_is(keys: list[Section]) -> None:
    options = {name for section in keys for name in section.options}
    for group in GROUPS:
        assert {file.stem for file in (CONF / group).glob("*.yaml")} <= options
    for section in keys:
        for key in section.keys:
            assert key.meaning and key.type, key
            if key.type.split(" or ")[0] in ("number", "whole number"):  # its range depends on another key
                assert re.search(r"\d to |\w or more|more than", key.meaning), key


def test_types_ranges_and_defaults_are_those_that_commands_are_checked_by(keys: list[Section]) -> None:
    by_name = {(section.title, key.name): key for section in keys for key in section.keys}
    for key in (
        Key("device", "one of auto, cpu, cuda", "auto", ""),
        Key("train.adamw_betas", "list of 2: number ≥ 0, < 1", "[0.9, 0.95]", ""),
        Key("train.steps", "whole number ≥ 1, ≤ 2147483647", "${mode.train.steps}", ""),
        Key("mode.train.steps", "whole number ≥ 1, ≤ 2147483647", "800", ""),  # as the key that it sets
        Key("data.path", "text", "", ""),
        Key("model.revision", "text or null", "null", ""),
        Key("analysis.loss.bootstrap_draws", "whole number ≥ 100", "2000", ""),
        Key("hydra.launcher.n_jobs", "whole number, checked by the launcher", "2", ""),
        Key("protocol.companions.permutation.original_permutation.tokens", "whole number ≥ 1, ≤ 2147483647", "20", ""),
    ):
        found = [k for (_, name), k in by_name.items() if name == key.name]
        assert key in [dataclasses.replace(k, meaning="") for k in found], found


def test_a_comment_is_read_behind_its_key_or_above_it(tmp_path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text(
        "# The head of the file.\nfirst: 1  # behind\n# above,\n# on two lines\nsecond:\n  inner: a   # of it\n"
    )
    assert comments(file) == {"first": "behind", "second": "above, on two lines", "second.inner": "of it"}


def test_the_page_is_a_table_in_markdown() -> None:
    lines = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(lines) > 300
    assert all(line.replace("\\|", "").count("|") == 5 for line in lines)


def test_a_suite_has_the_weights_that_the_hub_counts() -> None:
    """The numbers of parameters on the hub's pages of Pythia's models."""
    counts = {"70m": 70_426_624, "160m": 162_322_944, "410m": 405_334_016, "1b": 1_011_781_632, "12b": 11_846_072_320}
    assert {name: scale.Suite.of(name).weights for name in counts} == counts


def test_a_design_is_counted_from_its_jobs() -> None:
    """Two trainings (shuffled and topic) of 80 steps of 16 × 64 tokens, each recalibrated for 8 steps, two seeds."""
    overrides = ("mode=smoke", "data_ordering=shuffled,topic", "position_enc=rope,drope")
    (job, *_) = headdyn.compose("mode=smoke")
    weights = sum(parameter.numel() for parameter in Decoder(job.decoder_config(32)).parameters())
    design = scale.design(*overrides, seeds=2)
    assert (design.runs, design.trainings) == (8, 4)
    assert design.tokens == 2 * 2 * (80 + 8) * 16 * 64
    assert design.most_tokens == 2 * 2 * (80 + 80) * 16 * 64  # further rounds end with train.steps
    original = scale.design(*overrides, "protocol=original", seeds=1)  # one round
    assert original.most_tokens == original.tokens == 2 * (80 + 1) * 16 * 64
    assert design.snapshot_bytes == 4 * weights * 2 * 2 * (6 + 1)
    assert design.corpus_bytes == 3 * (1024 + 256) * 64 * 2


def test_the_commands_of_the_page_compose() -> None:
    """A page that is written by a script, so test_readme.py does not meet its commands."""
    matrix = ["-m", "experiment=matrix", "mode=v2", "seed=range(2)", "train.snapshots=8"]
    assert "'seed=range(32)'" in scale.page() and "`train.snapshots=8`" in scale.page()
    assert len(make_plan(matrix).jobs) == 8 * 2
    suite = ["-m", "model=pythia_70m", "model.revisions=pythia_log", "data=comparisons", "analysis=[patching]"]
    (first, *_) = make_plan([*suite, "model.keep_downloads=false", "model.dtype=bfloat16"]).jobs
    assert (first.model.keep_downloads, first.model.dtype) == (False, "bfloat16")


def test_costs_are_counts_over_measured_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "SPEED", tmp_path)
    v2 = scale.design("experiment=matrix", "mode=v2", seeds=32)
    run1 = scale.design("experiment=matrix", "mode=run1", seeds=32)
    measured = {"run1": (run1, 27_403_776), "v2": (v2, 88_101_120)}  # parameters of the decoders that were timed
    speed = {mode: counts.tokens * counts.weights / weights for mode, (counts, weights) in measured.items()}
    hours = {"run1": 400, "v2": 200}  # on one core
    steps = {mode: {"tokens_per_second": {"headdyn": speed[mode] / 3600 / hours[mode]}} for mode in hours}
    (tmp_path / "training_step.json").write_text(json.dumps(steps | {"laptop": steps["v2"]}))

    def row(name: str) -> list[str]:
        (line,) = [line for line in scale.page().splitlines() if line.startswith(f"| {name} |")]
        return line.strip("| ").split(" | ")

    monkeypatch.setattr(scale, "GPU_BFLOAT16", v2.operations / 720_000)  # 200 hours on one GPU
    assert row("`v2`")[3:7] == ["≈ 8 days", "≈ 25 h", "≈ 3 h", "≈ 4 days"] and row("`run1`")[6] == "≈ 8 days"
    assert row("`laptop`")[3:6] == ["–"] * 3 and "no GPU was measured" in scale.page()
    operations = 2 * scale.Suite.of("160m").blocks * 17 * 144 * 96 * 154 * 9  # a pass a head and prompt
    monkeypatch.setattr(scale, "GPU_FLOAT32", operations / 36_000)
    assert row("160m")[-3:] == ["≈ 10 h", "≈ 75 min", "≈ 9 min"]

    on_gpu = {
        mode: {"tokens_per_second": v2.tokens / 36000, "peak_memory_gib": 9.5} for mode in ("laptop", "run1", "v2")
    }
    patching = {"batch 8": {"headdyn_seconds": 8.0}}
    (tmp_path / "gpu.json").write_text(json.dumps({"steps": on_gpu, "patching": patching}))
    runs = {"one": (16, 2, 1000.0), "two": (8, 1, 3000.0), "not whole": (7, 1, 9.0)}
    whole = {name: {"mode": "laptop", "runs": r, "seeds": n, "per_seed": s} for name, (r, n, s) in runs.items()}
    (tmp_path / "run_seconds.json").write_text(json.dumps(whole))
    assert row("`v2`")[3:6] == ["10 h", "75 min", "9 min"] and row("`v2`")[-1] == "9.5 GiB"
    assert row("`laptop`")[6] == "9 h"  # 32 seeds × 2000 s over two workers
    assert row("160m")[-3:] == ["37 h", "5 h", "35 min"]  # 96 prompts × 1 s × 154 × 9
    assert "no GPU was measured" not in scale.page()


def test_the_costs_on_record_are_those_of_todays_configuration_and_speeds() -> None:
    for name, cost in scale.costs().items():
        assert json.loads((scale.EXPERIMENTS / name / "cost.json").read_text(encoding="utf-8")) == pytest.approx(cost)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_opens_from_disk(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    variables = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    pages = {page.stem: page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html")}
    pages |= {str(page): page.read_text(encoding="utf-8") for page in tmp_path.glob("experiments/*/*.html")}
    assert {"index", "first_sweep", "extend", "keys", "scale", "api", "science", "house"} <= set(pages)
    for text in pages.values():
        assert "```" not in text and "<td>- " not in text  # every fence is read as one, and no list as a row of a table
        assert 'src="https://' not in text and 'rel="stylesheet" href="https://' not in text
    pictures = re.findall(r'<img [^>]*src="([^"]+)"', pages["index"])
    assert len(pictures) == 4 and all((tmp_path / picture).is_file() for picture in pictures)
    assert "<p>!" not in pages["index"]
    assert "mode.train.steps" in pages["keys"] and "pattern_chart" in pages["api"]
    assert 'href="experiments/matrix/index.html"' in pages["results"] and 'href="results.html"' in pages["index"]
    recorded = (tmp_path / "experiments" / "matrix" / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href)="((?!http|#|\.\./\.\./(?:$|"))[^"#]+\.(?:svg|json|csv|html))"', recorded)
    assert any(link.endswith(".svg") for link in links)
    assert all((tmp_path / "experiments" / "matrix" / link).exists() for link in links), links


def test_the_list_of_what_was_found_has_every_page_once_with_its_title_and_its_answer() -> None:
    listed = re.findall(
        r"^- \[(.+)\]\((.+)\)$", (results.FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    pages = {path.relative_to(results.FOLDER).as_posix(): path for path in results.FOLDER.glob("*/README.md")}
    assert sorted(path for _, path in listed) == sorted(pages)
    overview = results.overview()
    for title, path in listed:
        first, _, answer, *_ = pages[path].read_text(encoding="utf-8").splitlines()
        assert first == f"# {title}" and answer.startswith("**Answer.** "), path
        assert f"### [{title}](experiments/{path})\n\n{answer.removeprefix('**Answer.** ')}" in overview


def test_a_page_without_an_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "README.md").write_text("# Why?\n\nBecause.\n")
    (tmp_path / "README.md").write_text("- [Why?](a/README.md)\n")
    with pytest.raises(ValueError, match=r"experiments/a/README.md has no paragraph that begins with \*\*Answer"):
        results.overview()
    (tmp_path / "a" / "README.md").write_text("# Why?\n\n**Answer.** See [there](../b/README.md).\n\n")
    with pytest.raises(ValueError, match="has a link in its answer"):
        results.overview()
