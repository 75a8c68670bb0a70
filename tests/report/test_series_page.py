import json
from pathlib import Path

from headdyn.report.__main__ import build
from headdyn.report.sweep_page import write_sweep_page
from headdyn.sweep.merge import merge
from headdyn.sweep.record import VERDICT
from tests.report.folders import matrix, sweep
from tests.report.series_folders import STEPS, emerging, followed, run, scalars, series, two_protocols, verdict
from tests.report.test_sweep_page import Text


def text(folder: Path) -> str:
    return Text(write_sweep_page(folder).read_text(encoding="utf-8")).text


def test_the_page_answers_and_shows_nothing_that_was_not_measured(tmp_path: Path) -> None:
    read = text(emerging(tmp_path))
    assert "Yes: even/odd specialisation emerges after step 32 000 and by step 64 000" in read
    for heading in ("When does it emerge?", "Over training", "Checkpoints", "Quality control"):
        assert heading in read
    for absent in (
        "Attention patterns",
        "Topic probes",
        "DroPE",
        "held-out loss",
        "within-topic",
        "why it misleads",
    ):
        assert absent not in read
    assert "absent" not in read.split("Summary")[-1].split("When does it emerge?")[0]


def test_the_summary_has_a_row_a_checkpoint_failed_ones_too(tmp_path: Path) -> None:
    values = [scalars(0.25, 0.25, 0.0), None, scalars(1.0, 0.25, 4.0), scalars(1.0, 0.0, 8.0)]
    entries = [run(tmp_path, step, value) for step, value in zip(STEPS, values, strict=True)]
    own_verdict = verdict(failed={"step32000": "ValueError: the file is cut off"}, excluded={"step1000": "a copy"})
    read = text(series(tmp_path, entries, own_verdict, values))
    summary = read.split("Controls are pairs")[-1].split("counts as emerged when")[0]
    assert (
        "step143000 100 % of training 25 [12, 38] 100 [88, 112] 0 [−12, 12] 100 [88, 112] 1.00 [0.88, 1.12]" in summary
    )
    assert "step32000 22 % of training ValueError: the file is cut off failed" in summary
    assert "step1000 0.7 % of training does not count: a copy" in summary
    assert "2 of 4 checkpoints count" not in read.split("Not finished")[0]


def test_the_verdict_is_a_table_of_both_measures(tmp_path: Path) -> None:
    read = text(emerging(tmp_path))
    assert "counts as emerged when above 0.5 above half of its highest value" in read
    assert "emergence: (last step below, first step above] (32 000, 64 000] (32 000, 64 000]" in read
    assert "class over bootstrap draws early 12 %, mid 88 %, late 0 %, none 0 % early 12 %, mid 88 %" in read
    assert "first step above, 95 % of bootstrap draws 32 000 to 64 000" in read
    assert "pace sudden (probability 75 %)" in read and "units 32 pairs" in read
    assert "rise steps 32 000 to 64 000, 22 % of training, hold 75 % of the rise" in read


def test_what_moves_together_is_described_by_the_few_strongest_correlations(tmp_path: Path) -> None:
    pair = {"one": "strength", "other": "plain_success", "correlation": 0.5, "changes": 9}
    strong = pair | {"other": "strength_nats", "correlation": -0.9}
    weak = [pair | {"correlation": 0.01 * i, "changes": 8} for i in range(8)]
    read = text(emerging(tmp_path, verdict(moving_together=[*weak, pair, strong])))
    rows = read.split("What moves together")[1]
    assert "strength strength of Δ −0.90 9 changes strength nothing patched +0.50 9 changes" in rows
    assert rows.count("9 changes") == 2 and rows.count("8 changes") == 6 and "+0.01 8 changes" not in rows
    assert "One training has no null" in rows
    assert "What moves together" not in text(emerging(tmp_path / "none", verdict(moving_together=[])))


def test_older_records_of_what_moves_together_are_read_without_their_p_and_q(tmp_path: Path) -> None:
    old = {"one": "strength", "other": "plain_success", "correlation": 0.9, "p": 0.0101, "exact": True, "q": 0.0202}
    read = text(emerging(tmp_path, verdict(moving_together=[old | {"changes": 9}])))
    assert "strength nothing patched +0.90 9 changes" in read and "0.010" not in read and "0.020" not in read


def test_the_answer_and_the_primary_curve_stand_before_the_verdict(tmp_path: Path) -> None:
    page = write_sweep_page(emerging(tmp_path)).read_text(encoding="utf-8")
    assert page.count("Yes: even/odd") == 1
    answer, curve, table = (page.index(part) for part in ("Yes: even/odd", "<figure", "counts as emerged when"))
    assert answer < curve < table
    assert (
        "95 % of all splits (chance)" not in page[:curve] and "Of all splits 95 % stay within the band" in page[:table]
    )


def test_weights_are_told_by_hash_and_dtype(tmp_path: Path) -> None:
    assert "step64000 64 000 45 % yes 000000000000 – float32" in text(emerging(tmp_path))


def test_two_protocols_stand_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = emerging(tmp_path / "a"), emerging(tmp_path / "b", verdict(None, None), protocol="original")
    build([one, other], tmp_path / "c")
    read = Text((tmp_path / "c" / "report.html").read_text(encoding="utf-8")).text
    assert "Series side by side" in read
    assert "protocol=corrected (32 000, 64 000], mid (32 000, 64 000], mid 0.33" in read
    assert "protocol=original none, none none, none 1.00" in read


def test_the_page_is_rebuilt_from_the_records_alone(tmp_path: Path) -> None:
    folder = emerging(tmp_path)
    first = write_sweep_page(folder).read_text(encoding="utf-8")
    (folder / "report.html").unlink()
    build([folder], None)
    again = (folder / "report.html").read_text(encoding="utf-8")
    # But for the last line: beside the page there are records now that were not there before.
    assert again.rpartition("<!-- ")[0] == first.rpartition("<!-- ")[0] != ""


def test_checkpoints_share_one_course_in_the_pages_data(tmp_path: Path) -> None:
    html = write_sweep_page(emerging(tmp_path)).read_text(encoding="utf-8")
    heads = html.split('id="heads"')[1].split('<script type="application/json">')[1].split("</script>")[0]
    rows = [row for row in json.loads(heads)["datasets"]["heads"] if row["course"]]
    effect = [row for row in rows if row["metric"] == "head effect nats"]
    assert [row["step"] for row in effect] == list(STEPS) and {row["family"] for row in rows} == {0}
    assert effect[0]["value"][4:] == [0.0, 0.25, 0.5, 0.75]  # of layer 1


def test_a_matrix_has_nothing_of_series(tmp_path: Path) -> None:
    read = text(sweep(tmp_path, matrix(tmp_path)))
    for absent in ("emerge", "Checkpoints", "H1", "checkpoint"):
        assert absent not in read.split("Glossary")[0]


def test_what_a_series_analysis_drew_without_judging_emergence_is_shown(tmp_path: Path) -> None:
    folder = emerging(tmp_path)
    assert "Circuit course" not in text(folder)
    followed(folder)
    read = text(folder)
    for sentence in (
        "Circuit course",
        "2 checkpoints, step 1000 to 143000. step32000 is left out: it fell over.",
        "rank_change −1.25 [−1.50, −1.00] null 0 12 heads last checkpoint less first: rank",
        "absent: no head has a value at both ends",
    ):
        assert sentence in read, sentence
    page = write_sweep_page(folder).read_text(encoding="utf-8")
    assert page.split('id="changes"')[1].split("</details>")[0].count('<div class="chart">') == 1


def test_it_is_shown_alone_and_merged_with_what_tells_series_apart(tmp_path: Path) -> None:
    one, other = two_protocols(tmp_path)
    followed(one)
    followed(other)
    merge([one, other], tmp_path / "c")
    read = text(tmp_path / "c")
    assert "Circuit course: protocol=corrected" in read and "Circuit course: protocol=original" in read
    own_verdict = json.loads((one / VERDICT).read_text(encoding="utf-8"))
    (one / VERDICT).write_text(json.dumps(own_verdict[1:]), encoding="utf-8")
    alone = text(one)
    assert "Circuit course" in alone and "When does it emerge?" not in alone
