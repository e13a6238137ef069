"""Interruptible gradient descent."""
