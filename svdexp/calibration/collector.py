"""Feeds what goes into layers and comes out of them, and its gradients, to accumulators while windows run."""

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from svdexp.calibration.experts import lend
from svdexp.calibration.needs import Needs, by_layer, distinct
from svdexp.calibration.statistics import (
    GRADIENT_STATISTICS,
    INPUT_GRADIENT_STATISTICS,
    INPUT_STATISTICS,
    OUTPUT_STATISTICS,
    Statistics,
)
from svdexp.calibration.sums import Sums
from svdexp.models.hooks import Modules, gradient_hooks, input_gradient_hooks, input_hooks, output_hooks
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

    def __init__(self, model: nn.Module, layers: Sequence[Matrix], leaders: dict[str, str], needs: Needs):
        modules, asked = layers_of(model, layers), by_layer(needs, layers)
        self._layers = layers
        self.leaders = {layer.name: leaders[layer.name] for layer in layers}
        self.window = 0
        device = {name: next(chain(layer.parameters(), layer.buffers())).device for name, layer in modules.items()}
        widths = {layer.name: layer.n for layer in layers}
        together = {  # what the layers that share an input want of it
            leader: distinct({name: asked[name] for name in widths if self.leaders[name] == leader})
            for leader in dict.fromkeys(self.leaders.values())
        }
        self._inputs = _accumulators(together, INPUT_STATISTICS, lambda x: (widths[x], device[x]))
        heights = {layer.name: layer.m for layer in layers}
        self._outputs = _accumulators(asked, OUTPUT_STATISTICS, lambda x: (heights[x], device[x]))
        self._gradients = _accumulators(asked, GRADIENT_STATISTICS, lambda x: (heights[x], widths[x], device[x]))
        self._input_gradients = _accumulators(asked, INPUT_GRADIENT_STATISTICS, lambda x: (widths[x], device[x]))
        self._needs, self._modules = asked, modules
        # y with a bias is rounded to the size of both, so there W x is computed once more
        self._biased = {
            layer.name: layer.weight(model)
            for layer in layers
            if layer.name in self._outputs and layer.bias(model) is not None
        }
        self._inputs_in_backward = any(
            GRADIENT_STATISTICS[need].needs_inputs for group in self._gradients.values() for need in group
        )

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Within this context every forward, and every backward, pass is accounted for."""
        fed, giving, reached, returning = (
            {name: self._modules[name] for name in group}
            for group in (self._inputs, self._outputs, self._gradients, self._input_gradients)
        )
        with (
            input_hooks(fed, self._see_input),
            output_hooks(giving, self._see_output),
            gradient_hooks(reached, self._see_gradient, self._inputs_in_backward),
            input_gradient_hooks(returning, self._see_input_gradient),
        ):
            yield

    def pool(self, processes: Processes) -> None:
        """Add to every statistic what the other processes have seen; all of them must call this."""
        for _, _, statistic in self._statistics():
            statistic.pool(processes)

    def sums(self) -> dict[str, dict[str, torch.Tensor]]:
        """What the statistics are made of so far, by block, by name; not copies."""
        found: dict[str, dict[str, torch.Tensor]] = {}
        for block, name, statistic in self._statistics():
            found.setdefault(block, {}).update({f"{name}/{part}": x for part, x in statistic.sums().items()})
        return found

    def resume(self, sums: Sums) -> None:
        """Go on from what `sums` gave."""
        for block, name, statistic in self._statistics():
            statistic.resume({part: sums[block][f"{name}/{part}"] for part in statistic.sums()})

    def results(self) -> dict[str, Statistics]:
        """Statistics per layer, once; layers that share an input share the tensors of its statistics."""
        lend(self._layers, self._inputs, self._gradients)
        shared = {leader: _emptied(group) for leader, group in self._inputs.items()}
        found: dict[str, Statistics] = {}
        for name, leader in self.leaders.items():
            own: dict[str, torch.Tensor] = dict(shared.get(leader, {}))
            for accumulators in (self._outputs, self._gradients, self._input_gradients):
                own |= _emptied(accumulators.get(name, {}))
            found[name] = {need: own[need] for need in self._needs[name]}
        return found

    def _statistics(self) -> Iterator[tuple[str, str, Any]]:
        """Each with its block, and a name that no other has."""
        blocks = {layer.name: layer.group for layer in self._layers}
        for accumulators in (self._inputs, self._outputs, self._gradients, self._input_gradients):
            for layer, group in accumulators.items():
                yield from ((blocks[layer], f"{layer}/{need}", statistic) for need, statistic in group.items())

    def _see_input(self, name: str, x: torch.Tensor) -> None:
        self._require_finite(x, f"the input of {name}")
        # Detached: where gradients are on, a sum would otherwise hold on to every window's activations.
        for statistic in self._inputs[name].values():
            statistic.add(_rows(x))

    def _see_output(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> None:
        y = output
        if name in self._biased:
            y = nn.functional.linear(args[0].detach(), self._biased[name].detach())
        self._require_finite(y, f"the output of {name}")
        for statistic in self._outputs[name].values():
            statistic.add(_rows(y))

    def _see_gradient(self, name: str, x: torch.Tensor | None, g: torch.Tensor) -> None:
        self._require_finite(g, f"the gradient at the output of {name}")
        # an expert sees the tokens of its batch as one (tokens, n) matrix
        x = x if x is None or x.ndim == 3 else x[None]
        for statistic in self._gradients[name].values():
            statistic.add(x, g if g.ndim == 3 else g[None])

    def _see_input_gradient(self, name: str, gradient: torch.Tensor) -> None:
        self._require_finite(gradient, f"the gradient at the input of {name}")
        for statistic in self._input_gradients[name].values():
            statistic.add(_rows(gradient))

    def _require_finite(self, values: torch.Tensor, what: str) -> None:
        inside = first_not_finite(values.detach())
        if inside is not None:
            raise UserError(
                f"calibration: {what} is not finite in window {self.window + inside}; "
                "try precision=float32, or look for damaged weights"
            )


def first_not_finite(values: torch.Tensor) -> int | None:
    """Which of the windows in `values` (windows, tokens, width) is the first to hold a number that is not finite.

    Of (tokens, width), 0 stands for any. Most often the sum, which is read off in one go, says that there is none.
    """
    if math.isfinite(float(values.sum())):
        return None
    finite = torch.isfinite(values)
    if finite.all():  # the sum overflowed
        return None
    return int(finite.flatten(1).all(1).int().argmin()) if values.ndim == 3 else 0


def _rows(values: torch.Tensor) -> torch.Tensor:
    """One row a token, (tokens, width)."""
    return values.detach().reshape(-1, values.shape[-1])


def _accumulators(
    needs: Mapping[str, Sequence[str]], kinds: Mapping[str, Callable[..., Any]], sizes: Callable[[str], tuple[Any, ...]]
) -> dict[str, dict[str, Any]]:
    """By the names of layers that need any, those of `kinds` that they need; `sizes` are what these are made with."""
    made = {name: {need: kinds[need](*sizes(name)) for need in asked if need in kinds} for name, asked in needs.items()}
    return {name: group for name, group in made.items() if group}


def _emptied(group: MutableMapping[str, Any]) -> dict[str, torch.Tensor]:
    """Results of a layer's statistics, each sum let go before the next result is made: not all are held twice."""
    return {key: group.pop(key).result() for key in list(group)}
