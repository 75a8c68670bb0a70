"""When heads form on conversations: eight trainings followed through sixteen snapshots each."""

from __future__ import annotations

from pathlib import Path

from tests.experiments.records import high, low, percent, read, rows, span

SETTINGS = (
    "Clopper–Pearson intervals, 95 %",
    "of 800 steps",
    "attention above 30 %",
    "between 7 and 50",
    "training of seed 0",
    "2 to 4 % of training",
)
MEASURES = {  # row of the table: (measure, scale, digits)
    "induction, strongest head (points above chance)": ("induction_top", 100, 0),
    "topic selectivity, strongest head (points)": ("selectivity_top", 100, 0),
    "attention on the previous token, strongest head": ("previous_token_top", 100, 0),
    "attention on position 0, strongest head": ("sink_rate_top", 100, 0),
}


def fragments(folder: Path) -> list[str]:
    trainings = read(folder / "judgements.json")
    n, lines = len(trainings), []
    for label, (name, scale, digits) in MEASURES.items():
        judged = [training["measures"][name] for training in trainings]
        emerged = [each for each in judged if each["emerges_at_step"] is not None]
        last = span((each["last"] for each in judged), digits, scale=scale)
        steps = "–"
        if emerged:
            steps = f"{min(e['emerges_after_step'] for e in emerged)} to {max(e['emerges_at_step'] for e in emerged)}"
        share = f"{len(emerged)} of {n} ({percent(low(len(emerged), n))} to {percent(high(len(emerged), n))} %)"
        lines.append(f"| {label} | {share} | {steps} | {last} |")
    pairs = [training["order"]["half_height"]["surely_before"] for training in trainings]
    apart = sum(["induction_top", "selectivity_top"] in each for each in pairs)
    untrained = span((row["copying_nats"] for row in rows(folder / "timeline.csv", step="0")), 2)
    after, at = zip(*(half_closed(folder, str(series)) for series in range(n)), strict=True)
    return [
        *lines,
        f"closes between steps {min(after)} and {max(at)} in all {n}",
        f"before selectivity in {apart} of {n}",
        f"16 snapshots of {n} trainings",
        f"untrained models already save {untrained} nats",
    ]


def half_closed(folder: Path, series: str) -> tuple[int, int]:
    """Between which snapshots a training first closes half of the gap from guessing to the floor."""
    course = [(int(row["step"]), float(row["gap_closed"])) for row in rows(folder / "timeline.csv", series=series)]
    index = next(i for i, (_, closed) in enumerate(course) if closed >= 0.5)
    return course[index - 1][0], course[index][0]
