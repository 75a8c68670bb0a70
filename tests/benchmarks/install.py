"""Installing headdyn: how long it takes, what it takes on disk, and how soon its first command answers.

    python -m tests.benchmarks.install --out experiments/speed
    python -m tests.benchmarks.install --only notebook --out experiments/speed

The wheel is built, and installed with the versions of constraints.txt into an empty virtual environment for each row:
with no extra, the same without `datasets` and pandas, which the first run does not use, and with the notebook's extra.
A newcomer's first hour follows, in empty folders: with no extra the first commands, a run and the matrix; with the
notebook's extra the notebook, and what docs/extend.md prints, typed in. A step that fails raises:
`make walk` tests all of it. Seconds are those of pip with whatever its cache already holds, on this machine's network.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from importlib.metadata import Distribution, distributions, requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from headdyn.core.json_files import read_json, write_json
from tests.printed import blocks, type_in

ROOT = Path(__file__).parents[2]
WITHOUT_DATASETS = "without datasets"
ROWS = ("", WITHOUT_DATASETS, "notebook")
ANSWERS = (("--help",), ("run", "--help"), ("run", "mode=smok"), ("run", "mode=smoke", "--cfg", "job"))


def main() -> None:
    """Measure, print the tables, and write install.json where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for install.json")
    parser.add_argument("--only", choices=ROWS, help="one installation; the others stay on record")
    arguments = parser.parse_args()
    file = arguments.out / "install.json" if arguments.out else None
    record: dict[str, Any] = read_json(file) if file and file.is_file() else {}
    rows = {row["extras"]: row for row in record.get("installs", [])}
    with tempfile.TemporaryDirectory() as name:
        wheel = build_wheel(Path(name))
        for extras in ROWS if arguments.only is None else (arguments.only,):
            rows[extras] = installed(wheel, extras, Path(name) / "environment")
            record = {"python": sys.version.split()[0], "wheel_mb": round(megabytes(wheel), 2)}
            record["installs"] = [rows[extras] for extras in ROWS if extras in rows]
            write(record, file)


def build_wheel(folder: Path) -> Path:
    """The wheel, built without a network. Raises RuntimeError where the builder fails or warns of something."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or "warning" in (done.stdout + done.stderr).lower():
        raise RuntimeError(done.stdout + done.stderr)
    (wheel,) = folder.glob("*.whl")
    return wheel


def write(record: dict[str, Any], file: Path | None) -> None:
    """Print the record, and write it where there is a file for it."""
    print(json.dumps(record, indent=1))
    if file:
        write_json(file, record)


def installed(wheel: Path, extras: str, environment: Path) -> dict[str, Any]:
    """What one installation took, in an environment that is removed afterwards."""
    call(sys.executable, "-m", "venv", str(environment))
    python = str(environment / "bin" / "python")
    site = environment / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    empty_mb, empty_packages = megabytes(site), len(packages(site))
    requirement = f"headdyn[{extras}] @ {wheel.as_uri()}" if extras else str(wheel)
    pip = (python, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"))
    begun = time.perf_counter()
    if extras == WITHOUT_DATASETS:
        call(*pip, *(each for each in core_requirements() if Requirement(each).name not in ("datasets", "pandas")))
        call(*pip, "--no-deps", str(wheel))
    else:
        call(*pip, requirement)
    seconds = round(time.perf_counter() - begun)
    sizes = {package.name: round(distribution_megabytes(package)) for package in packages(site)}
    row: dict[str, Any] = {
        "extras": extras,
        "seconds": seconds,
        "packages": len(sizes) - empty_packages,
        "mb": round(megabytes(site) - empty_mb),
        "largest_mb": dict(sorted(sizes.items(), key=lambda item: -item[1])[:12]),
    }
    scripts, folder = environment / "bin", environment.parent
    if extras == "notebook":
        row["notebook_seconds"] = notebook_seconds(scripts, folder / "notebook")
        row["own_analysis_seconds"] = own_analysis_seconds(scripts, folder / "own")
    else:
        row |= first_minutes(scripts / "headdyn", folder / ("without" if extras else "empty"))
    shutil.rmtree(environment)
    return row


def first_minutes(headdyn: Path, work: Path) -> dict[str, Any]:
    """Seconds to the end of the first commands, run and sweep, and to the first line of the run; an empty folder."""
    environment = outside(work)
    answers = {}
    for command in ANSWERS:
        begun = time.perf_counter()
        subprocess.run([headdyn, *command], cwd=work, env=environment, capture_output=True, check=False)
        answers[" ".join(("headdyn", *command))] = round(time.perf_counter() - begun, 2)
    begun = time.perf_counter()
    with subprocess.Popen([headdyn, "run", "mode=smoke"], cwd=work, env=environment, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        first_line = time.perf_counter() - begun
        process.stderr.read()
    if process.returncode:
        raise RuntimeError(f"headdyn run mode=smoke ended with {process.returncode}")
    run = {"first line": round(first_line, 2), "end": round(time.perf_counter() - begun, 1)}
    begun = time.perf_counter()
    call(str(headdyn), "run", "-m", "experiment=matrix", "mode=smoke", work=work, environment=environment)
    matrix = round(time.perf_counter() - begun, 1)
    return {"answers_seconds": answers, "smoke_run_seconds": run, "smoke_matrix_seconds": matrix}


def own_analysis_seconds(scripts: Path, work: Path) -> float:
    """Seconds of docs/extend.md: its files typed in, then its commands and its Python as printed."""
    environment, page = outside(work), ROOT / "docs" / "extend.md"
    type_in(page, work)
    begun = time.perf_counter()
    for block in blocks(page):
        for command in block.commands:
            call(str(scripts / "headdyn"), *command, work=work, environment=environment)
        if block.language == "python" and not block.title:
            call(str(scripts / "python"), "-c", block.text, work=work, environment=environment)
    return round(time.perf_counter() - begun, 1)


def notebook_seconds(scripts: Path, work: Path) -> float:
    """Seconds of the notebook, copied by `headdyn notebook` and run top to bottom as a script."""
    environment = outside(work)
    call(str(scripts / "headdyn"), "notebook", "--copy", work=work, environment=environment)
    begun = time.perf_counter()
    call(str(scripts / "python"), "headdyn_notebook.py", work=work, environment=environment)
    return round(time.perf_counter() - begun, 1)


def outside(work: Path) -> dict[str, str]:
    """Variables of a process that sees the installed wheel alone; `work` is made, an empty folder."""
    work.mkdir()
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HEADDYN_OUT")}
    return kept | {"HEADDYN_CACHE": str(work / "cache"), "WANDB_MODE": "offline"}


def call(*command: str, work: Path | None = None, environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=work, env=environment)


def core_requirements() -> list[str]:
    """The packages that headdyn requires with no extra."""
    return [each for each in requires("headdyn") or () if Requirement(each).marker is None]


def packages(site: Path) -> list[Distribution]:
    return list(distributions(path=[str(site)]))


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(file.stat().st_size for file in files) / 1e6


def distribution_megabytes(distribution: Distribution) -> float:
    files = [Path(str(file.locate())) for file in distribution.files or ()]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
