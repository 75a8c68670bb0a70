import json

import numpy as np
import pyarrow as pa
import pytest

from headdyn.core.json_files import write_json
from headdyn.core.records import SCHEMA, HeadTable, Metric, log_spaced


def test_per_head_gives_a_row_for_every_head_with_its_columns():
    value = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    table = HeadTable.per_head("share", value, ci_low=value - 0.05, null=0.25, p=value / 10, n=7, unit="sequence")
    assert len(table) == 6
    row = table.where(layer=1, head=2).rows()[0]
    assert row["metric"] == "share" and row["value"] == 0.6
    assert (row["ci_low"], row["p"]) == pytest.approx((0.55, 0.06))
    assert (row["null"], row["n"], row["unit"], row["reason"]) == (0.25, 7, "sequence", None)
    assert row["ci_high"] is None and row["q"] is None and row["run"] is None


def test_a_nan_value_is_absent_with_its_reason_and_keeps_no_figures():
    table = HeadTable.per_head(
        "ratio",
        np.array([[1.5, np.nan]]),
        ci_low=np.array([[1.0, np.nan]]),
        n=3,
        unit="sequence",
        reason="divides by 0",
    )
    there, absent = table.rows()
    assert there["value"] == 1.5 and there["reason"] is None
    assert absent["value"] is None and absent["ci_low"] is None and absent["reason"] == "divides by 0"


def test_a_nan_value_without_a_reason_is_refused():
    with pytest.raises(ValueError, match="either a value or a reason"):
        HeadTable.per_head("ratio", np.array([[np.nan]]))


def test_layer_and_model_rows():
    table = HeadTable.concat(
        [
            HeadTable.per_layer("accuracy", np.array([0.3, 0.9]), p=np.array([0.4, 0.001]), unit="sequence"),
            HeadTable.whole("accuracy", 0.6, ci_low=np.float64(0.5), ci_high=np.asarray(0.7), n=4),
            HeadTable.whole("ceiling", None, reason="no oracle"),
            HeadTable.whole("floor", np.nan, ci_low=np.nan, reason="no floor"),
        ]
    )
    np.testing.assert_array_equal(table.layer_series("accuracy"), [0.3, 0.9])
    assert table.summary() == {
        "accuracy": {"value": 0.6, "ci_low": 0.5, "ci_high": 0.7, "n": 4},
        "ceiling": {"reason": "no oracle"},
        "floor": {"reason": "no floor"},
    }
    assert len(table.where(layer=None)) == 3 and len(table.where(metric="accuracy", head=None)) == 3


def test_whole_refuses_a_missing_value_without_a_reason():
    with pytest.raises(ValueError, match="either a value or a reason"):
        HeadTable.whole("x", None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"metric": "x", "value": 1.0, "stderr": 0.1}, "no column \\['stderr'\\]"),
        ({"metric": "x", "value": float("inf"), "layer": 2, "head": 3}, "x at layer 2 head 3: value=inf"),
        ({"metric": "x", "value": 1.0, "null": float("nan")}, "null=nan; leave the value out"),
        ({"metric": "x"}, "either a value or a reason"),
        ({"metric": "x", "value": 1.0, "reason": "both"}, "either a value or a reason"),
    ],
)
def test_rows_that_say_nothing_or_nonsense_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        HeadTable.from_rows([row])


def test_matrix_has_nan_where_absent_and_names_the_metrics_it_has():
    table = HeadTable.per_head("share", np.array([[0.1, np.nan], [0.3, 0.4]]), reason="none", null=0.2)
    np.testing.assert_array_equal(table.matrix("share"), [[0.1, np.nan], [0.3, 0.4]])
    np.testing.assert_array_equal(table.matrix("share", "null"), [[0.2, 0.2], [0.2, 0.2]])
    with pytest.raises(KeyError, match="no head rows of 'mass'; metrics here: \\['share'\\]"):
        table.matrix("mass")
    with pytest.raises(KeyError, match="no layer rows"):
        table.layer_series("share")


def test_q_values_are_one_family_over_all_rows_with_a_p():
    p = np.array([[0.01, 0.02, np.nan]])
    other = HeadTable.whole("b", 1.0, p=0.9)
    table = HeadTable.concat([HeadTable.per_head("a", np.zeros((1, 3)), p=p), other]).with_q()
    np.testing.assert_allclose(table.matrix("a", "q"), [[0.03, 0.03, np.nan]])  # of three tests, not of two
    assert table.summary()["b"]["q"] == pytest.approx(0.9)
    assert table.with_q().rows() == table.rows()
    alone = HeadTable.per_head("a", np.zeros((1, 3)), p=p).with_q().matrix("a", "q")
    assert not np.allclose(alone, table.matrix("a", "q"), equal_nan=True)


def test_where_matches_nothing_where_a_column_is_null():
    table = HeadTable.from_rows([{"metric": "x", "value": 1.0, "layer": 0}, {"metric": "x", "value": 2.0}])
    assert [row["value"] for row in table.where(layer=0).rows()] == [1.0]
    assert [row["value"] for row in table.where(layer=None).rows()] == [2.0]
    assert len(table.where()) == 2 and len(table.where(metric="y")) == 0


def test_a_table_survives_parquet_with_its_labels(tmp_path):
    table = HeadTable.per_head("share", np.array([[0.1, 0.2]]), n=3).labelled(run="r", model="m", step=100)
    table.write(tmp_path / "heads.parquet")
    again = HeadTable.read(tmp_path / "heads.parquet")
    assert again.rows() == table.rows() and again.table.schema == SCHEMA
    assert {row["step"] for row in again.rows()} == {100}


def test_concat_of_nothing_is_an_empty_table():
    assert len(HeadTable.concat([])) == 0 and HeadTable.concat([]).table.schema == SCHEMA
    assert len(HeadTable.concat([]).with_q()) == 0


def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "heads.parquet"
    HeadTable.whole("share", 0.5).write(path)

    def fail(table, where):
        where.write_bytes(b"PAR1 cut off")
        raise OSError("no space left on device")

    monkeypatch.setattr("headdyn.core.records.pq.write_table", fail)
    with pytest.raises(OSError, match="no space"):
        HeadTable.whole("share", 0.7).write(path)
    assert HeadTable.read(path).rows()[0]["value"] == 0.5


def test_write_json_leaves_the_old_file_when_the_new_content_cannot_be_written(tmp_path):
    path = tmp_path / "facts.json"
    write_json(path, {"ä": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"x": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ä": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["facts.json"]


@pytest.mark.parametrize(("last", "count"), [(800, 16), (10, 11), (1, 2), (143_000, 154)])
def test_log_spaced_steps_are_distinct_from_0_to_the_last(last, count):
    steps = log_spaced(last, count)
    assert len(steps) == count and steps[0] == 0 and steps[-1] == last
    assert list(steps) == sorted(set(steps))


def test_log_spaced_refuses_more_steps_than_there_are():
    with pytest.raises(ValueError, match="do not fit 0"):
        log_spaced(10, 12)


def test_the_schema_is_the_one_the_reports_read():
    names = "run model step layer head metric value ci_low ci_high null p q n unit reason"
    assert " ".join(SCHEMA.names) == names and SCHEMA.field("value").type == pa.float64()


def test_a_changed_byte_in_a_tables_own_description_is_named(tmp_path):
    path = tmp_path / "heads.parquet"
    HeadTable.whole("loss", 1.0, n=3, unit="sequence").write(path)
    content, named = path.read_bytes(), 0
    for place in range(len(content) - 300, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            HeadTable.read(path)  # a byte may be one that changes nothing
        except ValueError as error:
            named += "heads.parquet" in str(error)
    assert named > 4


def test_a_metrics_value_has_a_plus_only_where_it_is_asked_for():
    metric, scalar = Metric(meaning="a share"), {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    assert metric.spelled(scalar) == "0.50 [0.40, 0.60]"
    assert metric.spelled(scalar, signed=True) == "+0.50 [+0.40, +0.60]"
