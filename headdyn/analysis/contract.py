"""What every analysis is: a frozen dataclass of settings, called on a decoder and what it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from headdyn.core.records import Findings, Metric
from headdyn.models.decoder import Decoder


@runtime_checkable
class Analysis(Protocol):
    """One file and one YAML (`_target_`) each; there is no registry, so another package can add its own.

    `rows` is the unit of a row, `needs` what the analysis must be given beside the decoder, `metrics` every metric it
    may put into its table with the range its values lie in. It leaves the decoder unchanged and draws every random
    number from the generator it is given.
    """

    rows: ClassVar[Literal["model", "layer", "head", "split", "order"]]
    needs: ClassVar[frozenset[str]]
    metrics: ClassVar[Mapping[str, Metric]]

    def __call__(self, decoder: Decoder, material: Any, generator: np.random.Generator, /) -> Findings:
        """`material` is what `needs` says: a Corpus, Prompts, or for a series the points of its runs."""
        ...
