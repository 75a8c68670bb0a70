"""What README.md says it finds, from the folders of experiments/ that it cites."""

from __future__ import annotations

from pathlib import Path

from headdyn.studies.organisms.detection import read_rows
from tests.experiments import attention_held, landmarks, matrix, matrix_cooldown, model_organisms
from tests.experiments.records import average, effect, fixed, high, low, p_is, percent, read, rows, span, spelled

SETTINGS = ("95 % intervals over seeds",)


def fragments(experiments: Path) -> list[str]:
    folder = experiments / "matrix"
    runs = rows(folder / "summary.csv")
    corpora = {run["seed"]: run for run in runs}.values()
    lines = [min(float(run["speaker_blind_nats"]), float(run["position_only_nats"])) for run in corpora]
    worth = sum(line - float(run["floor_nats"]) for line, run in zip(lines, corpora, strict=True)) / len(lines)
    planted, others, found = model_organisms.detections(read_rows(experiments / "model_organisms"))
    at_last = sum(row["found"] for row in planted)
    lasting = matrix_cooldown.difference(matrix_cooldown.arms(experiments / "matrix_cooldown"), "selectivity", "0.75")
    seen = [effect(folder / "effects.json", "selectivity", levels) for levels in (matrix.RETENTION, matrix.HEADS)]
    after = [loss["after"] for loss in read(folder / "retention.json")["losses"]]
    ends, marked = (
        attention_held.at_end(read(experiments / "attention_held" / f"{name}.json"))
        for name in ("trainings", "markers")
    )
    needed = attention_held.difference(marked, attention_held.FREE, attention_held.HELD)
    pooled = read(folder / "matched_loss.json")["pooled"]
    (matched,) = (e for e in pooled if (e["factor"], e["outcome"]) == ("data_ordering", "selectivity"))
    assert abs(attention_held.difference(ends, attention_held.HELD, attention_held.LATER)["value"]) < 0.001
    null, diffuse = ([suite for suite in others if suite["kind"] == kind] for kind in ("null", "diffuse"))
    *_, doubt = model_organisms.errors_compared([*null, *diffuse])
    assert not any(suite["found_by_trajectory"] or model_organisms.by_rule(suite) for suite in null)
    later = [run for run in runs if run["seed"] != matrix.SEEN]
    unseen = average(later, "selectivity", "data_ordering", "shuffled", "topic")
    held = attention_held.difference(ends, attention_held.FREE, attention_held.HELD)
    return [
        f"end only {spelled(held)} nats higher, in {held['n']} seeds",
        f"even attention costs {spelled(needed)} nats ({needed['n']} seeds, in one of",
        f"the drop itself costs {span(after, 3)} nats",
        f"{len(runs)} runs of eight seeds",
        f"is worth {fixed(worth, 2)} nats a token",
        f"alone it is {spelled(lasting, scale=100, signed=True)} points",
        *(order_row(folder, label) for label in list(matrix.OUTCOMES)[:4]),
        f"a change by {fixed(2 * 100 * seen[0]['detectable'], 1)} points would have been seen",
        f"(one of {fixed(100 * seen[1]['detectable'], 1)} points would have been seen)",
        f"even/odd structure in {at_last} of {len(planted)} at their last checkpoint, "
        f"{percent(low(at_last, len(planted)))} % of such suites or more, and in {found} over all checkpoints",
        f"in {len(null)} suites without planting it finds nothing (in {percent(high(0, len(null)))} % of such suites or fewer)",
        f"it finds {sum(row['found_by_trajectory'] for row in diffuse)} of {len(diffuse)}, the studies' rule, strength > 0.5, "
        f"{sum(map(model_organisms.by_rule, diffuse))} ({p_is(doubt)})",
        f"between two snapshots, it is {spelled(matched, scale=100, signed=True)} points",
        f"over the other {unseen['n']} it is {spelled(unseen, scale=100, signed=True)} points",
        *landmarks_of(experiments / "landmarks"),
    ]


def landmarks_of(folder: Path) -> list[str]:
    """How many of the papers' predictions hold, and in how many seeds those that the README names."""
    holds = next(piece for piece in landmarks.fragments(folder) if "predictions hold" in piece)
    cases = {
        (name, i): prediction.judge(landmarks.recorded(folder, name))
        for name in landmarks.NAMES
        for i, prediction in enumerate(landmarks.landmark(name).predictions)
    }
    counts = {key: (sum(case.holds is True for case in found), len(found)) for key, found in cases.items()}
    every = {counts["induction_bump", i] for i in (1, 2, 4)} | {counts["clamping", i] for i in (0, 1, 2)}
    assert len(every) == 1 and len(set(every.copy().pop())) == 1
    ((n, _),) = every
    assert landmarks.verdict(cases["clamping", 3]) == "undecided"
    first_layer = next(p for p in landmarks.fragments(folder) if p.startswith("forward in ")).split(" seeds")[0][
        len("forward in ") :
    ]
    few, many = (counts["markov_phases", i] for i in (0, 1))
    return [
        holds,
        f"the loss falls less steeply ({n} of {n} seeds)",
        f"brings the change forward ({n} of {n}), but in {first_layer} so does one at even attention in the first layer",
        *(
            f"{verb} them ({yes} of {n}, {percent(low(yes, n))}–{percent(high(yes, n))} %)"
            for verb, (yes, n) in (("retrieve", few), ("infer", many))
        ),
    ]


def order_row(folder: Path, label: str) -> str:
    """The effect of order on an outcome in RoPE runs, in DroPE runs, and on average with its q."""
    metric, scale = matrix.OUTCOMES[label]
    simple = [effect(folder / "effects.json", metric, matrix.ORDER, {"position_enc": arm}) for arm in ("rope", "drope")]
    cells = [spelled(entry, scale=scale, signed=True) for entry in simple]
    cells.append(matrix.cell(effect(folder / "effects.json", metric, matrix.ORDER), scale))
    return f"| {label} | {' | '.join(cells)} |"
