"""Pictures of what an answer owes to heads and to the tokens of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from headdyn.analysis.answer_lens import AnswerLens
from headdyn.analysis.figure_parts import drawable, head_panel, interval
from headdyn.core.figures import Figure, head_map, interval_plot
from headdyn.core.records import HeadTable


def heads_figure(heads: HeadTable) -> Figure:
    """What heads put into Δ, marked where it is not what other pairs' answers get."""
    panels = [
        head_panel(AnswerLens.metrics, heads, f"answer_{kind}_nats", tested=f"answer_{kind}_excess_nats", centre=0.0)
        for kind in ("direct", "carried")
    ]
    return head_map(
        panels,
        mark="q < 0.05, against other pairs' answers",
        caption="What each head adds to Δ, the logit of the right answer less that of the wrong one: by what it "
        "writes for the output itself, and by all paths. A head that writes for answers whatever the numbers are "
        "adds as much to other pairs' answers; a star marks those that add more or less.",
    )


def tokens_figure(
    rows: Sequence[Mapping[str, Any]], labels: Sequence[str], places: Sequence[str], prompts: str
) -> Figure:
    """What the token at each position puts into Δ, coloured by what the position is."""
    return interval_plot(
        [interval(label, row, place) for row, label, place in zip(rows, labels, places, strict=True)],
        xlabel=f"Δ put there by the token, nats ({prompts})",
        zero_line=True,
        caption="What each token of the prompt adds to Δ, the logit of the right answer less that of the wrong one, "
        "with 95 % intervals over pairs. Hollow diamonds: what the same token adds to the answers of other pairs.",
    )


def token_labels(tokens_NT: np.ndarray, decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The token at each position; where prompts differ, the first one's with an ellipsis."""
    alike_T = (tokens_NT == tokens_NT[:1]).all(0)
    texts = [drawable(decode([token])) for token in tokens_NT[0].tolist()]
    return [text if alike else f"{text} …" for text, alike in zip(texts, alike_T, strict=True)]
