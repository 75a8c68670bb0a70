"""What a sweep varies: the factors, their levels in order, and how a reader meets them."""

from __future__ import annotations

from collections.abc import Mapping

# The two levels of each factor, (low, high): an effect is high minus low. Positions have more pairs worth a contrast.
FACTORS: Mapping[str, tuple[str, str]] = {
    "data_ordering": ("shuffled", "topic"),
    "attention": ("mha", "gqa"),
    "position_enc": ("rope", "drope"),
}
NAMES = {"data_ordering": "topic order", "attention": "GQA", "position_enc": "DroPE"}
OTHER_POSITIONS = (("rope_control", "drope"), ("rope", "rope_control"), ("rope", "nope"))
