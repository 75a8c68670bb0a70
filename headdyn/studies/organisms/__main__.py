"""The study of detectors: `python -m headdyn.studies.organisms --suites 5`."""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from headdyn.core import machine
from headdyn.core.store import Store, cache_root
from headdyn.studies.organisms.detection import default_settings, study
from headdyn.studies.organisms.power import parse_grades, power
from headdyn.studies.organisms.settings import KINDS, Organism, Streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns 0 when every suite of the command is on record."""
    parser = argparse.ArgumentParser(
        prog="python -m headdyn.studies.organisms",
        description="How often do the detectors find the truth about suites whose answer is known?",
    )
    parser.add_argument("--suites", type=int, default=5, help="how many suites of each kind (default: 5)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first suite (default: 0)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND",
                        help=f"of {', '.join(KINDS)} (default: all)")  # fmt: skip
    parser.add_argument("--streams", choices=get_args(Streams), default="kind",
                        help="initial weights and batches are drawn for each kind (default), or once for all kinds of "
                        "a suite, as in experiments/model_organisms")  # fmt: skip
    parser.add_argument("--grade", action="append", default=[], metavar="KEY=V,V,…",
                        help="in place of kinds: power against a grade of the planting, such as strength=0,0.5,1, "
                        "redundancy=1,2,3, layer=0,1, position=block,last,answer or onset=0.25,0.5; "
                        "may be repeated")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("outputs/model_organisms"), help="folder of the record")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: one per core)")
    chosen = parser.parse_args(arguments)
    for name, least in (("suites", 1), ("first", 0)):
        if (number := getattr(chosen, name)) < least:
            parser.error(f"--{name}={number} must be at least {least}")
    try:
        grades = parse_grades(chosen.grade)
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    machine.resolve("cpu", "fp32", chosen.threads)
    machine.keep_freed_memory()

    def settings(kind: str, suite: int) -> Organism:
        return dataclasses.replace(default_settings(kind, chosen.first + suite), streams=chosen.streams)

    store = Store(cache_root())
    try:
        if grades:
            power(chosen.out, grades=grades, suites=chosen.suites, store=store, settings=settings)
        else:
            study(chosen.out, kinds=chosen.kinds, suites=chosen.suites, store=store, settings=settings)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
