"""The Python door: what `import svdexp` offers, for scripts and notebooks. Callers find all else as they left it."""
