"""The study of detectors: `python -m headdyn.studies.organisms --suites 5`."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from headdyn.core import machine
from headdyn.core.store import Store, cache_root
from headdyn.studies.organisms.detection import study
from headdyn.studies.organisms.settings import KINDS


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. 0 when every suite asked for is on record."""
    parser = argparse.ArgumentParser(
        prog="python -m headdyn.studies.organisms",
        description="How often do the detectors find what is true of suites whose answer is known?",
    )
    parser.add_argument("--suites", type=int, default=5, help="how many of each kind, numbered from 0 (default: 5)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND",
                        help=f"of {', '.join(KINDS)} (default: all)")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("experiments/model_organisms"), help="where the record is")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: one per core)")
    chosen = parser.parse_args(arguments)
    if chosen.suites < 1:
        parser.error(f"--suites={chosen.suites} must be at least 1")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    machine.resolve("cpu", "fp32", chosen.threads)
    machine.keep_freed_memory()
    study(chosen.out, kinds=chosen.kinds, suites=chosen.suites, store=Store(cache_root()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
