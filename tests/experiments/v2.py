"""What the matrix on Wikipedia would cost."""

from tests.experiments.run1 import fragments

__all__ = ["SETTINGS", "fragments"]
SETTINGS = ("500000 articles of",)  # conf/data/wikipedia.yaml
