"""The attention patterns of the heads that have a role in a run as one figure, for its folder, its page and W&B."""

from pathlib import Path

import numpy as np
from safetensors import safe_open

from headdyn.core.figures import Figure
from headdyn.core.pictures import pattern_grid
from headdyn.core.records import HeadTable
from headdyn.report.head_data import heads_by_role

_SEQUENCES = 2  # rows: a role of a head should show on both sequences


def patterns_by_role(table: HeadTable, path: Path) -> Figure:
    """A column for each head with a role, a row for each stored sequence (two at most), with topic boundaries.

    `path` is the run's patterns.safetensors. Without attention statistics no head has a role; head 0.0 is shown then.
    """
    roles: dict[tuple[int, int], list[str]] = {}
    for role, head in (heads_by_role(table) or {"no roles were measured": (0, 0)}).items():
        roles.setdefault(head, []).append(role)
    with safe_open(path, framework="np") as file:
        topics_NT = file.get_tensor("topics")[:_SEQUENCES]
        slices = [file.get_slice(f"pattern.{layer}")[: len(topics_NT), head : head + 1] for layer, head in roles]
    boundaries = [(np.flatnonzero(np.diff(topics_T)) + 1).tolist() for topics_T in topics_NT]
    return pattern_grid(
        np.concatenate(slices, axis=1).astype(np.float32),
        rows=[f"sequence {n}" for n in range(1, len(topics_NT) + 1)],
        columns=[f"{' and '.join(names)}\nlayer {layer}, head {head}" for (layer, head), names in roles.items()],
        boundaries=boundaries,
        title="Attention patterns" + (" (lines: a new topic begins)" if any(boundaries) else ""),
    )
