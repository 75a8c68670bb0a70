"""A part of a page, with an anchor to jump to; folded ones show their headline until they are opened."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """`headline` is its one sentence for a reader who opens nothing."""

    anchor: str
    title: str
    html: Markup
    headline: str = ""
    folded: bool = True
