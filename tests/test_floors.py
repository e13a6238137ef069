"""The floors of docs/architecture.md: a room imports from rooms below its own floor, and from no other."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "svdexp"


def module_of(path: Path) -> str:
    """The dotted name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(module: str) -> Iterator[str]:
    """The modules of svdexp that `module` imports anywhere in its text, in functions and for types as well."""
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            package = ".".join([*module.split(".")[: -node.level], ""]) if node.level else ""  # of portable files
            for alias in node.names:
                inner = f"{package}{node.module}.{alias.name}"
                yield inner if inner in modules() else f"{package}{node.module}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@cache
def graph() -> dict[str, set[str]]:
    """Module → the modules that it imports."""
    return {module: set(imported(module)) & modules().keys() - {module} for module in modules()}


def room_of(module: str) -> str:
    """A folder of the package, or a file at its top."""
    return module.split(".")[1] if "." in module else "__init__"


def floors() -> list[list[str]]:
    """The picture in docs/architecture.md, from the top."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    picture = text.partition("<!-- floors -->\n\n")[2].partition("\n\n")[0]
    return [line.split("  ")[0].split() for line in picture.replace("    ", "", 1).split("\n    ")]


def test_the_picture_has_every_room_once() -> None:
    drawn = [room for floor in floors() for room in floor]
    assert sorted(drawn) == sorted({room_of(module) for module in modules()})


@pytest.mark.parametrize("room", sorted({room_of(module) for module in modules()}))
def test_arrows_run_down(room: str) -> None:
    height = {name: -index for index, floor in enumerate(floors()) for name in floor}
    up = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in others
        if room_of(module) == room != room_of(other) and height[room_of(other)] >= height[room]
    ]
    assert not up


def test_no_circle_inside_a_room() -> None:
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))
