"""`import svdexp.compress` and `from svdexp import compress` are one function: the Python door's."""

from svdexp.door.compress import compress

__all__ = ["compress"]
