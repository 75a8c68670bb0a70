"""How the runs of a sweep look in charts: colours tell the first factor that varies, dashes the next, marks a third."""

from collections.abc import Mapping, Sequence

from headdyn.sweep.factors import CHOICES, level_label, ordered
from headdyn.sweep.jobs import Job
from headdyn.sweep.record import SweepRecord

# What a reader calls the keys that have a name of their own.
_NAMES = {"data_ordering": "order", "position_enc": "positions", "group": "settings", "revision": "checkpoint"}


def key_name(key: str) -> str:
    """What a reader calls a key: `order`, `positions`, `model.num_layers`."""
    return _NAMES.get(key, key)


def looks(sweep: SweepRecord, without: Sequence[str] = ()) -> dict[int, Mapping[str, str]]:
    """By the number of a run, the levels of the keys that vary (three at most), in a reader's words."""
    varied = [name for name in (*CHOICES, *sweep.varied) if name in sweep.varied and name not in without]
    keys = list(dict.fromkeys(name for name in varied if name != "revision"))[:3]
    ranks = {key: ordered(key, [job.factors.get(key) for job in sweep.jobs]) for key in keys if key != "group"}
    # The low levels of every key come first, so that a level looks the same in every sweep.
    jobs = sorted(sweep.jobs, key=lambda job: [ranks[key].index(job.factors.get(key)) for key in ranks])
    return {job.number: {key_name(key): level_of(job, key) for key in keys} for job in jobs}


def level_of(job: Job, key: str) -> str:
    """A run's level of a key in a reader's words."""
    level = job.group if key == "group" else job.factors.get(key)
    return level_label(key, level) if level is not None else "–"
