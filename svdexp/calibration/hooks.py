"""Forward hooks that feed a layer's inputs to accumulators, one set per distinct input tensor."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from svdexp.calibration.statistics import Accumulator, Statistics, start
from svdexp.errors import UserError
from svdexp.models.structure import Layer


@contextmanager
def input_hooks(model: nn.Module, names: Sequence[str], see: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Call `see(name, input)` whenever one of the named modules runs."""

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, args: see(name, args[0])

    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(hook_of(name))
            stack.callback(handle.remove)
        yield


def shared_inputs(model: nn.Module, names: Sequence[str], forward: Callable[[], object]) -> dict[str, str]:
    """Map each layer to the first layer fed by the very same tensor (q, k, v; gate, up) in one forward pass.

    A layer that did not run, such as an expert without tokens, is its own leader.
    """
    seen: list[tuple[str, torch.Tensor, int]] = []  # holds the tensors, so no memory address is used twice
    leaders: dict[str, str] = {name: name for name in names}

    def see(name: str, x: torch.Tensor) -> None:
        same = (leader for leader, y, version in seen if y is x and version == x._version)
        leader = next(same, None)
        if leader is None:
            seen.append((name, x, x._version))
        else:
            leaders[name] = leader

    with input_hooks(model, names, see):
        forward()
    return leaders


class Collector:
    """Statistics of a set of layers while windows run through the model.

    Attributes:
        window: index of the first window of the batch in progress, for error messages.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer], leaders: dict[str, str], needs: Sequence[str]):
        self.model = model
        self.leaders = {layer.name: leaders[layer.name] for layer in layers}
        self.window = 0
        widths = {layer.name: layer.n for layer in layers}
        self._accumulators: dict[str, dict[str, Accumulator]] = {
            name: start(needs, widths[name], next(model.get_submodule(name).parameters()).device)
            for name in sorted(set(self.leaders.values()))
        }

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Within this context every forward pass is accounted for."""
        with input_hooks(self.model, list(self._accumulators), self._see):
            yield

    def results(self) -> dict[str, Statistics]:
        """Statistics per layer; layers that share an input share the tensors."""
        done = {
            name: {key: accumulator.result() for key, accumulator in group.items()}
            for name, group in self._accumulators.items()
        }
        return {name: done[leader] for name, leader in self.leaders.items()}

    def _see(self, name: str, x: torch.Tensor) -> None:
        finite = torch.isfinite(x)
        if not finite.all():
            inside = int(finite.flatten(1).all(1).int().argmin()) if x.ndim == 3 else 0
            raise UserError(
                f"calibration: the input of {name} is not finite in window {self.window + inside}; "
                "try precision=float32, or look for damaged weights"
            )
        for accumulator in self._accumulators[name].values():
            accumulator.add(x.reshape(-1, x.shape[-1]))
