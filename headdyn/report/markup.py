"""Tables and paragraphs of pages, as HTML; text is escaped, Markup is taken as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from headdyn.report.cells import Cell

Text = str | Markup


def table(headings: Sequence[Text], rows: Iterable[Sequence[Any]], *, numbers: Sequence[object] = ()) -> Markup:
    """A table with its headings; a row of a job carries its number, so that the page's filter finds it.

    A heading may hold `heading\\nsmall print`.
    """
    head = Markup("").join(Markup("<th>{}</th>").format(_small(heading)) for heading in headings)
    body = Markup("").join(
        Markup("<tr{}>{}</tr>\n").format(
            Markup(' data-run="{}"').format(numbers[i]) if numbers and numbers[i] != "" else "",
            Markup("").join(map(_cell, row)),
        )
        for i, row in enumerate(rows)
    )
    return Markup('<div class="scroll"><table>\n<thead><tr>{}</tr></thead>\n{}</table></div>\n').format(head, body)


def soft(text: Text) -> Markup:
    """A paragraph that explains what follows."""
    return Markup('<p class="soft">{}</p>\n').format(text)


def heading(text: Text) -> Markup:
    """A heading inside a section; nothing where there is no text."""
    return Markup("<h3>{}</h3>\n").format(text) if text else Markup("")


def gallery(figures: Iterable[Markup]) -> Markup:
    """Figures side by side."""
    return Markup('<div class="charts">{}</div>\n').format(Markup("\n").join(figures))


def facts(entries: Mapping[str, str]) -> Markup:
    """What is so, name by name; those without a text are left out."""
    lines = (Markup("<dt>{}</dt><dd>{}</dd>\n").format(name, text) for name, text in entries.items() if text)
    return Markup('<dl class="facts">{}</dl>\n').format(Markup("").join(lines))


def bullets(sentences: Iterable[Text]) -> Markup:
    """Sentences as a list."""
    return Markup("<ul>{}</ul>\n").format(Markup("").join(Markup("<li>{}</li>\n").format(text) for text in sentences))


def fold(summary: Text, html: Markup) -> Markup:
    """What a click on its summary shows."""
    return Markup("<details><summary>{}</summary>{}</details>\n").format(summary, html)


def _cell(content: Any) -> Markup:
    if not isinstance(content, Cell):
        return Markup("<td>{}</td>").format(_small(content))
    if content.reason:
        return Markup('<td class="cell"><span class="absent">absent: {}</span></td>').format(content.reason)
    lines = (content.interval, content.null, content.note)
    small = Markup("").join(
        Markup("<small{}>{}</small>").format(Markup(' class="null"') if line == content.null else "", line)
        for line in lines
        if line
    )
    return Markup('<td class="cell"><b>{}</b>{}</td>').format(content.value, small)


def _small(text: Any) -> Markup:
    """What stands behind a line break is small print."""
    first, *rest = escape(text).split("\n") if not isinstance(text, Markup) else [text]
    return Markup("{}{}").format(first, Markup("").join(Markup("<small>{}</small>").format(line) for line in rest))
