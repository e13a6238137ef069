"""What travels with a checkpoint, so that transformers loads it where svdexp is not installed: one file a format."""
