"""What `import svdexp` offers, in whichever order its files are imported."""

import importlib
import pkgutil
import sys
from types import FunctionType, ModuleType

import pytest

import svdexp


def test_compress_is_the_function_however_often_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        monkeypatch.delitem(sys.modules, "svdexp.compress", raising=False)  # as in a new process
        for _ in range(2):
            from svdexp import compress
            from svdexp.compress import compress as by_path

            assert compress is by_path is svdexp.compress
            assert isinstance(compress, FunctionType)
        importlib.import_module("svdexp.compress")
        assert svdexp.compress is compress


def test_names_are_shown_exactly() -> None:
    assert dir(svdexp) == sorted(svdexp.__all__)
    assert set(svdexp.__all__) == svdexp.HOMES.keys() | {"__version__"}
    assert all(getattr(svdexp, name) is not None for name in svdexp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'comprss'"):
        _ = svdexp.comprss


def test_no_command_hides_a_function() -> None:
    importlib.import_module("svdexp.evaluate")
    assert isinstance(svdexp.evaluate, FunctionType)
    from svdexp import evaluate

    assert evaluate is svdexp.evaluate


def test_no_file_hides_what_its_package_offers() -> None:
    packages = [svdexp]
    packages += [importlib.import_module(x.name) for x in pkgutil.walk_packages(svdexp.__path__, "svdexp.") if x.ispkg]
    offered = [(package, name) for package in packages for name in getattr(package, "__all__", ())]
    files = {x.name for package in packages for x in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")}
    alike = [file for package, name in offered if (file := f"{package.__name__}.{name}") in files]
    assert "svdexp.compress" in alike
    for file in alike:
        importlib.import_module(file)
    assert not [(package, name) for package, name in offered if isinstance(getattr(package, name), ModuleType)]
