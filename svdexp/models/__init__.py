"""Loading, structure, the low-rank layer, and checkpoints."""
