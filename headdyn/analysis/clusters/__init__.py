"""Clusters of heads, and what chance gives."""

CIRCUITS = ("qk", "ov")
# The properties that heads are clustered by.
KINDS = {"qk": "QK circuits", "ov": "OV circuits", "behaviour": "effects under mean-ablation"}
# Metrics that are silhouettes, and the value below which there are no groups (Kaufman & Rousseeuw 1990).
SILHOUETTES = frozenset(f"{kind}_{name}" for kind in KINDS for name in ("silhouette", "best_silhouette"))
LEAST_SILHOUETTE = 0.25
