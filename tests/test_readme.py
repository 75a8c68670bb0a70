"""What the README and docs/ say works, works: commands, links, Python examples, numbers."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from headdyn.models.frozen_pairs import tensor_norms
from headdyn.plan import informational, make_plan, plain_arguments
from tests import forked
from tests.commands import TINY, environment
from tests.printed import Block, blocks, printed_files

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STUDIES = sorted(ROOT.glob("experiments/*/README.md"))
TUTORIALS = ("first_sweep", "extend", "compare")  # pages whose commands build on one another, and are run


def commands(source: Path) -> list[list[str]]:
    """The arguments of every run that a text prints, as `headdyn run …` or as `python -m headdyn.run …`."""
    indented = re.findall(r"^    python -m headdyn\.run([^\n#]*)", source.read_text(encoding="utf-8"), re.MULTILINE)
    printed = [command for block in blocks(source) if block.run and not block.exit_status for command in block.commands]
    return [line.split() for line in indented] + [command[1:] for command in printed if command[0] == "run"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in, which modules may be imported from."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEADDYN_OUT", ".")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


def type_in(page: Path, folder: Path) -> None:
    for name, text in printed_files(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("source", [*PAGES, *STUDIES], ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_commands_compose(source: Path, folder: Path) -> None:
    Path("my_documents.jsonl").write_text('{"text": "one"}\n')
    pairs = [{"clean": f"A {i}", "corrupted": f"B {i}", "right": "a", "wrong": "b"} for i in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    type_in(source, folder)
    for arguments in commands(source):
        theirs = r"^data\.path=(?!pairs).*"  # of studies whose text is not committed
        arguments = [re.sub(theirs, "data.path=my_documents.jsonl", a) for a in plain_arguments(arguments)]
        arguments = [re.sub(r"^seed=0,.*", "seed=0", a) for a in arguments]  # more seeds are no other commands
        lacking = {"cluster=ray": "ray", "cluster=slurm": "submitit"}
        if any(name in arguments and not importlib.util.find_spec(package) for name, package in lacking.items()):
            arguments = [a for a in arguments if not a.lstrip("+").startswith(("cluster=", "hydra.launcher."))]
        assert informational(arguments) or make_plan(arguments).jobs


def test_there_are_commands_to_check() -> None:
    counts = {source.stem: len(commands(source)) for source in PAGES}
    assert sum(counts.values()) >= 35
    assert all(counts[name] >= 2 for name in ("README", "first_sweep", "commands", "extend", "checkpoints", "machines"))


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= 160
    made = {ROOT / "docs" / "keys.md", ROOT / "docs" / "scale.md"}  # when the site is built
    for source in (*PAGES, *ROOT.glob("*.md")):
        links = re.findall(r"\]\((?!http)([^)#]+)", source.read_text(encoding="utf-8"))
        assert not [link for link in links if not ((source.parent / link).exists() or source.parent / link in made)]


def test_every_study_is_introduced_by_its_title() -> None:
    science = (ROOT / "docs" / "science.md").read_text(encoding="utf-8")
    files = (ROOT / "headdyn" / "studies").glob("*/__init__.py")
    folders = {file.parent.name for file in files} - {"landmarks"}  # results of others, which the README has apart
    studies = [importlib.import_module(f"headdyn.studies.{name}").STUDY for name in folders]
    assert len(studies) == 5
    for study in studies:
        assert (
            f"| {study.title} |" in README
            and f"**{study.title}.** {study.question}".replace("“", '"').replace("”", '"') in science
        )


def test_the_python_code_on_checkpoints_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    names: dict[str, object] = {}
    run_python(ROOT / "docs" / "checkpoints.md", names)
    shape, changed, tensor = capsys.readouterr().out.splitlines()[-3:]
    assert shape == str(torch.Size([4, 4, 32, 32]))
    assert float(re.sub(r"[^\d.e-]|, .*", "", changed.removeprefix("tensor("))) > 0
    assert tensor.startswith(str(torch.Size([8, 48, 8, 48])))
    torch.testing.assert_close(tensor_norms(names["frozen"]), names["T_IDJD"].square().sum((1, 3)).sqrt())


def run_python(page: Path, names: dict[str, object], replace: tuple[str, str] = ("", "")) -> None:
    """The Python blocks of a page that are no files, one after the other, in one namespace."""
    for block in blocks(page):
        if block.language == "python" and not block.title:
            exec(
                compile(ast.parse(block.text.replace(*replace) if replace[0] else block.text), page.name, "exec"), names
            )


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_works_as_it_is_printed(page: str, folder: Path) -> None:
    """In an empty folder: its files typed in, its commands and its Python code in the order they stand there.

    Only the size is another: that of tests in place of a smoke run's.
    """
    source = ROOT / "docs" / f"{page}.md"
    type_in(source, folder)
    places: dict[str, Path] = {}
    for block in blocks(source):
        if not block.run or block.title or block.needs:
            continue
        for command in block.commands:
            before = set(folder.glob("multirun/*"))
            arguments = [str(places.get(argument, argument)) for argument in smaller(command)]
            done = in_a_process(["-m", "headdyn", *arguments], folder)
            assert done.returncode == block.exit_status, done.stdout + done.stderr
            for new in sorted(set(folder.glob("multirun/*")) - before):
                places["multirun/SWEEP2" if "multirun/SWEEP" in places else "multirun/SWEEP"] = new
        if block.language == "python":
            done = in_a_process(["-c", smaller_python(block.text)], folder)
            assert done.returncode == 0, done.stderr


def smaller(arguments: list[str]) -> list[str]:
    """The arguments at the size of tests, where they ask for that of a smoke run."""
    return [*arguments, *TINY[1:]] if "mode=smoke" in arguments else arguments


def smaller_python(code: str) -> str:
    return code.replace('"mode=smoke"', ", ".join(map(repr, TINY)))


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
        "\n<!-- needs: hub -->\n```bash exit=2\nheaddyn doctor\n```\n"
    )
    assert blocks(page) == [
        Block("python", ' title="a/b.py"', "x = 1\n"),
        Block("bash", "", "headdyn run a=1  # so\nls\n", run=False),
        Block("bash", " exit=2", "headdyn doctor\n", needs="hub"),
    ]
    assert printed_files(page) == {"a/b.py": "x = 1\n"}
    assert [block.commands for block in blocks(page)] == [[], [["run", "a=1"]], [["doctor"]]]
    assert [block.exit_status for block in blocks(page)] == [0, 0, 2]


def test_the_organism_study_shows_its_own_table() -> None:
    folder = ROOT / "experiments" / "model_organisms"
    assert (folder / "table.md").read_text(encoding="utf-8").strip() in (folder / "README.md").read_text(
        encoding="utf-8"
    )
