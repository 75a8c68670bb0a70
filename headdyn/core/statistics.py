"""Statistics as pure functions of arrays (science.md §0): numpy and scipy only, every random draw from a generator."""

from __future__ import annotations

import numpy as np


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """Benjamini–Hochberg q-values of one family of p-values, in the shape given.

    q_(i) = min over j ≥ i of m p_(j) / j (Benjamini & Hochberg 1995, step-up form). Rejecting where q ≤ α controls the
    false discovery rate at α under independence and positive dependence.
    Raises ValueError on a p outside 0..1 (NaN included).
    """
    p = np.asarray(p, dtype=float)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p-values must lie in 0..1; got {p[~((p >= 0) & (p <= 1))][:3]}; leave absent ones out")
    flat = p.ravel()
    order = np.argsort(flat)
    scaled = flat[order] * len(flat) / np.arange(1, len(flat) + 1)
    q = np.empty_like(flat)
    q[order] = np.minimum.accumulate(scaled[::-1])[::-1]
    return q.reshape(p.shape)
