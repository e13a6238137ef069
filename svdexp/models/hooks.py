"""Every hook that svdexp puts on PyTorch: each is gone when its context is left, whatever happens inside.

Modules are called by the names that their hooks are told.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

Modules = Mapping[str, nn.Module]


def submodules(model: nn.Module, names: Iterable[str]) -> dict[str, nn.Module]:
    """The modules of `model` called by `names`."""
    return {name: model.get_submodule(name) for name in names}


@contextmanager
def call_hooks(modules: Modules, see: Callable[[str, tuple[Any, ...], dict[str, Any]], object]) -> Iterator[None]:
    """Call `see(name, args, kwargs)` whenever one of the modules is about to run; what it returns does not matter."""
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                see(name, args, kwargs)

            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


@contextmanager
def argument_hooks(
    modules: Modules, change: Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]
) -> Iterator[None]:
    """Let the modules run on `change(args, kwargs)` in place of their arguments."""
    with ExitStack() as stack:
        for module in modules.values():

            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                return change(args, kwargs)

            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


@contextmanager
def input_hooks(modules: Modules, see: Callable[[str, torch.Tensor], object]) -> Iterator[None]:
    """Call `see(name, input)` whenever one of the modules is about to run on a tensor."""

    def look(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args and isinstance(args[0], torch.Tensor):
            see(name, args[0])

    with call_hooks(modules, look):
        yield


@contextmanager
def output_hooks(modules: Modules, see: Callable[[str, tuple[Any, ...], dict[str, Any], Any], Any]) -> Iterator[None]:
    """Call `see(name, args, kwargs, output)` whenever one of the modules has run.

    What it returns takes the output's place, unless it is None.
    """
    with ExitStack() as stack:
        for name, module in modules.items():

            def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any, name: str = name) -> Any:
                return see(name, args, kwargs, output)

            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


@contextmanager
def gradient_hooks(
    modules: Modules, see: Callable[[str, torch.Tensor | None, torch.Tensor], object], inputs: bool
) -> Iterator[None]:
    """Call `see(name, input, output gradient)` in the backward pass through one of the modules, tensor to tensor.

    Without `inputs` the input is None: to keep every layer's alive until then takes gigabytes. A graph that outlives
    the context keeps its hooks, which then do nothing.
    """
    listening = True

    def attach(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # a pass without gradients, such as an early one of a loop, leaves none
        if isinstance(output, torch.Tensor) and output.requires_grad:
            x = args[0].detach() if inputs else None

            def hook(gradient: torch.Tensor) -> None:
                if listening:
                    see(name, x, gradient)

            output.register_hook(hook)  # type: ignore[no-untyped-call]

    try:
        with output_hooks(modules, attach):
            yield
    finally:
        listening = False


@contextmanager
def input_gradient_hooks(modules: Modules, see: Callable[[str, torch.Tensor], object]) -> Iterator[None]:
    """Call `see(name, gradient)` with what one of the modules gives its input as a gradient, in the backward pass.

    Each module runs on a view of its own, because the input itself gathers the gradients of all that it feeds. A graph
    that outlives the context keeps its hooks, which then do nothing.
    """
    listening = True

    def own_view(name: str, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not (args and isinstance(args[0], torch.Tensor) and args[0].requires_grad and torch.is_grad_enabled()):
            return None
        view = args[0].view_as(args[0])

        def hook(gradient: torch.Tensor) -> None:
            if listening:
                see(name, gradient)

        view.register_hook(hook)  # type: ignore[no-untyped-call]
        return (view, *args[1:])

    try:
        with ExitStack() as stack:
            for name, module in modules.items():

                def before(module: nn.Module, args: tuple[Any, ...], name: str = name) -> tuple[Any, ...] | None:
                    return own_view(name, args)

                stack.callback(module.register_forward_pre_hook(before).remove)
            yield
    finally:
        listening = False


@contextmanager
def parameter_hook(see: Callable[[nn.Module, str, nn.Parameter], None]) -> Iterator[None]:
    """Call `see(module, name, parameter)` whenever any module is given a parameter."""
    handle = register_module_parameter_registration_hook(see)
    try:
        yield
    finally:
        handle.remove()
