"""The revisions of checkpoint suites: which there are, what their names state, and series of them. Imports no torch.

Pythia's 154 revisions are step0, step1, step2, step4 … step512, step1000, step2000 … step143000. Suites that headdyn
trains have the same names. Those of other suites are words with numbers, such as stage1-step1000-tokens5B, step-240000,
checkpoint-100, ckpt_000.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

FINAL_STEP = 143_000
PYTHIA_STEPS = (0, *(2**i for i in range(10)), *range(1_000, FINAL_STEP + 1, 1_000))


def _revisions(steps: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"step{step}" for step in steps)


PYTHIA = _revisions(PYTHIA_STEPS)
FINAL = PYTHIA[-1]  # `main` has the same weights, according to the suite's README, but its name states no step

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

SERIES = "series"  # all checkpoints of a folder, all snapshots of a training, or Pythia's pythia_log
# seed_11 and seed_8 are former names.
_OTHER_NAMES = {"seed_11": "original_11", "seed_8": "original_8", SERIES: "pythia_log"}
_WORDS = {"step": "step", "global_step": "step", "checkpoint": "step", "ckpt": "step", "iter": "step"}
_PART = re.compile(
    r"(?:^|[-_])(global_step|step|checkpoint|ckpt|iter|stage|ingredient|tokens|seed)[-_]?(\d+)([kKMBT]?)(?=$|[-_])"
)
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def is_pythia(name: str) -> bool:
    """Whether a model of this name (on the hub, or a folder's) has Pythia's revisions; the old v0 suite has others."""
    last = name.rstrip("/").rpartition("/")[2]
    return last.startswith("pythia-") and not last.endswith("-v0")


def suite_of(name: str) -> tuple[str, str]:
    """The suite to which a training of this name belongs, and its random seed according to the name, or "".

    EleutherAI/pythia-160m-seed3 is seed 3 of pythia-160m. Stanford's five GPT-2 of one size have a name of their own
    and end in -x21, -x49 …
    """
    last = name.rstrip("/").rpartition("/")[2]
    if stanford := re.fullmatch(r"[a-z]+-(gpt2-(?:small|medium))-x(\d+)", last):
        return stanford[1], stanford[2]
    seed = re.fullmatch(r"(.+?)[-_]seed[-_]?(\d+)", last)
    return (seed[1], seed[2]) if seed else (last, "")


def read_name(revision: str) -> dict[str, int]:
    """The numbers in a revision's name: stage, ingredient (one of OLMo-2's trainings of a stage), step, tokens, seed.

    The step of stage1-step1000-tokens5B is 1000, its tokens 5e9; step-240000, checkpoint-100 and ckpt_000 are steps.
    """
    parts: dict[str, int] = {}
    place = 0
    while (part := _PART.search(revision, place)) is not None:
        unit = part[3].lower() if part[3] == "K" else part[3]
        parts.setdefault(_WORDS.get(part[1], part[1]), int(part[2]) * _UNITS[unit])
        place = part.end()
    return parts


def step_of(revision: str) -> int | None:
    """The training step that a revision's name states, within its stage, or None."""
    return read_name(revision).get("step")


def in_order(revisions: Sequence[str]) -> tuple[str, ...]:
    """Each revision once, in the order of training, stage by stage; those that state no step come last."""

    def place(revision: str) -> tuple[bool, int, int]:
        name = read_name(revision)
        return "step" not in name, name.get("stage", 0), name.get("step", 0)

    return tuple(sorted(dict.fromkeys(revisions), key=place))


def steps_of(revisions: Sequence[str]) -> Mapping[str, int | None]:
    """The step of every revision of a series, counted through the stages; None for a revision that states no step.

    The steps of a stage are added to the last step that the stage before has in the series.
    """
    steps: dict[str, int | None] = {}
    stage, steps_before, last = 0, 0, 0
    for revision in in_order(revisions):
        name = read_name(revision)
        if "step" in name and name.get("stage", 0) != stage:
            stage, steps_before = name.get("stage", 0), last
        steps[revision] = steps_before + name["step"] if "step" in name else None
        last = max(last, steps[revision] or 0)
    return steps


def check_integrity(hashes: Mapping[str, str], final: str | None = None) -> tuple[list[list[str]], dict[str, str]]:
    """The groups of revisions that have the same weights, and for each revision that is not counted the reason.

    `hashes` are the revisions' state hashes, in the order of training: in public suites step0 has been equal to step1,
    and 86 of 154 branches of one model have had weights of late training. If several revisions have the same weights,
    at most one of them has its right name, and nothing says which: none of them is counted, except `final`, the
    revision that is known to be the end of training.
    """
    groups: dict[str, list[str]] = {}
    for revision, digest in hashes.items():
        groups.setdefault(digest, []).append(revision)
    duplicates = [group for group in groups.values() if len(group) > 1]
    excluded = {}
    for group in duplicates:
        for revision in (revision for revision in group if revision != final):
            others = ", ".join(other for other in group if other != revision)
            excluded[revision] = (
                f"its weights are those of {final}, the end of training"
                if final in group
                else f"its weights are those of {others}, so one of the names is wrong"
            )
    return duplicates, excluded


def in_folder(root: Path) -> tuple[str, ...]:
    """The revisions in a local folder that has a folder or a GGUF file for each, in the order of training."""
    folders = [path.parent.name for path in root.glob("*/config.json")]
    return in_order(sorted([*folders, *(path.stem for path in root.glob("*.gguf"))]))


def parse(
    text: str | Sequence[str], *, pythia: bool = True, main: bool = False, folder: Path | None = None
) -> tuple[str, ...]:
    """The revisions of a series, each once, in the order of training.

    `text` has revisions and names of `LISTS`, separated by commas, or is a sequence of them. For other suites
    (`pythia=False`) names are used as they are, and there are no lists; `series` means all revisions in the local
    `folder`, main apart. The argument `main` allows the revision main, which a series should not contain: it is a copy
    of the last step, under a name that may later get other weights. Raises ValueError for an empty series, for main if
    it is not allowed, for a step that Pythia does not have, for a name that states no step, and for several training
    seeds or ingredients.
    """
    if text == SERIES and (folder is not None or not pythia):
        text = [name for name in in_folder(folder) if name != "main"] if folder is not None else []
        if not text:
            raise ValueError(
                "model.revisions=series needs a local folder that has a folder for each checkpoint, or a suite that "
                "headdyn knows; name the revisions: model.revisions=step1000,step2000"
            )
    items = [item.strip() for item in (text.split(",") if isinstance(text, str) else text)]
    items = [_OTHER_NAMES.get(item, item) for item in items]
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
    if nameless := [revision for revision in revisions if step_of(revision) is None and revision != "main"]:
        raise ValueError(
            f"model.revisions={nameless[0]} states no training step, by which a series is ordered; name revisions such "
            "as step1000, checkpoint-100 or stage1-step1000"
        )
    for word in ("seed", "ingredient"):
        trainings = sorted({name[word] for name in map(read_name, revisions) if word in name})
        if len(trainings) > 1:
            raise ValueError(
                f"model.revisions holds the training {word}s {', '.join(map(str, trainings))}, but a series comes from "
                f"one training; give the revisions of each {word} in a sweep of its own, or sweep over model.name"
            )
    return in_order(revisions)


def require_pythia(revision: str) -> str:
    """The revision itself. Raises ValueError, which names the nearest ones, if Pythia does not have it."""
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
