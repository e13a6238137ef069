"""Feeds layers' inputs and output gradients to accumulators while windows run through the model."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from svdexp.calibration.statistics import GRADIENT_STATISTICS, INPUT_STATISTICS, Statistic, Statistics
from svdexp.models.hooks import Modules, gradient_hooks, input_hooks
from svdexp.models.matrices import Matrix, layers_of
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes


def shared_inputs(layers: Modules, forward: Callable[[], object]) -> dict[str, str]:
    """Map each layer to the first layer fed by the very same tensors (q, k, v; gate, up) in one forward pass.

    A layer that runs several times must share all of its inputs. One that did not run, such as an expert without
    tokens, is its own leader.
    """
    seen: list[tuple[torch.Tensor, int]] = []  # holds the tensors, so no memory address is used twice
    inputs: dict[str, tuple[int, ...]] = dict.fromkeys(layers, ())

    def see(name: str, x: torch.Tensor) -> None:
        same = (index for index, (y, version) in enumerate(seen) if y is x and version == x._version)
        index = next(same, len(seen))
        if index == len(seen):
            seen.append((x, x._version))
        inputs[name] += (index,)

    with input_hooks(layers, see):
        forward()
    first: dict[tuple[int, ...], str] = {}
    return {name: first.setdefault(numbers, name) if numbers else name for name, numbers in inputs.items()}


class Collector:
    """Statistics of a set of layers while windows run through the model.

    Attributes:
        window: index of the first window of the batch in progress, for error messages.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Matrix], leaders: dict[str, str], needs: Sequence[str]):
        modules = layers_of(model, layers)
        self.leaders = {layer.name: leaders[layer.name] for layer in layers}
        self.window = 0
        shapes = {layer.name: (layer.m, layer.n) for layer in layers}
        device = {name: next(layer.parameters()).device for name, layer in modules.items()}
        self._inputs = {
            leader: {need: INPUT_STATISTICS[need](shapes[leader][1], device[leader]) for need in needs_of_inputs(needs)}
            for leader in dict.fromkeys(self.leaders.values())
        }
        self._gradients = {
            name: {need: GRADIENT_STATISTICS[need](*shape, device[name]) for need in needs_of_gradients(needs)}
            for name, shape in shapes.items()
        }
        self._inputs_in_backward = any(GRADIENT_STATISTICS[need].needs_inputs for need in needs_of_gradients(needs))
        self._fed = {name: modules[name] for name in self._inputs} if needs_of_inputs(needs) else {}
        self._reached = modules if needs_of_gradients(needs) else {}

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Within this context every forward, and every backward, pass is accounted for."""
        with (
            input_hooks(self._fed, self._see_input),
            gradient_hooks(self._reached, self._see_gradient, self._inputs_in_backward),
        ):
            yield

    def pool(self, processes: Processes) -> None:
        """Add to every statistic what the other processes have seen; all of them must call this."""
        statistics: list[Statistic] = [one for part in self._inputs.values() for one in part.values()]
        statistics += [one for part in self._gradients.values() for one in part.values()]
        for statistic in statistics:
            statistic.pool(processes)

    def results(self) -> dict[str, Statistics]:
        """Statistics per layer, once; layers that share an input share the tensors of its statistics."""
        inputs = {name: _emptied(group) for name, group in self._inputs.items()}
        return {name: inputs[leader] | _emptied(self._gradients[name]) for name, leader in self.leaders.items()}

    def _see_input(self, name: str, x: torch.Tensor) -> None:
        self._require_finite(x, f"the input of {name}")
        # Detached: where gradients are on, a sum would otherwise hold on to every window's activations.
        rows = x.detach().reshape(-1, x.shape[-1])
        for statistic in self._inputs[name].values():
            statistic.add(rows)

    def _see_gradient(self, name: str, x: torch.Tensor | None, g: torch.Tensor) -> None:
        self._require_finite(g, f"the gradient at the output of {name}")
        # an expert sees the tokens of its batch as one (tokens, n) matrix
        x = x if x is None or x.ndim == 3 else x[None]
        for statistic in self._gradients[name].values():
            statistic.add(x, g if g.ndim == 3 else g[None])

    def _require_finite(self, values: torch.Tensor, what: str) -> None:
        finite = torch.isfinite(values)
        if not finite.all():
            inside = int(finite.flatten(1).all(1).int().argmin()) if values.ndim == 3 else 0
            raise UserError(
                f"calibration: {what} is not finite in window {self.window + inside}; "
                "try precision=float32, or look for damaged weights"
            )


def _emptied(group: MutableMapping[str, Any]) -> dict[str, torch.Tensor]:
    """Results of a layer's statistics, each sum let go before the next result is made: not all are held twice."""
    return {key: group.pop(key).result() for key in list(group)}


def needs_of_inputs(needs: Sequence[str]) -> list[str]:
    """The statistics that a forward pass yields."""
    return [need for need in needs if need in INPUT_STATISTICS]


def needs_of_gradients(needs: Sequence[str]) -> list[str]:
    """The statistics that take a backward pass."""
    return [need for need in needs if need in GRADIENT_STATISTICS]
