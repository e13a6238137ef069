"""The console script `svdexp`: one name for all commands, and what a shell asks it."""
