"""The formats that there are: the classes of every file svdexp_FORMAT.py beside this one.

In a checkpoint a file of this name stands for this one. It imports the formats of that checkpoint, each by its name,
because transformers copies the files that it finds imported so; modeling_svdexp.py writes it.
"""

from importlib import import_module
from inspect import isclass
from pathlib import Path

from .svdexp_base import Replacement


def found() -> dict[str, type[Replacement]]:
    """Every format by its kind."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("svdexp_*.py"))
    files = [import_module(f".{name}", __package__) for name in names if name != Path(__file__).stem]
    classes = [value for file in files for value in vars(file).values() if isclass(value)]
    return {value.kind: value for value in classes if issubclass(value, Replacement) and "kind" in vars(value)}


LAYERS = found()
