"""Imported first: nobody looks for garbage while the rest is imported, which stays and would take seconds each time."""

import gc

gc.disable()
