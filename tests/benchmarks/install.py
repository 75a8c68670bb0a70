"""Installing headdyn: how long it takes, what it takes on disk, and how soon its first command answers.

    python -m tests.benchmarks.install --out experiments/speed
    python -m tests.benchmarks.install --only notebook --out experiments/speed
    python -m tests.benchmarks.install --sizes-only --out experiments/speed

The wheel is built, and installed with the versions of constraints.txt into empty virtual environments: with no extra,
and with the notebook's. A newcomer's first hour follows, in empty folders: without an extra the first commands, a run
and the matrix; with it the notebook, and what docs/extend.md prints, typed in. A step that fails raises: `make walk` is
a test of all. Seconds are those of pip with whatever its cache already holds, on this machine's network. Sizes are of all
extras: the packages of the present environment that each installation would bring.
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
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from headdyn.core.json_files import read_json, write_json
from tests.printed import blocks, type_in

ROOT = Path(__file__).parents[2]
EXTRAS = ("", "notebook", "text", "dashboard,gguf,joblib", "docs")
INSTALLED = ("", "notebook")
ANSWERS = (("--help",), ("run", "--help"), ("run", "mode=smok"), ("run", "mode=smoke", "--cfg", "job"))


def main() -> None:
    """Measure, print the tables, and write install.json where `--out` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for install.json")
    parser.add_argument("--sizes-only", action="store_true", help="of what is installed here; nothing is installed")
    parser.add_argument("--only", choices=INSTALLED, help="the extra of one installation; the others stay on record")
    arguments = parser.parse_args()
    file = arguments.out / "install.json" if arguments.out else None
    record: dict[str, Any] = read_json(file) if file and file.is_file() else {}
    record |= {"python": sys.version.split()[0], "sizes": [sizes(extras) for extras in EXTRAS]}
    if not arguments.sizes_only:
        with tempfile.TemporaryDirectory() as name:
            wheel = build_wheel(Path(name))
            record["wheel_mb"] = round(megabytes(wheel), 2)
            rows = {row["extras"]: row for row in record.get("installs", [])}
            for extras in INSTALLED if arguments.only is None else (arguments.only,):
                rows[extras] = installed(wheel, extras, Path(name) / "environment")
                record["installs"] = list(rows.values())
                write(record, file)
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


def sizes(extras: str) -> dict[str, Any]:
    """Megabytes of every package that headdyn with these extras requires, those of headdyn's packages in turn too."""
    found: dict[str, float] = {}
    waiting = [Requirement(f"headdyn[{extras}]" if extras else "headdyn")]
    seen: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        package = distribution(requirement.name)
        if requirement.name != "headdyn":
            found[canonicalize_name(requirement.name)] = distribution_megabytes(package)
        for inner in map(Requirement, package.requires or ()):
            wanted = [{"extra": extra} for extra in (*requirement.extras, "")]
            if inner.marker is None or any(inner.marker.evaluate(extra) for extra in wanted):
                waiting.append(inner)
    largest = dict(sorted(found.items(), key=lambda item: -item[1])[:12])
    return {
        "extras": extras,
        "packages": len(found),
        "mb": round(sum(found.values())),
        "largest_mb": {name: round(size) for name, size in largest.items()},
    }


def installed(wheel: Path, extras: str, environment: Path) -> dict[str, Any]:
    """What one installation took, in an environment that is removed afterwards."""
    call(sys.executable, "-m", "venv", str(environment))
    python, site = (
        str(environment / "bin" / "python"),
        environment / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix),
    )
    before = megabytes(site)
    requirement = f"headdyn[{extras}] @ {wheel.as_uri()}" if extras else str(wheel)
    begun = time.perf_counter()
    call(python, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt"), requirement)
    row: dict[str, Any] = {"extras": extras, "seconds": round(time.perf_counter() - begun)}
    row["mb"] = round(megabytes(site) - before)
    row["packages"] = len(list(distributions(path=[str(site)])))
    scripts, folder = environment / "bin", environment.parent
    if extras == "notebook":
        row["notebook_seconds"] = notebook_seconds(scripts, folder / "notebook")
        row["own_analysis_seconds"] = own_analysis_seconds(scripts, folder / "own")
    else:
        row |= first_minutes(scripts / "headdyn", folder / "empty")
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


def megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(file.stat().st_size for file in files) / 1e6


def distribution_megabytes(distribution: Distribution) -> float:
    files = [Path(str(file.locate())) for file in distribution.files or ()]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
