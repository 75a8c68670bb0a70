"""The steps of a long build: each is done once, whatever interrupts it, with its facts on the disk."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headdyn.core.json_files import read_json, write_json

log = logging.getLogger(__name__)


def once(folder: Path, name: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of step `name`, which `work()` returns now, or has returned in an earlier build in this folder.

    They are stored in the marker `NAME.done.json`, written last. Interrupted work is called again, and its files are
    still there.
    """
    folder.mkdir(exist_ok=True)
    marker = folder / f"{name}.done.json"
    if marker.exists():
        log.info("%s: finished before", name)
        return read_json(marker)
    log.info("%s ...", name)
    begun = time.monotonic()
    facts = dict(work())
    write_json(marker, facts)
    log.info("%s: done in %.1f s", name, time.monotonic() - begun)
    return facts
