"""`headdyn COMMAND`: what it calls, what a shell may complete, and the wheel that brings it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import headdyn
from headdyn.__main__ import COMMANDS, main
from headdyn.notebook_command import NOTEBOOK
from tests.commands import environment

ROOT = Path(__file__).parents[1]


def test_it_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", shown, re.MULTILINE) for name in COMMANDS)
    assert main(["walk"]) == 2
    assert capsys.readouterr().err == f"headdyn: walk is no command; there are {', '.join(COMMANDS)}\n"
    assert main(["run", "mode=smok"]) == 2
    assert "mode/smok" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["report", "doctor", "dashboard", "notebook"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("extra", ["ray", "slurm"])
def test_a_missing_extra_is_named_with_its_command(extra: str, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec({"ray": "ray", "slurm": "submitit"}[extra]):
        pytest.skip(f"{extra} is installed")
    assert main(["run", "-m", f"cluster={extra}", "mode=smoke"]) == 2
    assert capsys.readouterr().err == f"headdyn: cluster={extra} needs an extra; pip install 'headdyn[{extra}]'\n"


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("headdyn r", {"run", "report"}),
        ("headdyn run mode=s", {"mode=sanity", "mode=smoke"}),
        ("headdyn run mode=smoke train.st", {"train.steps="}),
        ("headdyn report mul", set()),
    ],
)
def test_a_shell_completes_it(line: str, choices: set[str]) -> None:
    command = [sys.executable, "-m", "headdyn", "-sc", "query=bash"]
    done = subprocess.run(command, env={**os.environ, "COMP_LINE": line}, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == choices


def test_the_version_stands_in_one_place() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert headdyn.__version__ == version
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_notebook_is_put_into_a_folder_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "new" / "headdyn_notebook.py"
    assert main(["notebook", str(copy.parent), "--copy"]) == 0
    assert copy.read_text() == NOTEBOOK.read_text()
    copy.write_text("# mine\n")
    assert main(["notebook", str(copy.parent), "--copy"]) == 0
    assert copy.read_text() == "# mine\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network; a warning of the builder would be on stderr."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "warning" not in (done.stdout + done.stderr).lower(), done.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_has_package_options_and_notebook_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"headdyn/conf/config.yaml", "headdyn/conf/mode/smoke.yaml", "headdyn/notebook.py"} <= names
    assert {"headdyn/report/templates/page.html", "headdyn/studies/topic_order/study.json"} <= names
    assert {name.partition("/")[0] for name in names} == {"headdyn", f"headdyn-{headdyn.__version__}.dist-info"}


def test_the_wheel_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    work = tmp_path / "work"
    work.mkdir()
    variables = {**environment(tmp_path), "PYTHONPATH": str(tmp_path / "site"), "HEADDYN_OUT": "."}
    code = "import headdyn.plan, sys; print(headdyn.plan.CONF); from headdyn.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "run", "mode=smoke", "--cfg", "job"]
    done = subprocess.run(command, cwd=work, env=variables, capture_output=True, text=True, check=True)
    assert (
        done.stdout.startswith(str(tmp_path / "site" / "headdyn" / "conf"))
        and "steps: ${mode.train.steps}" in done.stdout
    )
