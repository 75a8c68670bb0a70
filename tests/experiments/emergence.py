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
    timeline = folder / "timeline.csv"
    at_once, before, end = (
        span((row[name] for row in rows(timeline, step=step)), 2)
        for name, step in (("copying_nats", "0"), ("repeat_gain_nats", "0"), ("repeat_gain_nats", "800"))
    )
    gains = [
        {int(row["step"]): float(row["repeat_gain_nats"]) for row in rows(timeline, series=str(series))}
        for series in range(n)
    ]
    highest = [max(gain.values()) for gain in gains]
    halves = [first_at(gain, high / 2) for gain, high in zip(gains, highest, strict=True)]
    closed = [
        {int(row["step"]): float(row["gap_closed"]) for row in rows(timeline, series=str(series))}
        for series in range(n)
    ]
    after, at = zip(*(first_at(course, 0.5) for course in closed), strict=True)
    return [
        *lines,
        f"closes between steps {min(after)} and {max(at)} in all {n}",
        f"before selectivity in {apart} of {n}",
        f"16 snapshots of {n} trainings",
        f"{before} nats untrained, {span(highest, 2)} at its highest, {end} at the end",
        f"height between steps {min(a for a, _ in halves)} and {max(b for _, b in halves)},",
        f"{at_once} before any training",
    ]


def first_at(course: dict[int, float], level: float) -> tuple[int, int]:
    """Between which snapshots, by step, a course first reaches the level."""
    steps = list(course)
    index = next(i for i, step in enumerate(steps) if course[step] >= level)
    return steps[index - 1], steps[index]
