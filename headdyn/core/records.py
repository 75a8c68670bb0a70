"""The results of an analysis: the tidy HeadTable, and the Findings, which are a HeadTable with figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from headdyn.core.numbers import fixed, spelled
from headdyn.core.whole_files import whole_file

if TYPE_CHECKING:
    from headdyn.core.figures import Figure

SCHEMA = pa.schema(
    [
        ("run", pa.string()),  # run folder's name
        ("model", pa.string()),  # what was analysed, e.g. mini_qwen3 or pythia-160m
        ("step", pa.int64()),  # training step of the checkpoint
        ("layer", pa.int32()),  # null: the row describes the whole model
        ("head", pa.int32()),  # null: the row describes the layer (for the residual stream, layer 0 is the embedding)
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("ci_low", pa.float64()),
        ("ci_high", pa.float64()),
        ("null", pa.float64()),  # what chance gives for the same data
        ("p", pa.float64()),
        ("q", pa.float64()),  # Benjamini–Hochberg over the analysis's tests
        ("n", pa.int64()),  # number of independent units
        ("unit", pa.string()),  # what these units are: sequence, pair, head, run
        ("reason", pa.string()),  # why the value is absent; null if it is present
    ]
)


@contextmanager
def _named_if_damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:  # OSError: a byte of the table's metadata has changed
        raise ValueError(f"{path} is damaged, it holds no table ({error}); run its command again") from error


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as .parquet or .csv, whole or not at all."""
    with whole_file(path) as file:
        (pa.csv.write_csv if path.suffix == ".csv" else pq.write_table)(table, file)


class HeadTable:
    """One row per (layer, head, metric), with null, interval and number of independent units (columns: SCHEMA).

    A row without `head` describes its layer; a row without `layer` and `head` describes the model, and such rows are
    the run's summary. Where a number could not be computed, its row has a `reason` in place of a value.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> HeadTable:
        """One row per mapping of column names to values; columns left out are null.

        Raises ValueError for an unknown column, NaN, infinity, or a row with both or neither of value and reason.
        """
        rows = [dict(row) for row in rows]
        for row in rows:
            unknown = set(row) - set(SCHEMA.names)
            if unknown:
                raise ValueError(f"HeadTable has no column {sorted(unknown)}; it has {SCHEMA.names}")
            for name, value in row.items():
                if isinstance(value, float | np.floating) and not math.isfinite(value):
                    raise ValueError(
                        f"{row.get('metric')} at layer {row.get('layer')} head {row.get('head')}: {name}={value}; "
                        "leave the value out and give a reason instead"
                    )
            if (row.get("value") is None) == (row.get("reason") is None):
                raise ValueError(f"a row needs either a value or a reason why it has none: {row}")
        columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
        return cls(pa.table(columns, schema=SCHEMA))

    @classmethod
    def per_head(cls, metric: str, value_LH: np.ndarray, **columns: Any) -> HeadTable:
        """A row for every layer and head. Array columns are [L, H]; scalars (n, unit) hold for all rows.

        A NaN in `value_LH` becomes an absent value with the reason `reason=`; a NaN in another column becomes null.
        """
        layers, heads = np.indices(np.shape(value_LH))
        return cls._from_arrays(metric, layers.ravel(), heads.ravel(), value_LH, columns)

    @classmethod
    def per_layer(cls, metric: str, value_L: np.ndarray, **columns: Any) -> HeadTable:
        """A row for every layer, from layer 0. Columns as in `per_head`, but shaped [L]."""
        layers = np.arange(len(value_L))
        return cls._from_arrays(metric, layers, np.full(len(layers), None), value_L, columns)

    @classmethod
    def whole(cls, metric: str, value: float | None, **columns: Any) -> HeadTable:
        """A single row that describes the model. A value of None or NaN is absent, and needs `reason=`."""
        values = np.array([np.nan if value is None else value], dtype=float)
        return cls._from_arrays(metric, np.array([None]), np.array([None]), values, columns)

    @classmethod
    def _from_arrays(
        cls, metric: str, layers: np.ndarray, heads: np.ndarray, values: np.ndarray, columns: Mapping[str, Any]
    ) -> HeadTable:
        flat = {name: np.ravel(array) for name, array in columns.items() if np.ndim(array)}
        scalars = {name: np.asarray(scalar).item() for name, scalar in columns.items() if not np.ndim(scalar)}
        reason = scalars.pop("reason", None)
        rows = []
        for i, value in enumerate(np.ravel(values)):
            place = {"layer": layers[i], "head": heads[i]}
            row: dict[str, Any] = {"metric": metric}
            row |= {name: None if index is None else int(index) for name, index in place.items()}
            row |= scalars | {name: array[i].item() for name, array in flat.items()}
            row = {name: entry for name, entry in row.items() if not (isinstance(entry, float) and math.isnan(entry))}
            row |= {"value": None, "reason": reason} if math.isnan(value) else {"value": float(value)}
            rows.append(row)
        return cls.from_rows(rows)

    @classmethod
    def concat(cls, tables: Iterable[HeadTable]) -> HeadTable:
        """The rows of all tables, in order."""
        parts = [table.table for table in tables]
        return cls(pa.concat_tables(parts) if parts else SCHEMA.empty_table())

    @classmethod
    def read(cls, path: Path) -> HeadTable:
        """The table that `write` wrote to `path`. Raises ValueError, which names the file, if it is damaged."""
        cls.check(path)
        with _named_if_damaged(path):
            return cls(pq.read_table(path, schema=SCHEMA))

    @classmethod
    def check(cls, path: Path) -> None:
        """Raise ValueError, which names the file and what to do, if it is no table or was cut off.

        Reads only the footer, which is the end of a Parquet file.
        """
        with _named_if_damaged(path):
            pq.read_metadata(path)

    def write(self, path: Path) -> None:
        """Write the table as parquet, whole or not at all."""
        write_table(self.table, path)

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        return (
            f"<HeadTable: {len(self)} rows of {', '.join(sorted(set(self.table['metric'].to_pylist()))) or 'nothing'}>"
        )

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        """Arrow's protocol, by which `polars.DataFrame(heads)` and `pandas.DataFrame.from_arrow(heads)` read it."""
        return self.table.__arrow_c_stream__(requested_schema)

    def rows(self) -> list[dict[str, Any]]:
        """The rows as dictionaries with every column, None where null."""
        return self.table.to_pylist()

    def where(self, **equals: Any) -> HeadTable:
        """The rows whose columns equal the given values; `layer=None` selects the rows without a layer."""
        table = self.table
        for name, value in equals.items():
            table = table.filter(pc.is_null(table[name]) if value is None else pc.equal(table[name], value))
        return HeadTable(table)

    def labelled(self, **constants: Any) -> HeadTable:
        """The table with a column set to one value in all rows, as in `labelled(run=..., model=..., step=...)`."""
        table = self
        for name, value in constants.items():
            table = table._with_column(name, [value] * len(self))
        return table

    def with_q(self) -> HeadTable:
        """The table with Benjamini–Hochberg q-values; all rows that have a p are one family."""
        from headdyn.core.statistics import benjamini_hochberg  # imports scipy, which planning does without

        p = self.table["p"].to_pylist()
        q = iter(benjamini_hochberg(np.array([value for value in p if value is not None])).tolist())
        return self._with_column("q", [None if value is None else next(q) for value in p])

    def _with_column(self, name: str, values: Sequence[Any]) -> HeadTable:
        column = pa.array(values, type=SCHEMA.field(name).type)
        return HeadTable(self.table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column))

    def matrix(self, metric: str, column: str = "value") -> np.ndarray:
        """A metric's column as an array [L, H], NaN where absent. Raises KeyError if no head has a row with it."""
        rows = [row for row in self.where(metric=metric).rows() if row["head"] is not None]
        return self._array(f"head rows of {metric!r}", rows, column)

    def layer_series(self, metric: str, column: str = "value") -> np.ndarray:
        """A metric's column as an array [L], NaN where absent. Raises KeyError if no layer has a row with it."""
        rows = [row for row in self.where(metric=metric, head=None).rows() if row["layer"] is not None]
        return self._array(f"layer rows of {metric!r}", rows, column)

    def _array(self, what: str, rows: Sequence[Mapping[str, Any]], column: str) -> np.ndarray:
        if not rows:
            raise KeyError(f"no {what}; metrics here: {sorted(set(self.table['metric'].to_pylist()))}")
        places = [tuple(row[axis] for axis in ("layer", "head") if row[axis] is not None) for row in rows]
        array = np.full(np.max(places, axis=0) + 1, np.nan)
        for place, row in zip(places, rows, strict=True):
            array[place] = np.nan if row[column] is None else row[column]
        return array

    def summary(self) -> dict[str, dict[str, Any]]:
        """The rows that describe the whole model, by metric: value, ci_low, ci_high, null, p, q, n, unit, reason."""
        columns = ("value", "ci_low", "ci_high", "null", "p", "q", "n", "unit", "reason")
        rows = self.where(layer=None, head=None).rows()
        return {row["metric"]: {name: row[name] for name in columns if row[name] is not None} for row in rows}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What a metric's numbers mean and how they are shown, as the analysis that measures them says.

    `meaning` is a clause for the glossary; `low` and `high` bound the possible values, as recorded. Readers see the
    value times `scale`, in `unit`, with `digits` decimals if no interval decides how many. Sweeps compare runs by the
    metrics with `outcome`, each of which needs a row that describes the whole model.
    """

    meaning: str
    label: str = ""  # name in tables and charts; "" is the metric's own name with spaces for underscores
    low: float = -math.inf
    high: float = math.inf
    unit: str = ""  # after scaling
    scale: float = 1.0
    digits: int = 3
    difference_unit: str = ""  # unit of a difference of two values ("points" for percentages); "" is `unit`
    outcome: bool = False

    @property
    def of_differences(self) -> str:
        """The unit of a difference of two values."""
        return self.difference_unit or self.unit

    def spelled(self, scalar: Mapping[str, Any], *, signed: bool = False) -> str:
        """`59.3 [58.9, 59.7]` in the metric's unit, or a dash; with `signed`, positive values have a plus sign."""
        if scalar.get("value") is not None and scalar.get("ci_low") is None:
            return fixed(self.scale * scalar["value"], self.digits, signed=signed)
        return spelled(scalar, scale=self.scale, signed=signed)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """An analysis's result: its HeadTable, and figures by title.

    `tables` are further tables by name, each saved as a Parquet file of that name.
    """

    table: HeadTable
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, pa.Table] = field(default_factory=dict)


def log_spaced(last: int, count: int) -> tuple[int, ...]:
    """`count` distinct steps from 0 to `last`, as evenly spaced on a log axis as whole numbers allow.

    Raises ValueError if `count` is below 2, or there are fewer than `count` whole numbers from 0 to `last`.
    """
    if count > last + 1 or count < 2:
        raise ValueError(f"{count} log-spaced steps do not fit 0..{last}; ask for 2 to {last + 1}")
    steps: Sequence[int] = [0]
    wanted = count
    while len(steps) < count:
        steps = sorted({0, *np.rint(np.geomspace(1, last, wanted - 1)).astype(int).tolist()})
        wanted += 1
    return (*steps[: count - 1], last)
