"""Which statistics are asked for, of which layers, and which pass yields them."""

from collections.abc import Collection, Iterable, Mapping, Sequence

from svdexp.calibration.statistics import (
    GRADIENT_STATISTICS,
    INPUT_GRADIENT_STATISTICS,
    INPUT_STATISTICS,
    OUTPUT_STATISTICS,
)
from svdexp.models.matrices import Matrix

# Names of statistics: of every layer, or by the layers' names.
Needs = Sequence[str] | Mapping[str, Sequence[str]]


def by_layer(needs: Needs, layers: Iterable[Matrix]) -> dict[str, tuple[str, ...]]:
    """What is asked for of each of `layers`."""
    asked = needs if isinstance(needs, Mapping) else {layer.name: needs for layer in layers}
    return {layer.name: tuple(asked[layer.name]) for layer in layers}


def only(needs: Mapping[str, Sequence[str]], statistics: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The same without what is not among `statistics`."""
    return {name: tuple(need for need in asked if need in statistics) for name, asked in needs.items()}


def distinct(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Every statistic that some layer is asked for, once."""
    return list(dict.fromkeys(need for asked in needs.values() for need in asked))


def of_forward(needs: Iterable[str]) -> list[str]:
    """The statistics that a forward pass yields."""
    return [need for need in needs if need in INPUT_STATISTICS or need in OUTPUT_STATISTICS]


def of_backward(needs: Iterable[str]) -> list[str]:
    """The statistics that take a backward pass."""
    return [need for need in needs if need in GRADIENT_STATISTICS or need in INPUT_GRADIENT_STATISTICS]
