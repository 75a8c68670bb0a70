import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from headdyn.core.records import Metric
from headdyn.data.lines import NOTHING_TO_SELECT
from headdyn.sweep.effect_words import ONE_SEED, verdict, would_be_detected
from headdyn.sweep.record import SweepRecord
from headdyn.sweep.words import WORTH, statements, worth_sentence
from tests.report.folders import matrix, measured, run, sweep
from tests.sweep.test_effects import selectivity


def answers(folder: Path) -> dict[str, list[str]]:
    return {s.question: list(s.sentences) for s in statements(SweepRecord.read(folder))}


ORDER = "Does the order of the data matter?"


def test_one_seed_is_said_to_have_no_interval(tmp_path: Path) -> None:
    by_question = answers(sweep(tmp_path, matrix(tmp_path, selectivity=selectivity)))
    for question in (ORDER, "Does dropping positions (DroPE) matter?", "Do grouped queries (GQA) matter?"):
        assert by_question[question][0].startswith(ONE_SEED)
        assert "[" not in by_question[question][0]
    # 0.04 and 0.12, and 0.01 more in seed 0: 9 points.
    assert "topic selectivity +9.00 points" in by_question[ORDER][0]
    assert by_question["Do the factors interact?"] == [f"{ONE_SEED} The values are in the table of effects."]


def test_with_seeds_q_decides_what_is_said(tmp_path: Path) -> None:
    def clear(**cell: Any) -> float:
        return selectivity(**{**cell, "seed": 0}) + 0.001 * cell["seed"] * (cell["ordering"] == "topic")

    sentences = answers(sweep(tmp_path, matrix(tmp_path, seeds=(0, 1, 2), selectivity=clear)))[ORDER]
    # 0.09, 0.091 and 0.092: mean 0.091, standard error 0.001/√3, t(2 df) = 4.30265: ± 0.00248.
    lead = "Effect on topic selectivity: topic less shuffled is +9.10 [+8.85, +9.35] points (p < 0.001, q < 0.001), "
    assert sentences[0] == f"{lead}averaged over the other factors, 3 seeds."
    assert sentences[1].startswith(
        "No effect detected on within-topic attention (0.000 [0.000, 0.000] points; 0 points would be"
    )


def test_a_null_result_stands_beside_what_would_have_been_detected(tmp_path: Path) -> None:
    sentences = answers(sweep(tmp_path, matrix(tmp_path, seeds=(0, 1), selectivity=selectivity)))[ORDER]
    # The value and interval of test_effects: 8 points, ± 12.7062 standard errors of 1 point. 5 of 8
    # outcomes × 7 effects are found, so that a further one would be at p ≤ 0.05 · 6/56: |t| > 118.8 with two seeds. In
    # four of five repetitions t = (Z + δ)/|Z'| exceeds that for δ = 152, since |Z'| < 1.2816 in as many.
    assert sentences[0].startswith(
        "No effect of 150 points or more on topic selectivity detected: topic less shuffled is +8 [−5, +21] points (p = "
    )


def test_a_small_p_without_a_small_q_is_no_effect() -> None:
    row = {
        "outcome": "selectivity",
        "value": 0.02,
        "ci_low": 0.01,
        "ci_high": 0.03,
        "p": 0.02,
        "n": 3,
        "detectable": 0.035,
    }
    metric = Metric(meaning="", label="selectivity", unit="points", scale=100, digits=2)
    assert verdict({**row, "q": 0.04}, lambda name: metric) == "Effect on selectivity"
    assert would_be_detected({**row, "q": 0.04}, metric) == ""
    # The interval excludes 0, so that "not detected" alone would contradict it.
    missed = {**row, "q": 0.06}
    limit = "No effect of 3.5 points or more on selectivity"
    assert verdict(missed, lambda name: metric) == f"{limit} found after correction for all outcomes"
    corrected = " (not found after correction for all outcomes; 3.5 points would be detected)"
    assert would_be_detected(missed, metric) == corrected
    within = {**missed, "ci_low": -0.01}
    assert verdict(within, lambda name: metric) == f"{limit} detected"
    assert would_be_detected(within, metric) == " (3.5 points would be detected)"


def test_any_swept_key_is_asked_about(tmp_path: Path) -> None:
    level = {1: 0.1, 2: 0.13, 8: 0.19}
    entries = []
    for layers, seed in itertools.product(level, (0, 1, 2)):
        values = {"selectivity": measured(level[layers] + 0.0001 * seed * layers)}
        entry = run(tmp_path / str(layers), seed=seed, values=values, settings={"model": {"num_layers": layers}})
        entry["folder"] = f"{layers}/{entry['name']}"
        entry["name"] = f"{entry['name']}_{layers}"
        entry["factors"] = {**entry["factors"], "model.num_layers": layers}
        entries.append(entry)
    by_question = answers(sweep(tmp_path, entries))
    sentences = by_question["Does model.num_layers matter?"]
    assert sentences[0].startswith("Effect on topic selectivity: layers 2 less layers 1 is +3.010 [")
    assert sentences[0].endswith("), 3 seeds.")
    slope = next(text for text in sentences if "a doubling of layers" in text)
    assert slope.startswith("Effect on topic selectivity: the change with a doubling of layers is +3.02 [")


def test_a_hole_in_the_design_is_said_once(tmp_path: Path) -> None:
    entries = matrix(tmp_path)[:-1]
    sentences = answers(sweep(tmp_path, entries))[ORDER]
    contrast = "Topic less shuffled, averaged over the other factors,"
    assert sentences == [
        f"{contrast} is absent for every outcome: no seed has runs of all 8 combinations of levels (seeds: 0)."
    ]


def test_what_selecting_is_worth_is_said_once_for_all_corpora(tmp_path: Path) -> None:
    question = "What is selecting by topic worth on this corpus?"
    facts = {
        **{"selection_worth_nats": 0.3, "selection_worth_second_half_nats": 0.25, "floor_nats": 2.0},
        **{"position_only_nats": 2.3, "speaker_blind_nats": 2.5},
    }

    def sentences_for(*worths: float) -> list[str] | None:
        folder = tmp_path / str(len(worths))
        entries = [run(folder, seed=seed) for seed in range(max(len(worths), 1))]
        for entry, worth in zip(entries, worths, strict=False):
            path = folder / entry["name"] / "manifest.json"
            manifest = json.loads(path.read_text())
            manifest["corpus"]["facts"] |= {**facts, "selection_worth_nats": worth}
            path.write_text(json.dumps(manifest))
        return answers(sweep(folder, entries)).get(question)

    assert sentences_for() is None
    assert sentences_for(0.3) == [
        "Selecting by topic is worth 0.300 nats a token, 0.250 on the second half of a sequence: the best weighting of "
        "evidence by distance alone 2.300 and exact inference that does not know who speaks 2.500, the exact floor "
        "2.000. A predictor gains this; it does not follow that attention must select for it."
    ]
    several = sentences_for(0.03, 0.05)
    assert several is not None and "is worth 0.040 nats a token (means over 2 corpora)" in several[0]
    assert "contrasts of selectivity mean little" in several[0]
    # Another kind of corpus, such as one with hidden speakers, has other lines and a sentence of its own.
    entries = [run(tmp_path / "kinds", seed=seed) for seed in range(2)]
    for entry, left_out in zip(entries, ("", "speaker_blind_nats"), strict=True):
        path = tmp_path / "kinds" / entry["name"] / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["corpus"]["facts"] |= {name: value for name, value in facts.items() if name != left_out}
        path.write_text(json.dumps(manifest))
    of_kinds = answers(sweep(tmp_path / "kinds", entries))[question]
    assert ["does not know who speaks" in sentence for sentence in of_kinds] == [True, False]
    earlier = "What selecting by topic is worth is not known: no line knows who speaks."
    assert worth_sentence([{"selection_worth_absent": "no line knows who speaks"}]) == earlier
    nothing = "Selecting by topic is worth nothing on this corpus: no sequence has tokens of two topics."
    assert worth_sentence([NOTHING_TO_SELECT]) == nothing


def of_topics(folder: Path, levels: Mapping[int, Mapping[str, Any]], seeds: Sequence[int] = (0, 1)) -> Path:
    """A sweep over data.num_topics; `levels` gives, by number of topics, the facts of its corpora and scalars."""
    entries = []
    for topics, seed in itertools.product(levels, seeds):
        place = folder / f"topics{topics}"
        settings = {"data": {"seed": seed, "num_topics": topics}}
        values = {name: measured(v + 0.001 * seed) for name, v in levels[topics].get("values", {}).items()}
        entry = run(place, seed=seed, settings=settings, values=values | levels[topics].get("lines", {}))
        path = place / entry["name"] / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["stages"]["corpus"]["key"] += f" {topics}"
        manifest["corpus"]["facts"] |= levels[topics].get("facts", {})
        path.write_text(json.dumps(manifest))
        entry["folder"], entry["name"] = f"topics{topics}/{entry['name']}", f"{entry['name']}_{topics}"
        entry["factors"] = {**entry["factors"], "data.num_topics": topics}
        entries.append(entry)
    return sweep(folder, entries)


def test_the_worth_of_selecting_is_given_for_each_setting_of_the_data(tmp_path: Path) -> None:
    def facts(worth: float) -> dict[str, dict[str, float]]:
        lines = {"selection_worth_nats": worth, "selection_worth_second_half_nats": worth, "floor_nats": 2.0}
        return {"facts": {**lines, "position_only_nats": 2.0 + worth}}

    lead, two, four = answers(of_topics(tmp_path, {2: facts(0.107), 4: facts(0.218)}))[WORTH]
    assert lead == (
        "What selecting by topic is worth depends on the data: 0.107 nats a token with topics 2 and 0.218 nats a token "
        "with topics 4."
    )
    assert two.startswith("topics 2: Selecting by topic is worth 0.107 nats a token (means over 2 corpora), 0.107 on")
    assert four.startswith("topics 4: Selecting by topic is worth 0.218 nats a token (means over 2 corpora), 0.218 on")
    assert "0.162" not in " ".join((lead, two, four))  # the mean over both, which is the worth on neither
    nothing, without = (
        answers(of_topics(tmp_path / "one", {1: {"facts": NOTHING_TO_SELECT}, 2: facts(0.107)}))[WORTH],
        answers(of_topics(tmp_path / "none", {1: {"facts": NOTHING_TO_SELECT}, 2: {}}))[WORTH],
    )
    assert nothing[0] == two and nothing[1] == without[0]
    assert without == [
        "topics 1: Selecting by topic is worth nothing on this corpus: no sequence has tokens of two topics."
    ]


def test_losses_on_different_data_stand_beside_their_floors(tmp_path: Path) -> None:
    def level(loss: float, floor: float | None) -> dict[str, dict[str, Any]]:
        return {"values": {"loss_nats": loss}, "lines": {"floor_nats": floor}}

    question, note = (
        "Does data.num_topics matter?",
        "The exact floors of these data differ too ({}): compare losses above",
    )
    (apart,) = [
        s for s in answers(of_topics(tmp_path, {2: level(2.4, 2.0), 4: level(2.6, 2.15)}))[question] if "floor" in s
    ]
    assert "held-out loss (" in apart or "held-out loss +" in apart
    assert apart.endswith(note.format("2.000 with topics 2 and 2.150 with topics 4") + " the floor.")
    alike = answers(of_topics(tmp_path / "alike", {2: level(2.4, 2.0), 4: level(2.6, 2.0)}))[question]
    assert "held-out loss" in " ".join(alike) and "floor" not in " ".join(alike)
    unknown = answers(of_topics(tmp_path / "unknown", {2: level(2.4, 2.0), 4: level(2.6, None)}))[question]
    assert note.format("2.000 with topics 2 and unknown with topics 4") in " ".join(unknown)
    gone = answers(of_topics(tmp_path / "gone", {2: {"lines": {"loss_nats": None}}, 4: level(2.6, 2.15)}))[question]
    assert "floor" not in " ".join(gone)


def test_plateau_left_and_not_left(tmp_path: Path) -> None:
    # below the plateau at 3, and its interval is not
    stuck = {"loss_nats": measured(2.99, 0.02, null=4.0, n=256), "gap_closed": measured(0.49, n=256)}
    entries = [run(tmp_path, ordering="shuffled"), run(tmp_path, ordering="topic", values=stuck)]
    sentences = answers(sweep(tmp_path, entries))["Did the models learn?"]
    assert "1 of 1 shuffled and 0 of 1 topic-ordered ones left the topic-blind plateau" in sentences[0]
    # Held-out losses 3.2 at step 100 and 2.9 at 150; the mixture's is 3.
    assert "shuffled: ended at 2.400 [2.390, 2.410] nats, having closed 80.0 [79.0, 81.0] % of the gap" in sentences[1]
    assert "(256 sequences); below the plateau at 3.000 nats for good since between steps 100 and 150" in sentences[1]
    assert "not clear of the plateau at 3.000 nats" in sentences[2]


def test_trainings_of_one_order_are_counted_without_its_name(tmp_path: Path) -> None:
    # below the plateau at 3, and its interval is not
    stuck = {"loss_nats": measured(2.99, 0.02, null=4.0, n=256), "gap_closed": measured(0.49, n=256)}
    entries = [run(tmp_path, ordering="shuffled"), run(tmp_path, ordering="shuffled", seed=1, values=stuck)]
    question, end = (
        "Did the models learn?",
        "the topic-blind plateau, the loss of the best bigram that does not know the topic.",
    )
    assert answers(sweep(tmp_path, entries))[question][0] == f"1 of 2 trainings left {end}"
    assert answers(sweep(tmp_path, entries[:1]))[question][0] == f"The training left {end}"
    assert answers(sweep(tmp_path, entries[1:]))[question][0] == f"The training did not leave {end}"


def test_without_an_exact_law_losses_stand_beside_simple_references(tmp_path: Path) -> None:
    text = {"mixture_nats": None, "floor_nats": None, "gap_closed": {"reason": "no exact law"}, "bigram_nats": 2.8}
    sentences = answers(sweep(tmp_path, [run(tmp_path, values=text)]))["Did the models learn?"]
    assert "gap" not in sentences[1] and "random 4.000, bigram 2.800" in sentences[1]


def test_recovery_names_every_arm(tmp_path: Path) -> None:
    sentences = answers(sweep(tmp_path, [run(tmp_path), run(tmp_path, position="drope")]))[
        "Did the DroPE arms recover?"
    ]
    assert sentences[0].startswith("0 of 1 DroPE arm recovered to within 0.05 nats")
    assert "damaged models" in sentences[0]
    assert (
        sentences[1]
        == "DroPE: 2.400 nats with RoPE, 3.100 right after the drop, 2.500 after 8 recalibration steps: not recovered."
    )


def test_recovery_names_arms_left_out_the_controls_drift_and_the_bound(tmp_path: Path) -> None:
    def recalibrated(last: float, until: bool) -> dict[str, Any]:
        facts = {"steps": 8, "val_loss_nats": {"0": 3.1, "8": last}, "parent_loss_nats": 2.4, "recovered": False}
        return {"recalibration": {**facts, "recovered_within_nats": 0.05, "until_recovered": until}}

    entries = [
        run(tmp_path),
        run(tmp_path, position="drope", values=recalibrated(2.6, True)),
        run(tmp_path, position="rope_control", values=recalibrated(2.425, False)),
        run(tmp_path, position="nope"),
    ]
    sentences = answers(sweep(tmp_path, entries))["Did the DroPE arms recover?"]
    assert "DroPE did not within as many steps as training had, and no effect includes them" in sentences[0]
    assert "RoPE-control: +0.025 nats after the same training with RoPE kept." in sentences
    assert any(text.startswith("NoPE: 2.400") and "a bound on what an arm can reach" in text for text in sentences)


@pytest.mark.parametrize("with_control", [True, False])
def test_drope_is_held_against_equal_training_where_there_is_such_an_arm(tmp_path: Path, with_control: bool) -> None:
    positions = ("rope", "drope", "rope_control") if with_control else ("rope", "drope")
    facts = {"steps": 8, "val_loss_nats": {"0": 2.4, "8": 2.39}, "parent_loss_nats": 2.4, "recovered": True}
    control = {"recalibration": facts, "recovered": True}
    runs = [run(tmp_path, position=p, values=control if p == "rope_control" else None) for p in positions]
    by_question = answers(sweep(tmp_path, runs))
    asked = by_question["Does dropping positions (DroPE) matter?"]
    assert any(text.startswith("DroPE less RoPE-control: ") for text in asked) == with_control
    # The usual pair comes first, with the warning that one seed has no interval.
    assert asked[0].startswith(f"{ONE_SEED} DroPE less RoPE: ")
    assert any("is not in this sweep" in text for text in by_question["Did the DroPE arms recover?"]) != with_control


def test_an_interaction_is_taken_apart_by_simple_effects(tmp_path: Path) -> None:
    def interacting(seed: int, ordering: str, position: str, **_: Any) -> float:
        both = ordering == "topic" and position == "drope"
        return 0.1 + 0.08 * both + 0.0002 * seed * (ordering == "topic") + 0.0001 * seed * both

    by_question = answers(sweep(tmp_path, matrix(tmp_path, seeds=(0, 1, 2), selectivity=interacting)))
    head, *clear = by_question["Do the factors interact?"]
    # The other interactions on selectivity do not differ between seeds.
    bound = "On topic selectivity each of 0 points or more would be detected."
    assert head == f"1 of 32 interactions on 8 outcomes have q < 0.05 (3 seeds). {bound}"
    (text,) = clear
    assert text.startswith(
        "topic order × DroPE: topic selectivity +4.005 [+3.993, +4.017] points (p < 0.001, q < 0.001)"
    )
    # Each factor's effect at both levels of the other, with the q of the family of simple effects.
    assert re.search(r"topic order in RoPE runs \+0\.02 \[−0\.03, \+0\.07\] points \(q = ", text)
    assert "topic order in DroPE runs +8.03 [+7.96, +8.10] points (q " in text
    assert "DroPE in shuffled runs 0.000 [0.000, 0.000] points (q = 1.00; 0 points would be detected)" in text
    assert "DroPE in topic runs +8.010 [+7.985, +8.035] points (q " in text
