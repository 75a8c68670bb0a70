"""How charts tell the runs of a sweep apart: by colour for the first varied factor, by dashes and marks for others."""

from collections.abc import Mapping, Sequence

from headdyn.sweep.factors import CHOICES, level_label, ordered
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

# The words that readers see for some keys; other keys are shown as they are.
_NAMES = {"data_ordering": "order", "position_enc": "positions", "group": "settings", "revision": "checkpoint"}


def key_name(key: str) -> str:
    """A key in a reader's words: `order`, `positions`, `model.num_layers`."""
    return _NAMES.get(key, key)


def looks(sweep: SweepRecord, without: Sequence[str] = ()) -> dict[int, Mapping[str, str]]:
    """By run number, the run's levels of the varied keys (three at most, none of `without`), in a reader's words."""
    varied = [name for name in (*CHOICES, *sweep.varied) if name in sweep.varied and name not in without]
    keys = list(dict.fromkeys(name for name in varied if name != "revision"))[:3]
    ranks = {key: ordered(key, [job.factors.get(key) for job in sweep.jobs]) for key in keys if key != "group"}
    # Charts assign colours in the order of runs: with low levels first, a level looks the same in every sweep.
    jobs = sorted(sweep.jobs, key=lambda job: [ranks[key].index(job.factors.get(key)) for key in ranks])
    return {job.number: {key_name(key): level_of(job, key) for key in keys} for job in jobs}


def level_of(job: Job, key: str) -> str:
    """A run's level of a key in a reader's words."""
    level = job.group if key == "group" else job.factors.get(key)
    return level_label(key, level) if level is not None else "–"
