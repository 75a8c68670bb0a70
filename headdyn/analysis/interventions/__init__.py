"""What is done to heads, and what it does: patching, ablation, reordering."""
