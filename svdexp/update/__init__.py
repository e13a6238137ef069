"""Repair of the factors after truncation."""

from svdexp.update.refit import RefitOutput, Update

__all__ = ["RefitOutput", "Update"]
