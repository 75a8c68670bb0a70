"""Files of prompt pairs for two known tasks: `python -m headdyn.data.pair_recipes ioi 64 > pairs.jsonl`.

`ioi`: indirect objects (Wang et al. 2022, arXiv 2211.00593). Two people are named, one of them again as the giver; the
right answer is the other one. In the corrupted prompt the other one is the giver, so right and wrong change places.
`greater_than`: years (Hanna et al. 2023, arXiv 2305.00586). A thing lasted from the year CCYY to the year CC; the right
answer is a later YY, the wrong one an earlier YY. The corrupted prompt begins in CC01, so that both are possible.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from headdyn.core.randomness import generator

# First names that, with a space before them, are one token in the vocabularies of GPT-2 and Pythia.
NAMES = (
    *("Mary", "John", "Tom", "James", "Dan", "Martin", "Amy"),
    *("Scott", "Anna", "Paul", "Alex", "Kate", "Mark", "Sarah"),
)
PLACES = ("store", "garden", "restaurant", "school", "hospital", "office", "house", "station")
OBJECTS = ("ring", "kiss", "bone", "basketball", "computer", "necklace", "drink", "snack")
STORIES = (
    "When {a} and {b} went to the {place}, {giver} gave a {object} to",
    "Then, {a} and {b} had a lot of fun at the {place}. {giver} gave a {object} to",
    "After {a} and {b} met at the {place}, {giver} decided to give a {object} to",
)
THINGS = ("war", "campaign", "dispute", "expedition", "voyage", "reign", "strike", "famine")
CENTURIES = (14, 15, 16, 17, 18)
YEARS = range(12, 89)  # years up to 9 earlier or later are in the same century and have two digits


def ioi(rng: np.random.Generator) -> dict[str, str]:
    """A random pair on indirect objects, in either order of the names (ABBA or BABA)."""
    a, b = rng.choice(NAMES, 2, replace=False)
    story, place, thing = (str(rng.choice(words)) for words in (STORIES, PLACES, OBJECTS))
    right, giver = (a, b) if rng.random() < 0.5 else (b, a)
    texts = {
        wording: story.format(a=a, b=b, giver=repeated, place=place, object=thing)
        for wording, repeated in (("clean", giver), ("corrupted", right))
    }
    return {**texts, "right": f" {right}", "wrong": f" {giver}", "group": "ioi"}


def greater_than(rng: np.random.Generator) -> dict[str, str]:
    """A random pair on years."""
    thing, century = str(rng.choice(THINGS)), int(rng.choice(CENTURIES))
    year = int(rng.integers(YEARS.start, YEARS.stop))
    right, wrong = (year + sign * int(distance) for sign, distance in zip((1, -1), rng.integers(1, 10, 2), strict=True))
    texts = {
        wording: f"The {thing} lasted from the year {century}{start:02d} to the year {century}"
        for wording, start in (("clean", year), ("corrupted", 1))
    }
    return {**texts, "right": f"{right:02d}", "wrong": f"{wrong:02d}", "group": "greater_than"}


RECIPES: Mapping[str, Callable[[np.random.Generator], dict[str, str]]] = {"ioi": ioi, "greater_than": greater_than}
# How many different clean prompts a recipe can make. For ioi: ordered pairs of names, two givers, all stories.
MOST = {
    "ioi": 2 * math.perm(len(NAMES), 2) * len(STORIES) * len(PLACES) * len(OBJECTS),
    "greater_than": len(THINGS) * len(CENTURIES) * len(YEARS),
}


def make(task: str, count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` pairs of a task with different clean prompts, drawn from the seed.

    Raises ValueError for an unknown task, a count below 1, and a count above MOST[task].
    """
    if count < 1:
        raise ValueError(f"count={count} is no number of pairs; ask for 1 or more")
    if task not in RECIPES:
        raise ValueError(f"no recipe makes {task!r}; there are {', '.join(RECIPES)}")
    if count > MOST[task]:
        raise ValueError(f"count={count}, but {task} has {MOST[task]} different pairs; ask for at most that many")
    rng, pairs = generator(seed, f"pairs/{task}"), dict[str, dict[str, str]]()
    while len(pairs) < count:
        pair = RECIPES[task](rng)
        pairs.setdefault(pair["clean"], pair)
    return list(pairs.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the pairs that the command line asks for, as JSON Lines."""
    parser = argparse.ArgumentParser(prog="python -m headdyn.data.pair_recipes", description="Write prompt pairs.")
    parser.add_argument("task", choices=list(RECIPES))
    parser.add_argument("count", type=int, help="how many pairs")
    choice = parser.parse_args(arguments)
    try:
        pairs = make(choice.task, choice.count)
    except ValueError as error:
        parser.error(str(error))
    for pair in pairs:
        print(json.dumps(pair))


if __name__ == "__main__":
    main()
