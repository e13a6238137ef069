"""Command line: `python -m svdexp.export`; a checkpoint for others to load."""
