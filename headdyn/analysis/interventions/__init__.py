"""Interventions on heads and their effects: patching, ablation, reordering."""
