"""The ground: files, processes, progress, what stops a program; nothing here knows a model."""
