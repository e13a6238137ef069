"""A device that there is not: tensors of the CPU that count as elsewhere, for what only a GPU would tell.

An operation on tensors of both kinds raises, as it does of a CPU and a GPU. It goes by the name of the meta device,
which wants neither a driver nor a guard.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

FAR = torch.device("meta")
# Operations that take tensors of two devices, and of which the first says where the result is.
MIXED = ("aten::copy_", "aten::index", "aten::index_put_", "aten::_index_put_impl_")


class Far(torch.Tensor):
    """A tensor elsewhere; `held` has its numbers."""

    held: torch.Tensor
    is_meta = False

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Far":
        how: dict[str, Any] = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        make: Any = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        found: Far = make(cls, held.size(), **how, device=held.device, dispatch_device=True)
        found.held = held
        return found

    def tolist(self) -> Any:
        return self.held.tolist()

    def item(self) -> Any:
        return self.held.item()

    def __float__(self) -> float:
        return float(self.held)

    def __int__(self) -> int:
        return int(self.held)

    def __bool__(self) -> bool:
        return bool(self.held)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Within this context tensors can be made on, and moved to, FAR."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation gives, where the device says that it is."""
    name, tensors = func._schema.name, [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    far = [x for x in tensors if isinstance(x, Far)]
    if name == "prim::device":
        return FAR if far else args[0].device
    near = [x for x in tensors if not isinstance(x, Far) and x.ndim and x.numel()]  # numbers and nothing go anywhere
    if far and near and name != "aten::_to_copy" and name not in MIXED:
        raise RuntimeError(f"{name}: tensors are on several devices")
    wanted = kwargs.get("device")
    if wanted is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    made = func(*tree_map(held, args), **{key: held(x) for key, x in kwargs.items()})
    same = {id(x.held): x for x in far}
    there = isinstance(args[0], Far) if name in MIXED else bool(far) if wanted is None else wanted == FAR
    return tree_map(lambda x: same.get(id(x), Far(x)) if there and isinstance(x, torch.Tensor) else x, made)


def held(x: Any) -> Any:
    """The numbers of what is elsewhere."""
    return x.held if isinstance(x, Far) else x


def send(model: torch.nn.Module) -> None:
    """Put a model elsewhere, in place."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else Far(buffer)
        for name, parameter in module._parameters.items():
            far = None if parameter is None else Far(parameter.detach())
            module._parameters[name] = None if far is None else torch.nn.Parameter(far, requires_grad=False)


def tensor(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
    """torch.tensor, which asks no mode where to put numbers."""
    found = as_here(*args, **kwargs)
    return found if device is None or torch.device(device) != FAR else Far(found)


as_here = torch.tensor
