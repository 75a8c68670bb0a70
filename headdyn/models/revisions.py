"""Which training steps a checkpoint suite has, and how a series of them is written. No torch: a typo answers at once.

Pythia's 154 revisions are step0, step1, step2, step4 … step512, step1000, step2000 … step143000. Suites trained
here are saved under the same names, so what is said of Pythia here holds for them too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from types import MappingProxyType

FINAL_STEP = 143_000
PYTHIA_STEPS = (0, *(2**i for i in range(10)), *range(1_000, FINAL_STEP + 1, 1_000))


def _revisions(steps: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"step{step}" for step in steps)


PYTHIA = _revisions(PYTHIA_STEPS)
FINAL = PYTHIA[-1]  # `main` holds the same weights, says the suite's README, but its name says no step

# original_11, original_8: the checkpoints of the original studies; the last point of the eleven was loaded from main.
LISTS = MappingProxyType(
    {
        "pythia_all": PYTHIA,
        "pythia_log": _revisions([0, *(2**i for i in range(10)), *(1_000 * 2**i for i in range(8)), FINAL_STEP]),
        "original_11": _revisions(
            [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 80_000, 100_000, 120_000, FINAL_STEP]
        ),
        "original_8": _revisions([1_000, 5_000, 10_000, 20_000, 40_000, 80_000, 120_000, FINAL_STEP]),
    }
)

_FORMER_NAMES = {"seed_11": "original_11", "seed_8": "original_8"}  # accepted, and mentioned nowhere
_STEP = re.compile(r"(?:^|[-_])step[-_]?(\d+)(?![\d.])")


def is_pythia(name: str) -> bool:
    """Whether a model of this name (on the hub, or a folder's) has Pythia's revisions; the old v0 suite has others."""
    last = name.rstrip("/").rpartition("/")[2]
    return last.startswith("pythia-") and not last.endswith("-v0")


def step_of(revision: str) -> int | None:
    """The training step a revision's name states (step1000, stage1-step1000-tokens5B); None where it states none."""
    found = _STEP.search(revision)
    return None if found is None else int(found[1])


def in_order(revisions: Sequence[str]) -> tuple[str, ...]:
    """Each revision once, in the order of training; those that state no step last, as they came."""
    steps = {revision: step_of(revision) for revision in revisions}
    return tuple(sorted(steps, key=lambda revision: (steps[revision] is None, steps[revision] or 0)))


def parse(text: str | Sequence[str], *, pythia: bool = True, main: bool = False) -> tuple[str, ...]:
    """The revisions of a series, each once, in the order of training.

    `text` holds revisions and names of `LISTS`, separated by commas, or is a sequence of them. Of another suite
    (`pythia=False`) every name is taken as it is, and there are no lists. `main` lets the revision main in, which a
    series should not hold: it is a copy of the last step, under a name that may later be given to other weights.
    Raises ValueError for an empty series, for main without `main`, and for a step that Pythia lacks.
    """
    items = [item.strip() for item in (text.split(",") if isinstance(text, str) else text)]
    items = [_FORMER_NAMES.get(item, item) for item in items]
    if not items or not all(items):
        raise ValueError(f"model.revisions={text!r} names no revision; choose {', '.join(LISTS)} or step1000,step2000")
    if "main" in items and not main:
        last = f"the last one is {FINAL}" if pythia else "name the step"
        raise ValueError(
            f"model.revisions={text!r} holds main, which is no step of a series; {last} (model.allow_main=true takes "
            "main too)"
        )
    revisions: list[str] = []
    for item in items:
        if not pythia and item in LISTS:
            raise ValueError(f"model.revisions={item} lists Pythia's steps, which this model may lack; name its own")
        require = pythia and item != "main" and item not in LISTS
        revisions += LISTS.get(item, [require_pythia(item) if require else item])
    return in_order(revisions)


def require_pythia(revision: str) -> str:
    """The revision, if Pythia has it. Raises ValueError with the nearest that it has."""
    if revision in PYTHIA:
        return revision
    digits = re.fullmatch(r"(?:steps?)?[-_ ]?(\d+)(k?)", revision.lower())
    if digits is None:
        near = difflib.get_close_matches(revision, [*PYTHIA, *LISTS], n=2)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"model.revision={revision} is none of Pythia's; {hint}There are step0, step1, step2, step4 … step512, "
            f"step1000, step2000 … {FINAL}, and the lists {', '.join(LISTS)}"
        )
    step = int(digits[1]) * (1_000 if digits[2] else 1)
    if step > FINAL_STEP:
        ends = f"Pythia's training ends at step {FINAL_STEP}; the nearest is {FINAL}"
        raise ValueError(f"model.revision={revision} does not exist: {ends}")
    below, above = max(s for s in PYTHIA_STEPS if s <= step), min(s for s in PYTHIA_STEPS if s >= step)
    nearest = " and ".join(dict.fromkeys(_revisions([below, above])))
    raise ValueError(f"model.revision={revision} does not exist; the nearest of Pythia's are {nearest}")
