"""`headdyn COMMAND`: what it calls, what a shell may complete, and the wheel that brings it."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

import headdyn
from headdyn.__main__ import COMMANDS, main
from headdyn.api import Sweep
from headdyn.notebook_command import NOTEBOOK
from tests.benchmarks import install
from tests.commands import TINY, environment

ROOT = Path(__file__).parents[1]


def test_it_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {name} ", shown, re.MULTILINE) for name in COMMANDS)
    assert main(["walk"]) == 2
    assert capsys.readouterr().err == f"headdyn: walk is no command; the commands are {', '.join(COMMANDS)}\n"
    assert main(["--mode=smoke"]) == 2
    assert capsys.readouterr().err.endswith("notebook; headdyn run mode=smoke gives an option\n")
    assert main(["run", "mode=smok"]) == 2
    assert capsys.readouterr().err.startswith("headdyn: mode=smok names no option; mode is landmark, laptop, ")


@pytest.mark.parametrize("command", ["report", "doctor", "dashboard", "notebook"])
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0 and capsys.readouterr().out.startswith(f"usage: headdyn {command} ")


@pytest.mark.parametrize(("extra", "launcher"), [("joblib", "joblib"), ("ray", "ray"), ("slurm", "submitit_slurm")])
def test_a_missing_launcher_is_named_with_its_command(
    extra: str, launcher: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Plugins.instance()  # an installed launcher puts its options into Hydra's store here, once in a process
    monkeypatch.delitem(ConfigStore.instance().repo["hydra"]["launcher"], f"{launcher}.yaml", raising=False)
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


# How each shell is made to complete `headdyn run mode=s` with the script that `SCRIPT -sc install=SHELL` prints for it.
SHELLS = {
    "bash": """eval "$(SCRIPT -sc install=bash)"
COMP_LINE="headdyn run mode=s"; COMP_POINT=18; COMP_WORDS=($COMP_LINE); COMP_CWORD=2
hydra_bash_completion; echo "${COMPREPLY[@]}" """,
    "zsh": """zmodload zsh/zpty; zpty -b typed zsh -f -i
zpty -w typed 'eval "$(SCRIPT -sc install=zsh)"; print rea""dy'; zpty -r -m typed out '*ready*'
zpty -w -n typed $'headdyn run mode=s\t'; zpty -r -m typed out '*smoke*'; print -r -- $out""",
    "fish": "SCRIPT -sc install=fish | source; complete -C 'headdyn run mode=s'; complete -C 'headdyn report pag'",
}


@pytest.mark.parametrize(("shell", "script"), [("bash", "headdyn run"), ("zsh", "headdyn"), ("fish", "headdyn")])
def test_a_real_shell_completes_with_the_script_printed_for_it(shell: str, script: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"needs {shell}")
    (tmp_path / "headdyn").write_text(f"#!{sys.executable}\nfrom headdyn.__main__ import main\nexit(main())\n")
    (tmp_path / "headdyn").chmod(0o755)
    (tmp_path / "page").touch()
    variables = {**environment(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    program = SHELLS[shell].replace("SCRIPT", script)
    done = subprocess.run(
        [shell, "-c", program], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60
    )
    assert re.search(r"mode=sanity\s+mode=smoke", done.stdout), done
    assert shell != "fish" or done.stdout.split()[-1] == "page"


def test_completion_for_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-sc", "install=tcsh"]) == main(["run", "-sc"]) == 2
    assert set(capsys.readouterr().err.splitlines()) == {
        "headdyn: -sc needs install=SHELL or uninstall=SHELL; SHELL is bash, zsh or fish"
    }


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
    capsys.readouterr()
    assert main(["notebook", str(copy), "--copy"]) == 2
    assert re.fullmatch(r"headdyn notebook: .+; name another folder\n", capsys.readouterr().err)


def test_a_notebook_without_marimo_names_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "marimo", None)
    assert main(["notebook", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "headdyn: the notebook needs marimo; pip install 'headdyn[notebook]'\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network or a warning."""
    return install.build_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_has_package_options_and_notebook_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"headdyn/conf/config.yaml", "headdyn/conf/mode/smoke.yaml", "headdyn/notebook.py"} <= names
    assert {"headdyn/report/templates/page.html", "headdyn/studies/topic_order/study.json"} <= names
    assert {name.partition("/")[0] for name in names} == {"headdyn", f"headdyn-{headdyn.__version__}.dist-info"}


def test_the_wheel_does_a_run_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Installed beside the packages of the tests; `headdyn` is the script that pip makes, the options are packaged."""
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    options = ["--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    variables = {**environment(tmp_path), "PYTHONPATH": str(site), "HEADDYN_OUT": "."}
    show = [sys.executable, "-c", "import headdyn.composition; print(headdyn.composition.CONF)"]
    conf = subprocess.run(show, cwd=work, env=variables, capture_output=True, text=True, check=True).stdout
    assert conf.strip() == str(site / "headdyn" / "conf")
    command = [str(site / "bin" / "headdyn"), "run", *TINY]
    done = subprocess.run(command, cwd=work, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (page,) = work.glob("outputs/*/report.html")
    assert page.stat().st_size > 10_000 and [path.name for path in work.iterdir()] == ["outputs"]


@pytest.mark.slow
@pytest.mark.parametrize("extras", ["", "notebook"])
def test_a_newcomer_gets_from_the_wheel_to_what_the_documentation_promises(
    extras: str, wheel: Path, tmp_path: Path
) -> None:
    """`make walk`, which sets HEADDYN_TEST_REGISTRY=1: an empty environment, the pinned versions, empty folders.

    Seconds are those of the clock, so the machine should have nothing else to do.
    """
    if not os.environ.get("HEADDYN_TEST_REGISTRY"):
        pytest.skip("`make walk` does it where packages can be installed from a registry")
    row = install.installed(wheel, extras, tmp_path / "environment")
    if extras == "notebook":
        assert row["notebook_seconds"] < 120 and (tmp_path / "notebook" / "headdyn_notebook.py").is_file()
        sweeps = [headdyn.load(path) for path in (tmp_path / "own" / "multirun").iterdir()]
        outcomes = [{*sweep.effects["outcome"].to_pylist()} for sweep in sweeps if isinstance(sweep, Sweep)]
        assert len(outcomes) == 3 and sum("stream_growth" in names for names in outcomes) == 2
    else:
        assert max(row["answers_seconds"].values()) < 2 and row["smoke_run_seconds"]["first line"] < 2
        matrix = headdyn.load(next((tmp_path / "empty" / "multirun").iterdir()))
        assert isinstance(matrix, Sweep) and len(matrix.runs) == 8 and not matrix.failed and matrix.report.is_file()


@pytest.mark.parametrize("command", install.ANSWERS)
def test_a_command_answers_within_two_seconds(command: tuple[str, ...], tmp_path: Path) -> None:
    """Seconds of the processor, which do not depend on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = [sys.executable, "-m", "headdyn", *command]
    done = subprocess.run(program, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout + done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
