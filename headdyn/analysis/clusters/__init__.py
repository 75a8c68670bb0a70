"""Groups of heads: how they are found, and what chance gives."""

CIRCUITS = ("qk", "ov")
# What heads are clustered by.
KINDS = {"qk": "QK circuits", "ov": "OV circuits", "behaviour": "effects under mean-ablation"}
