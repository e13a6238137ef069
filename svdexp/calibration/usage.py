"""Which layers work as linear layers, as calibration windows show: others have no statistics, or no use for factors.

A model may multiply by a layer's weight by hand, so that the layer itself never runs; a subclass of nn.Linear may give
something else than W x + b; and a layer may run without gradients where these are needed. Such layers stay dense.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.calibration.dense import forward, forward_and_backward, smallest_model
from svdexp.models.behaviour import frozen
from svdexp.models.hooks import call_hooks, gradient_hooks, output_hooks, submodules
from svdexp.models.matrices import Matrix, layers_of
from svdexp.models.path import BlockPath
from svdexp.models.residency import at_hand, residency_of

# Why a layer stays dense, after its name.
NEVER = "never ran, though what holds them did: their weights are used by hand"
NO_DATA = "were given no token of the calibration text"
OTHER = "give something else than W x + b"
NO_GRADIENT = "run without gradients, which the method's weighting needs"


def left_dense(
    model: PreTrainedModel, layers: Sequence[Matrix], windows: torch.Tensor, gradients: bool
) -> dict[str, list[str]]:
    """Which of `layers` do not work as linear layers with `gradients` or without: reason → names.

    The first of the windows (N, L) decides on all layers but those inside a module that it did not reach, such as an
    expert; for them further ones run, all of them if need be.
    """
    observer = Observer(model, {layer.name: layer for layer in layers})
    if residency_of(model):
        watch_streamed(observer, windows, gradients)
        return faults(observer, gradients)
    run, body = (forward_and_backward, model) if gradients else (forward, smallest_model(model, layers))
    with observer.listen(), frozen(model):
        for window in windows:
            run(body, window[None].to(model.device))
            if not observer.waiting():
                break
    return faults(observer, gradients)


def watch_streamed(observer: "Observer", windows: torch.Tensor, gradients: bool) -> None:
    """Show the observer as many of the windows (N, L) as it needs, block by block.

    Whether a layer is reached by `gradients` does not depend on their values: here they are those of sums.
    """
    model, seen = observer.model, 0
    while seen == 0 or (seen < len(windows) and observer.waiting()):
        path = BlockPath(model, windows[seen : max(2 * seen, 1)])
        for name in path.blocks:
            with at_hand(model, name), observer.listen(), frozen(model), torch.set_grad_enabled(gradients):
                for index, state in enumerate(path.states):
                    output = path.run(name, state.requires_grad_(gradients).clone())
                    if gradients:
                        output.sum().backward()  # type: ignore[no-untyped-call]
                    path.states[index] = output.detach().cpu()
        with observer.listen(), frozen(model), torch.set_grad_enabled(gradients):
            for window, state in zip(windows[seen:], path.states, strict=False):
                logits = path.leave(window[None], state.requires_grad_(gradients)).logits
                if gradients:
                    logits.sum().backward()
        seen += len(path.states)


def faults(observer: "Observer", gradients: bool) -> dict[str, list[str]]:
    """What `left_dense` gives, from what was seen."""
    reasons = {name: observer.fault(name, gradients) for name in observer.matrices}
    return {
        reason: [name for name, found in reasons.items() if found == reason]
        for reason in dict.fromkeys(filter(None, reasons.values()))
    }


@dataclass
class Observer:
    """What was seen of matrices' layers: which ran, which gave something else, and which outputs had a gradient."""

    model: PreTrainedModel
    matrices: Mapping[str, Matrix]
    ran: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)
    reached: set[str] = field(default_factory=set)

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Within this context every pass counts."""
        layers = layers_of(self.model, self.matrices.values())
        around = submodules(self.model, {matrix.holder for matrix in self.matrices.values()} - layers.keys())
        with (
            call_hooks(around, lambda name, *_: self.ran.add(name)),
            output_hooks(layers, self._look),
            gradient_hooks(layers, lambda name, *_: self.reached.add(name), inputs=False),
        ):
            yield

    def waiting(self) -> bool:
        """Whether there are layers that may run yet: what holds them has not."""
        return any(not self.ran & {matrix.name, matrix.holder} for matrix in self.matrices.values())

    def fault(self, name: str, gradients: bool) -> str | None:
        """Why the layer does not work as a linear one, if it does not."""
        alike = self._alike(name)
        if not alike & self.ran:
            return NEVER if self.matrices[name].holder in self.ran else NO_DATA
        if name in self.other:
            return OTHER
        return NO_GRADIENT if gradients and not alike & self.reached else None

    def _alike(self, name: str) -> set[str]:
        """The layers that are used as this one is: itself, or all experts where the one may be chosen next time."""
        rivals = self.matrices[name].rivals
        return {name} if rivals is None else self._stacks[rivals]

    @cached_property
    def _stacks(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for matrix in self.matrices.values():
            if matrix.rivals is not None:
                found.setdefault(matrix.rivals, set()).add(matrix.name)
        return found

    def _look(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.ran.add(name)
        if not self.matrices[name].computes(self.model, args, output):
            self.other.add(name)
