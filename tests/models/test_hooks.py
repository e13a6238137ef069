"""Hooks: what each is told, that they are gone afterwards, and that no other file of the package installs any."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from svdexp.models import hooks
from svdexp.models.hooks import (
    call_hooks,
    gradient_hooks,
    input_gradient_hooks,
    input_hooks,
    output_hooks,
    parameter_hook,
    submodules,
)

PACKAGE = Path(hooks.__file__).parents[1]


class Shifted(nn.Module):
    """x → 2 x + shift."""

    def forward(self, x: torch.Tensor, *, shift: float = 0.0) -> torch.Tensor:
        return 2 * x + shift


class Twice(nn.Module):
    """The first part is called by position, the second one by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Shifted(), Shifted()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.b(x=self.a(x), shift=1.0)
        return y


def test_no_other_file_of_the_package_installs_hooks() -> None:
    install = re.compile(r"\bregister_\w*hook")
    found = {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if install.search(path.read_text())}
    assert found == {"models/hooks.py", "models/portable/svdexp_latent.py"}  # which knows nothing of svdexp


def test_calls_are_seen_with_all_their_arguments() -> None:
    model, seen = Twice(), []
    with call_hooks(submodules(model, ["a", "b"]), lambda *call: seen.append(call)):
        model(torch.tensor([3.0]))
    assert seen == [("a", (3.0,), {}), ("b", (), {"x": 6.0, "shift": 1.0})]


def test_inputs_are_those_given_by_position() -> None:
    model, seen = Twice(), []
    with input_hooks(submodules(model, ["a", "b"]), lambda *call: seen.append(call)):
        model(torch.tensor([3.0]))
    assert seen == [("a", 3.0)]


def test_outputs_are_seen_and_may_be_changed() -> None:
    model, seen = Twice(), []

    def see(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor | None:
        seen.append((name, args, kwargs, output.clone()))
        return output + 10 if name == "a" else None

    with output_hooks(submodules(model, ["a", "b"]), see):
        assert model(torch.tensor([3.0])) == 33
    assert seen == [("a", (3.0,), {}, 6.0), ("b", (), {"x": 16.0, "shift": 1.0}, 33.0)]


@pytest.mark.parametrize("inputs", [True, False])
def test_gradients_are_those_of_outputs(inputs: bool) -> None:
    model, seen = Twice(), []
    x = torch.tensor([3.0], requires_grad=True)
    with gradient_hooks({"a": model.a}, lambda *call: seen.append(call), inputs):
        model(x.detach())  # leaves none
        model(x).sum().backward()
    assert seen == [("a", x if inputs else None, 2.0)]
    assert not inputs or not seen[0][1].requires_grad


def test_gradients_of_inputs_are_each_modules_own() -> None:
    parts = {"a": Shifted(), "b": Shifted()}
    seen: dict[str, torch.Tensor] = {}
    x = torch.tensor([3.0], requires_grad=True)
    with input_gradient_hooks(parts, lambda name, gradient: seen.update({name: gradient})):
        with torch.no_grad():
            parts["a"](x)
        parts["a"](x.detach())  # neither leaves any
        (parts["a"](x) + 10 * parts["b"](x)).sum().backward()
    assert seen == {"a": 2, "b": 20}
    assert x.grad == 22


def test_a_graph_that_outlives_the_context_tells_nothing() -> None:
    model, seen = Twice(), []
    x = torch.tensor([3.0], requires_grad=True)
    with (
        gradient_hooks({"a": model.a}, lambda *call: seen.append(call), inputs=False),
        input_gradient_hooks({"a": model.a}, lambda *call: seen.append(call)),
    ):
        y = model(x)
    y.sum().backward()
    assert x.grad == 4
    assert not seen


def test_parameters_are_seen_as_they_are_registered() -> None:
    seen = []
    with parameter_hook(lambda module, name, parameter: seen.append((name, tuple(parameter.shape)))):
        nn.Linear(2, 3)
    assert seen == [("weight", (3, 2)), ("bias", (3,))]
    nn.Linear(2, 3)
    assert len(seen) == 2


OPENED: dict[str, Callable[[dict[str, nn.Module]], AbstractContextManager[None]]] = {
    "call": lambda modules: call_hooks(modules, lambda *call: None),
    "input": lambda modules: input_hooks(modules, lambda *call: None),
    "output": lambda modules: output_hooks(modules, lambda *call: None),
    "gradient": lambda modules: gradient_hooks(modules, lambda *call: None, inputs=True),
    "input gradient": lambda modules: input_gradient_hooks(modules, lambda *call: None),
    "parameter": lambda modules: parameter_hook(lambda *call: None),
}


def installed(model: nn.Module) -> int:
    """How many hooks there are, on the model's modules and on all."""
    here = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())
    return here + len(torch_module._global_parameter_registration_hooks)


@pytest.mark.parametrize("kind", OPENED)
def test_an_error_leaves_no_hook_behind(kind: str) -> None:
    model = Twice()
    before = installed(model)

    def fail() -> None:
        assert installed(model) > before
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), OPENED[kind](submodules(model, ["a", "b"])):
        fail()
    assert installed(model) == before


def test_a_module_that_cannot_be_hooked_leaves_the_others_without() -> None:
    model = Twice()
    for opened in (call_hooks, output_hooks, input_gradient_hooks):
        with pytest.raises(AttributeError), opened({"a": model.a, "none": None}, lambda *call: None):  # type: ignore[dict-item]
            pass
    assert installed(model) == 0
