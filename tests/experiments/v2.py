"""What the matrix on Wikipedia would cost."""

from tests.experiments.run1 import fragments

__all__ = ["SETTINGS", "fragments"]
SETTINGS = ("from which 500000 articles",)  # conf/data/wikipedia.yaml
