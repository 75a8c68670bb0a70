"""Groups of heads: how they are found, what chance gives, and how the seed studies found theirs."""
