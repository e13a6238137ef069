"""svdexp: SVD-based compression of language models, every method on one protocol.

`compress(model, windows, method, ratio)` is the engine and `load(folder)` reads what it saved. Both are
imported on first use, because `python -m svdexp --help` should not wait for torch.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from svdexp.runtime.version import __version__

if TYPE_CHECKING:
    from svdexp.checkpoints.checkpoint import load
    from svdexp.engine.compress import compress

__all__ = ["__version__", "compress", "load"]


class _Package(ModuleType):
    """A package that importing svdexp/compress.py does not change: `svdexp.compress` stays the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "compress":
        from svdexp.engine.compress import compress

        return compress
    if name == "load":
        from svdexp.checkpoints.checkpoint import load

        return load
    raise AttributeError(f"module 'svdexp' has no attribute {name!r}")
