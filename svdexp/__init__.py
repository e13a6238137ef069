"""svdexp: SVD-based compression of language models, every method on one protocol.

    import svdexp

    result = svdexp.compress("folder or hub id", method="kron", ratio=0.6)
    result.evaluate("pydoc")
    result.save("smaller")
    model, tokenizer = svdexp.load("smaller")

docs/python.md has the rest. Names are imported on first use, because `python -m svdexp --help` should not wait for
torch. For the same reason transformers is told of svdexp's quantiser when somebody imports transformers.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from svdexp.runtime.afterwards import afterwards
from svdexp.runtime.version import __version__

if TYPE_CHECKING:
    from svdexp.checkpoints.checkpoint import load
    from svdexp.door.compress import compress
    from svdexp.door.evaluate import evaluate
    from svdexp.door.result import Result
    from svdexp.door.tables import methods, read
    from svdexp.runtime.errors import UserError

__all__ = ["Result", "UserError", "__version__", "compress", "evaluate", "load", "methods", "read"]
# Where each of them is found.
HOMES = {
    "Result": "svdexp.door.result",
    "UserError": "svdexp.runtime.errors",
    "compress": "svdexp.door.compress",
    "evaluate": "svdexp.door.evaluate",
    "load": "svdexp.checkpoints.checkpoint",
    "methods": "svdexp.door.tables",
    "read": "svdexp.door.tables",
}


def _register() -> None:
    """After `import svdexp` a checkpoint needs no trust_remote_code: AutoModelForCausalLM.from_pretrained(folder)."""
    import_module("svdexp.checkpoints.quantiser").register()


afterwards("transformers.quantizers.auto", _register)


class _Package(ModuleType):
    """A package that importing a file of it does not change: `svdexp.compress` stays the function."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


if not TYPE_CHECKING:  # which would take any name for one that is there

    def __getattr__(name: str) -> Any:
        if name not in HOMES:
            raise AttributeError(f"module 'svdexp' has no attribute {name!r}")
        return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
