"""The parts of pages: text, tables and figures, and the one place that turns them into HTML and Markdown."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from headdyn.core.figures import Figure
from headdyn.core.json_files import read_json
from headdyn.core.numbers import ABSENT, decimals, fixed, number, spelled
from headdyn.core.records import Metric


class Heading(str):
    """A heading inside a section; an empty one is left out."""


@dataclass(frozen=True)
class Cell:
    """A number in a table, in parts; `reason` says why a number is absent."""

    value: str = ""
    interval: str = ""
    null: str = ""
    note: str = ""
    reason: str = ""
    half_width: str = ""  # of the interval, for narrow terminals

    def __str__(self) -> str:
        if self.reason:
            return f"absent: {self.reason}"
        return "; ".join(filter(None, (f"{self.value} {self.interval}".strip(), self.null, self.note)))


def cell(scalar: Mapping[str, Any], metric: Metric | None = None, *, signed: bool = False) -> Cell:
    """A recorded scalar in the metric's unit (without a metric, as recorded); without a value, its reason."""
    value, null = scalar.get("value"), scalar.get("null")
    if value is None:
        return Cell(reason=str(scalar.get("reason", "not computed")))
    if isinstance(value, str):
        return Cell(value)
    scale = 1.0 if metric is None else metric.scale
    has_interval = None not in (scalar.get("ci_low"), scalar.get("ci_high"))
    low, high = (scale * scalar[end] for end in ("ci_low", "ci_high")) if has_interval else (0.0, 0.0)
    places = decimals(scale * value, low, high)
    if metric is None:
        text = spelled(scalar) if has_interval else number(value)
        null_text = "" if null is None else "null 0" if null == 0 else f"null {fixed(null, max(3, places))}"
    else:
        text = metric.spelled(scalar, signed=signed)
        null_text = f"null {fixed(scale * null, max(1, metric.digits - has_interval))}" if null else ""
    text, _, interval = text.partition(" [")
    half_width = f"±{fixed((high - low) / 2, places)}" if has_interval else ""
    return Cell(text, interval and f"[{interval}", null_text, half_width=half_width)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Columns are headings, with small print behind a line break. Rows hold text, HTML or cells.

    `runs` gives for each row the numbers of its runs, by which a page's filter hides the row. A dense table writes a
    number, its interval and its null on one line.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    runs: Sequence[object] = ()
    dense: bool = False

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], **options: Any) -> "Table":
        """A table from rows that map columns to entries; `options` are `runs` and `dense`."""
        return cls(columns=list(rows[0]) if rows else (), rows=[list(row.values()) for row in rows], **options)

    def html(self) -> Markup:
        head = Markup("").join(Markup("<th>{}</th>").format(_lines(heading)) for heading in self.columns)
        cells = [Markup("").join(Markup("<td>{}</td>").format(_entry(entry)) for entry in row) for row in self.rows]
        runs = map(_run_attribute, self.runs or [""] * len(cells))
        body = Markup("").join(map(Markup("<tr{}>{}</tr>\n").format, runs, cells))
        dense = Markup(' class="dense"') if self.dense else ""
        table = '<div class="scroll"><table{}>\n<thead><tr>{}</tr></thead>\n{}</table></div>\n'
        return Markup(table).format(dense, head, body)

    def markdown(self) -> str:
        """The table for a file to commit."""
        lines = [[_plain(entry) for entry in row] for row in (self.columns, *self.rows)]
        lines.insert(1, ["---"] * len(self.columns))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


@dataclass(frozen=True)
class Section:
    """A part of a page, with an anchor to jump to; a folded section shows its headline until it is opened.

    A block is an explaining sentence, a Heading, Markup (HTML as it is), a Table, a figure (a Figure, a stored file, or
    a Vega-Lite specification), or a list of blocks that stand side by side. A block that is None is left out.
    """

    anchor: str
    title: str
    blocks: Any
    headline: str = ""
    folded: bool = True

    @property
    def parts(self) -> Sequence[Any]:
        return [self.blocks] if isinstance(self.blocks, str) else self.blocks

    @property
    def html(self) -> Markup:
        return Markup("\n").join(map(html, self.parts))

    def markdown(self) -> str:
        """The texts and tables for a file to commit; figures are files of their own."""
        texts = {Heading: lambda text: f"## {text}\n", str: lambda text: f"{text}\n", Table: Table.markdown}
        return "\n".join(texts[type(block)](block) for block in self.parts if type(block) in texts and block != "")


def html(block: Any) -> Markup:
    """One block as HTML; text is escaped."""
    match block:
        case None | "" | []:
            return Markup("")
        case Markup():
            return block
        case Heading():
            return Markup("<h3>{}</h3>\n").format(block)
        case str():
            return Markup('<p class="soft">{}</p>\n').format(block)
        case Table():
            return block.html()
        case list():
            return Markup('<div class="charts">{}</div>\n').format(Markup("\n").join(map(html, block)))
        case Path() if block.suffix != ".json":  # a picture that an earlier version of headdyn drew
            return Markup('<p><a href="figures/{0}">{0}</a></p>\n').format(block.name)
    return figure_html(read_json(block) if isinstance(block, Path) else block)


def figure_html(figure: Figure | Mapping[str, Any], runs: Sequence[int] = ()) -> Markup:
    """A figure, or its specification, with its caption; hidden where the page's filter shows none of its `runs`."""
    spec = dict(figure.spec() if isinstance(figure, Figure) else figure)
    spec.pop("config", None)  # the page has it once
    caption = Markup("<figcaption>{}</figcaption>").format(spec["description"]) if spec.get("description") else ""
    text = Markup(json.dumps(spec, ensure_ascii=False, allow_nan=False).replace("</", r"<\/"))
    return Markup('<figure{}><div class="chart"></div><script type="application/json">{}</script>{}</figure>').format(
        _run_attribute(" ".join(map(str, runs))), text, caption
    )


def facts(entries: Mapping[str, str]) -> Markup:
    """A list of names with their texts; entries with an empty text are left out."""
    lines = (Markup("<dt>{}</dt><dd>{}</dd>\n").format(name, text) for name, text in entries.items() if text)
    return Markup('<dl class="facts">{}</dl>\n').format(Markup("").join(lines))


def bullets(sentences: Iterable[str]) -> Markup:
    """Sentences as a list."""
    return Markup("<ul>{}</ul>\n").format(Markup("").join(Markup("<li>{}</li>\n").format(text) for text in sentences))


def fold(summary: str, block: Any) -> Markup:
    """A block that a click on its summary shows."""
    return Markup("<details><summary>{}</summary>{}</details>\n").format(summary, html(block))


def marked(word: str, css_class: str = "failed") -> Markup:
    """A word in a CSS class."""
    return Markup('<span class="{}">{}</span>').format(css_class, word)


def _run_attribute(numbers: object) -> Markup:
    """The HTML attribute with run numbers (`0 3 5`) by which the page's filter hides an element; "" without numbers."""
    return Markup("") if numbers == "" else Markup(' data-run="{}"').format(numbers)


def _entry(entry: Any) -> Markup:
    if not isinstance(entry, Cell):
        return _lines(entry)
    if entry.reason:
        return Markup('<span class="absent">absent: {}</span>').format(entry.reason)
    small = Markup("").join(
        Markup("<small{}>{}</small>").format(Markup(' class="null"') if line == entry.null else "", line)
        for line in (entry.interval, entry.null, entry.note)
        if line
    )
    return Markup('<div class="cell"><b>{}</b> {}</div>').format(entry.value, small)


def _lines(text: Any) -> Markup:
    """A text whose lines after the first are small print."""
    first, *rest = escape(text).split("\n") if not isinstance(text, Markup) else [text]
    return Markup("{}{}").format(first, Markup("").join(Markup("<small>{}</small>").format(line) for line in rest))


def _plain(entry: Any) -> str:
    """A heading or an entry of a Markdown table: `label (unit)` for `label\\nunit`."""
    text = entry.striptags() if isinstance(entry, Markup) else str(entry)
    first, *rest = text.replace("|", r"\|").split("\n")
    return f"{first} ({'; '.join(rest)})" if any(rest) else first or ABSENT if isinstance(entry, Cell) else first
