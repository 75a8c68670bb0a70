"""What the README and docs/ say works, works: commands, links, Python examples, numbers."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown.extensions.toc import slugify

from headdyn.composition import informational, plain_arguments
from headdyn.models.frozen_pairs import tensor_norms
from headdyn.plan import make_plan
from tests import forked
from tests.commands import TINY, environment
from tests.data.text.small_text import jsonl, planted
from tests.printed import Block, blocks, printed_files, type_in
from tests.studies.landmarks.test_presets import QUICK
from tests.test_series_pipeline import EMERGENCE, ORGANISM, PROMPTS, REVISIONS, SPECIALIZATION

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STUDIES = sorted(ROOT.glob("experiments/*/README.md"))
TUTORIALS = ("first_sweep", "extend", "compare")  # worked through from an empty folder each


def commands(source: Path) -> list[list[str]]:
    """The arguments of the runs that a text prints and that no test does: of a study, or in blocks that need something."""
    if source in STUDIES:
        indented = re.findall(
            r"^    (?:python -m headdyn\.run|headdyn run)([^\n#]*)", source.read_text(encoding="utf-8"), re.MULTILINE
        )
        return [line.split() for line in indented]
    printed = [command for block in blocks(source) if block.needs for command in block.commands]
    return [command[1:] for command in printed if command[0] == "run"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the cache of all pages, and the folder in which those are worked through that are no tutorials."""
    return tmp_path_factory.mktemp("pages")


@pytest.fixture
def folder(
    request: pytest.FixtureRequest, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A folder to work in, which modules may be imported from: a tutorial's is empty."""
    page = getattr(request.node, "callspec", None) and request.node.callspec.params.get("page")
    work = tmp_path if page in TUTORIALS else root / "work"
    work.mkdir(exist_ok=True)
    for name, value in environment(root).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEADDYN_OUT", ".")
    monkeypatch.syspath_prepend(str(work))
    monkeypatch.chdir(work)
    yield work
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


WITH_COMMANDS = [source for source in (*PAGES, *STUDIES) if commands(source)]


@pytest.mark.parametrize("source", WITH_COMMANDS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_commands_that_no_test_runs_compose(source: Path, folder: Path) -> None:
    Path("my_documents.jsonl").write_text('{"text": "one"}\n')
    pairs = [{"clean": f"A {i}", "corrupted": f"B {i}", "right": "a", "wrong": "b"} for i in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    for arguments in commands(source):
        theirs = r"^data\.path=(?!pairs).*"  # of studies whose text is not committed
        arguments = [re.sub(theirs, "data.path=my_documents.jsonl", a) for a in plain_arguments(arguments)]
        arguments = [re.sub(r"^seed=0,.*", "seed=0", a) for a in arguments]  # more seeds are no other commands
        lacking = {"cluster=ray": "ray", "cluster=slurm": "submitit"}
        if any(name in arguments and not importlib.util.find_spec(package) for name, package in lacking.items()):
            arguments = [a for a in arguments if not a.lstrip("+").startswith(("cluster=", "hydra.launcher."))]
        assert informational(arguments) or make_plan(arguments).jobs


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_every_command_is_run_or_says_why_not(page: Path) -> None:
    """Of a block that is run every line is. The others need what no test machine has, or hold no command of headdyn."""
    text, found = page.read_text(encoding="utf-8"), blocks(page)
    assert len(re.findall("^ *```", text, re.MULTILINE)) == 2 * len(found)
    assert not re.findall(r"^    (?:headdyn|python|make|pip) .*", text, re.MULTILINE)  # all in fences
    for block in found:
        lines = [line for line in block.text.splitlines() if line.strip()]
        if block.title or (block.run and block.language == "python"):
            continue
        assert block.language == "bash"
        if block.needs:
            assert block.needs in ("hub", "a GPU", "SLURM", "Ray")
        else:
            assert len(block.commands) == (len(lines) if block.run else 0) and (block.run or block.reason)


def test_what_make_is_to_do_it_can() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [*PAGES, *STUDIES, ROOT / "CONTRIBUTING.md"]
    named = {
        name
        for page in pages
        for name in re.findall(r"\bmake ([a-z-]+)(?= *[`#]|$)", page.read_text("utf-8"), re.MULTILINE)
    }
    assert {"run", "test", "check", "docs", "bench"} <= named <= targets


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 160
    for source in (*PAGES, *STUDIES, *ROOT.glob("*.md")):
        for link, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", source.read_text(encoding="utf-8")):
            target = source.parent / link if link else source
            assert target.exists(), (source, link)
            assert not anchor or anchor in anchors(target), (source, link, anchor)


def anchors(page: Path) -> set[str]:
    """What can be linked to within a page: its headings, as MkDocs and GitHub name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {slugify(heading, "-") for heading in headings}


def test_every_study_is_introduced_by_its_title() -> None:
    science = (ROOT / "docs" / "science.md").read_text(encoding="utf-8")
    table = README.partition("| study | question |")[2].partition("\n\n")[0]
    titles = re.findall(r"^\| ([A-Z][^|]*) \| [^|]*\? \|", table, re.MULTILINE)
    folders = {file.parent.name for file in (ROOT / "headdyn" / "studies").glob("*/__init__.py")}
    assert len(titles) == len(folders) - 1 == 5  # landmarks are results of others, which the README has apart
    for title in titles:
        assert re.search(rf"\*\*{title}\.\*\* [^*]*\?", science), title


# What makes a command small enough for a test, by what it names; the first that applies.
TEXT = ("data.num_topics=3", "data.sequence_length=32", "data.vocab_size=300", "data.val_share=0.3")
SMALLER = {
    "model=organism_planted": (*ORGANISM, *PROMPTS),
    "experiment=statistical_induction": (*QUICK, "analysis.in_context_predictors.bootstrap_draws=100"),
    "data=local_text": (*TINY, *TEXT),
    "": TINY,
}
FEW = "analysis=[loss,attention]"  # of sweeps for which the page names none
ALSO = {
    "experiment=even_odd_emergence": (*SPECIALIZATION, *EMERGENCE, f"model.revisions={','.join(REVISIONS)}"),
    "experiment=head_emergence": EMERGENCE,
}


def smaller(arguments: list[str]) -> list[str]:
    """The arguments of a run at the size of tests. Several seeds are one, where they are more than two."""
    if arguments[0] != "run" or "--help" in arguments or "--repeat" in arguments:
        return arguments
    size = next(overrides for name, overrides in SMALLER.items() if not name or name in arguments)
    also = [override for name, overrides in ALSO.items() if name in arguments for override in overrides]
    presets = {argument for argument in arguments if argument.startswith("experiment=")}
    few = [FEW] if "-m" in arguments and presets <= {"experiment=matrix"} else []
    keys = ("data.", "mode=", "analysis=")
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith(keys)}
    added = [override for override in (*size, *also, *few) if override.partition("=")[0] not in given]
    return [*(re.sub(r"^seed=0,1,2$", "seed=0", argument) for argument in arguments), *added]


def work_through(page: Path, folder: Path) -> dict[str, object]:
    """Type a page's files in, do its commands and its Python code in their order; what the code names at the end."""
    type_in(page, folder)
    jsonl(folder / "my_documents.jsonl", *planted(150, 3, words_each=60))
    places: dict[str, Path] = {}
    names: dict[str, object] = {}
    for block in blocks(page):
        if not block.run or block.title or block.needs:
            continue
        for command in block.commands:
            if command[0] == "-m":
                *arguments, _, file = command
                (folder / file).write_text(in_a_process(arguments, folder).stdout)
                assert (folder / file).stat().st_size
                continue
            before = set(folder.glob("multirun/*"))
            runs = [path.parent for path in sorted(folder.glob("outputs/*/report.html"))]
            here = {"outputs/RUN": runs[0] if runs else None} | places
            done = in_a_process(["-m", "headdyn", *(str(here.get(a, a)) for a in smaller(command))], folder)
            assert done.returncode == block.exit_status, done.stdout + done.stderr
            assert "Warning" not in done.stderr, done.stderr
            for new in sorted(set(folder.glob("multirun/*")) - before):
                places["multirun/SWEEP2" if "multirun/SWEEP" in places else "multirun/SWEEP"] = new
        if block.language == "python":
            size = TINY if "analysis=" in block.text else (*TINY, FEW)
            code = block.text.replace('"mode=smoke"', ", ".join(map(repr, size)))
            exec(compile(ast.parse(code), page.name, "exec"), names)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README", "first_sweep", "extend", "compare", "commands", "machines"])
def test_a_page_works_as_it_is_printed(page: str, folder: Path) -> None:
    """Only the size is another: that of tests."""
    work_through(next(path for path in PAGES if path.stem == page), folder)


@pytest.mark.slow
def test_the_page_on_checkpoints_works_and_its_numbers_are_right(folder: Path) -> None:
    torch.manual_seed(0)
    names: Any = work_through(ROOT / "docs" / "checkpoints.md", folder)
    assert names["clean"]["pattern", 1].shape == (4, 4, 32, 32)
    difference_BHT = (names["changed"].logits - names["clean"].logits).abs()
    assert difference_BHT.max() > 0
    torch.testing.assert_close(tensor_norms(names["frozen"]), names["T_IDJD"].square().sum((1, 3)).sqrt())


NEEDING = [(p.stem, block.needs, c) for p in PAGES for block in blocks(p) if block.needs for c in block.commands]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "needs", "command"), NEEDING, ids=lambda value: " ".join(value)[:60])
def test_what_needs_a_hub_or_a_gpu_works_where_there_is_one(
    page: str, needs: str, command: list[str], folder: Path
) -> None:
    """With HEADDYN_TEST_HUB=1, on a machine that reaches the hub; with a GPU."""
    if needs == "hub" and not os.environ.get("HEADDYN_TEST_HUB"):
        pytest.skip("set HEADDYN_TEST_HUB=1 where the hub is reachable")
    if needs in ("SLURM", "Ray") and not os.environ.get("HEADDYN_TEST_CLUSTER"):
        pytest.skip("set HEADDYN_TEST_CLUSTER=1 on a cluster; `make test-clusters` tries the launchers on one machine")
    if needs == "a GPU" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    Path("my_documents.jsonl").write_text("".join(f'{{"text": "document {i} of some words"}}\n' for i in range(400)))
    Path("pairs.jsonl").write_text(in_a_process(["-m", "headdyn.data.pair_recipes", "ioi", "64"], folder).stdout)
    done = in_a_process(["-m", "headdyn", *command], folder, HF_HUB_OFFLINE="0", timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr


def in_a_process(
    arguments: list[str], folder: Path, timeout: float = 600, **variables: str
) -> subprocess.CompletedProcess[str]:
    return forked.run([sys.executable, *arguments], cwd=folder, env={**os.environ, **variables}, timeout=timeout)


def test_blocks_are_read_as_they_are_printed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        'Text.\n\n```python title="a/b.py"\nx = 1\n```\n\n<!-- not run by tests: why -->\n```bash\nheaddyn run a=1  # so\nls\n```\n'
        "\n<!-- needs: hub -->\n```bash\nheaddyn doctor\n```\n\n<!-- ends with status 2 -->\n```bash\nheaddyn run b\n```\n"
    )
    assert blocks(page) == [
        Block("python", ' title="a/b.py"', "x = 1\n"),
        Block("bash", "", "headdyn run a=1  # so\nls\n", reason="why"),
        Block("bash", "", "headdyn doctor\n", needs="hub"),
        Block("bash", "", "headdyn run b\n", exit_status=2),
    ]
    assert printed_files(page) == {"a/b.py": "x = 1\n"}
    assert [block.commands for block in blocks(page)] == [[], [["run", "a=1"]], [["doctor"]], [["run", "b"]]]


def test_the_organism_study_shows_its_own_table() -> None:
    folder = ROOT / "experiments" / "model_organisms"
    assert (folder / "table.md").read_text(encoding="utf-8").strip() in (folder / "README.md").read_text(
        encoding="utf-8"
    )
