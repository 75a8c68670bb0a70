from pathlib import Path

from headdyn.studies import topic_order
from headdyn.sweep.record import SweepRecord
from tests.report.folders import matrix, measured, run, sweep
from tests.sweep.test_effects import selectivity

WITH = "Does topic order leave topic-selective attention with RoPE?"
AFTER = "Does topic order leave topic-selective attention after DroPE?"


def answers(folder: Path) -> dict[str, list[str]]:
    return {s.question: list(s.sentences) for s in topic_order.headlines(SweepRecord.read(folder))}


def test_after_drope_by_both_instruments(tmp_path: Path) -> None:
    sentences = answers(sweep(tmp_path, matrix(tmp_path, selectivity=selectivity)))[AFTER]
    assert sentences[0].endswith(
        "After DroPE, topic-ordered training differs from shuffled in topic selectivity by +13.00 points "
        "(raw attention) and in probe accuracy at the middle layer by 0.0 points (probes)."
    )
    (topic,) = [text for text in sentences if text.startswith("By raw attention, topic")]
    # mha: 0.10 + 0.04 − 0.06 + 0.08 + 0.01; before the drop 0.10 + 0.04 + 0.01. One of the four heads has q < 0.05.
    assert "MHA topic DroPE 17.0 [15.0, 19.0] points, 1 of 4 heads above 0 at q < 0.05 (before the drop 15.00)" in topic
    (probes,) = [text for text in sentences if text.startswith("By probes, shuffled")]
    assert "70.0 [69.0, 71.0] %, best baseline 35.0 %, Bayes ceiling 95.0 %" in probes


def test_instruments_are_compared_alike_where_the_whole_model_was_looked_at(tmp_path: Path) -> None:
    entries = []
    for seed in (0, 1):
        for position, left in (("rope", 0.02), ("drope", 0.01)):
            for ordering, sign in (("shuffled", 0), ("topic", 1)):
                of = {
                    "raw_selectivity_no_self": 0.10 + sign * (3 * left + 0.002 * seed),
                    "rollout_selectivity_no_self": 0.08 + sign * (2 * left + 0.002 * seed),
                    "tensorlens_selectivity_no_self": 0.05 - sign * (left + 0.002 * seed),
                }
                values = {name: measured(value, n=48) for name, value in of.items()}
                entries.append(run(tmp_path, ordering=ordering, position=position, seed=seed, values=values))
    by_question = answers(sweep(tmp_path, entries))
    # Raw attention of two seeds, 3 and 3.2 points: mean 3.1, half-width 12.7062 · 0.1.
    differences = (
        "After DroPE, topic-ordered training differs from shuffled in topic selectivity by +3.1 [+1.8, +4.4] points "
        "(raw attention), +2.1 [+0.8, +3.4] points (attention rollout) and −1.1 [−2.4, +0.2] points (TensorLens)"
    )
    assert differences in by_question[AFTER][0]
    # p is 0.02, 0.03 and 0.06; q over the family of all outcomes is above 0.05. Of its 44 tests 3 are found, so that a
    # further one would be at p ≤ 0.05 · 4/44: t > 140 with two seeds. With a standard error of 0.1 points an effect of 180
    # standard errors exceeds that in four of five repetitions (t = (Z + 180)/|Z'|, |Z'| < 1.28).
    corrected = "(not found after correction for all outcomes; 18 points would be detected)"
    assert by_question[AFTER][0].startswith(
        f"No effect detected by raw attention {corrected}, attention rollout {corrected}, TensorLens (18 points would be "
        "detected) and probes (0 points would be detected). "
    )
    assert "by +6.1 [+4.8, +7.4] points (raw attention)" in by_question[WITH][0]
    assert not any(
        "10.0 [8.0, 12.0]" in text for text in by_question[AFTER]
    )  # selectivity with the own position included
    (lens,) = [text for text in by_question[AFTER] if text.startswith("By TensorLens, topic")]
    assert "s0 4.0 [3.0, 5.0] points (before the drop 3.00)" in lens
    (lens,) = [text for text in by_question[WITH] if text.startswith("By TensorLens, topic")]
    assert "s0 3.0 [2.0, 4.0] points" in lens and "before" not in lens


def test_instruments_are_compared_by_their_difference_within_seeds(tmp_path: Path) -> None:
    """Effects that vary with the seed alike: each has a wide interval that holds the other, their difference has not."""
    entries = []
    for seed in (0, 1, 2):
        for position in ("rope", "drope"):
            for ordering, sign in (("shuffled", 0), ("topic", 1)):
                raw = 0.10 + sign * (0.06 + 0.01 * seed)
                lens = 0.05 + sign * (0.04 + 0.01 * seed + 0.0001 * (seed == 1))
                of = {
                    "raw_selectivity_no_self": raw,
                    "tensorlens_selectivity_no_self": lens,
                    "tensorlens_less_raw_no_self": lens - raw,
                }
                values = {name: measured(value, n=48) for name, value in of.items()}
                entries.append(run(tmp_path, ordering=ordering, position=position, seed=seed, values=values))
    sentences = answers(sweep(tmp_path, entries))[WITH]
    (compared,) = [text for text in sentences if "seed by seed" in text]
    # −2, −1.99 and −2 points: mean −1.997, half-width 4.3027 · 0.0033
    assert compared == (
        "TensorLens' effect less that of raw attention, seed by seed: −1.997 [−2.011, −1.982] points, they differ."
    )


def test_what_could_not_be_measured_is_absent_with_its_reason(tmp_path: Path) -> None:
    gone = {"selectivity": {"reason": "fewer than two topics occur", "n": 128, "unit": "sequence"}}
    entries = [
        run(tmp_path, ordering=o, position=p, values=gone) for o in ("shuffled", "topic") for p in ("rope", "drope")
    ]
    by_question = answers(sweep(tmp_path, entries))
    assert any("By raw attention: absent, fewer than two topics occur" in text for text in by_question[AFTER])
    assert not any(
        "selectivity 0" in text or "selectivity +0" in text for texts in by_question.values() for text in texts
    )


def test_the_page_of_one_seed_says_where_several_are_on_record(tmp_path: Path) -> None:
    asked = "What do several seeds of this matrix show?"
    for name, seeds, preset, words in (
        ("one", (0,), "matrix", ["experiments/matrix/README.md"]),
        ("original", (0,), "matrix", ["experiments/matrix_original/README.md"]),
        ("several", (0, 1), "matrix", None),
        ("other", (0,), "news_matrix", None),
    ):
        protocol = "original" if name == "original" else "corrected"
        jobs = matrix(tmp_path / name, seeds=seeds, protocol=protocol)
        for job in jobs:
            job["factors"]["experiment"] = preset
        sentences = answers(sweep(tmp_path / name, jobs)).get(asked)
        assert (sentences is None) == (words is None), name
        for path in words or ():
            assert path in str(sentences) and (Path(__file__).parents[3] / path).exists()
