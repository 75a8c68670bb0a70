"""How long the tests take, and which files: from the record of a run of `make test`, as

PYTEST_ADDOPTS=--junitxml=suite.xml make test
python -m tests.benchmarks.suite suite.xml --out experiments/speed/suite.json
"""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

from tests.benchmarks.shapes import machine


def measured(path: Path) -> dict[str, Any]:
    """Seconds of the whole run, and the sums of the tests' own seconds: of all of them, and by file, longest first."""
    suites = list(ET.parse(path).getroot().iter("testsuite"))
    (suite,) = suites
    seconds: Counter[str] = Counter()
    for case in suite.iter("testcase"):
        module = case.attrib["classname"].split(".")
        if module[-1][0].isupper():  # a class of tests
            module.pop()
        seconds["/".join(module) + ".py"] += float(case.attrib["time"])
    return {
        "tests": int(suite.attrib["tests"]),
        "failed": int(suite.attrib["failures"]) + int(suite.attrib["errors"]),
        "seconds": float(suite.attrib["time"]),
        "sum_of_tests": sum(seconds.values()),
        "by_file": dict(seconds.most_common()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.suite")
    parser.add_argument("record", type=Path, help="what pytest wrote for --junitxml")
    parser.add_argument("--out", type=Path, help="a JSON file")
    chosen = parser.parse_args()
    record = measured(chosen.record)
    print(
        f"{record['tests']} tests in {record['seconds']:.0f} s; one after another they take {record['sum_of_tests']:.0f} s"
    )
    for name, seconds in list(record["by_file"].items())[:15]:
        print(f"{seconds:6.1f} s  {name}")
    if chosen.out:
        chosen.out.write_text(json.dumps({"machine": machine(), **record}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
