"""One run, top-down, and what it reads."""
