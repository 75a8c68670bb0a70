"""Analyses of a whole series of checkpoints: when something emerges, how suddenly, and which head is which."""
