"""What a series of checkpoints says: when something emerges, how suddenly, and which head is which."""
