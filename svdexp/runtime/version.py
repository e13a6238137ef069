"""The version, where all floors see it."""

__version__ = "0.1.0"
