"""Nothing outside headdyn/studies knows a study: not its name, not its hypotheses, not the number of its document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import headdyn

ROOT = Path(headdyn.__file__).parent
STUDIES = sorted(path.parent.name for path in (ROOT / "studies").glob("*/__init__.py"))
ROOMS = ("core", "models", "data", "training", "analysis", "sweep", "report")
FILES = ("pipeline.py", "stages.py", "config.py", "checking.py", "plan.py", "finish.py", "run.py")
NAMES = re.compile(
    r"even_odd|(?<!L\d )(?<!at )\bH[1-5]\b|"  # a size such as L4 H4 is no hypothesis
    + "|".join(rf"\b{name}\b" for name in STUDIES)
    + r"|\bseed[_ ]stud(y|ies)|\bseeds?'s?\b(?! corpus)|\bseed (00\d|protocol|document)|protocol=seed|\b(study|studies|document) 00\d"
)


def sources() -> list[Path]:
    return [*(ROOT / name for name in FILES), *(path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))]


def test_there_are_five_studies_and_the_landmarks() -> None:
    assert STUDIES == [
        "even_odd_emergence",
        "head_swapping",
        "landmarks",
        "organisms",
        "topic_order",
        "weight_clusters",
    ]


@pytest.mark.parametrize("text", ["even_odd_emergence", "H3 is", "the seed's table", "seed 002", "weight_clusters"])
def test_what_names_a_study_is_found(text: str) -> None:
    assert NAMES.search(text)


def test_nothing_else_names_a_study() -> None:
    assert len(sources()) > 100
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sources()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if NAMES.search(line)
    ]
    assert not found, "\n".join(found)


def test_importing_a_study_is_cheap() -> None:
    import subprocess
    import sys

    code = "import sys; " + "; ".join(f"import headdyn.studies.{name}" for name in STUDIES)
    heavy = "{'torch', 'scipy', 'altair', 'pyarrow', 'jinja2'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", f"{code}; print({heavy})"], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr
