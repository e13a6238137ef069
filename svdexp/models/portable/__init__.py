"""The two files that travel with every checkpoint, so that transformers loads it where svdexp is not installed."""
