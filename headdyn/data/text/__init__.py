"""Corpora of real text: read, deduplicated, clustered into topics, tokenised and packed."""
