"""The line of stages as a function, and what it calls."""
