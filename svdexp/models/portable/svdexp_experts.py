"""Mixtures of experts whose matrices are layers, each of its own rank and format.

transformers keeps the experts of a block in stacks: `gate_up_proj`, or `up_proj`, and `down_proj` are parameters
(E, m, n), or transposed (E, n, m). Here a stack gives way to a list of E layers under its name, so the matrix of the
third expert is `…experts.down_proj.2`. All else that the experts have, such as biases, stays as it is, and they are
called as before.

No loop over experts runs where grouped products serve: tokens are sorted by expert, and the factors of experts with
similar ranks lie side by side in one tensor, filled up with zeros, of which the layers' own weights are views.
"""

from collections.abc import Iterable, Sequence
from functools import cache, partial
from inspect import isfunction
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

STACKS = ("gate_up_proj", "up_proj", "down_proj")
# Ranks of one tensor are at least this share of its largest: what is filled up costs memory and products.
SIMILAR = 0.8
# Rows of a tensor that the kernels of grouped products take must have a multiple of so many bytes.
ALIGNED = 16
# What they multiply.
GROUPED = (torch.float32, torch.bfloat16, torch.float16)
# The children of a layer of the kind that does.
SIDES = ("rank_in", "rank_out")


class Layout(NamedTuple):
    """How a module keeps its experts.

    Attributes:
        stacks: the names of the stacks, in the order of use.
        transposed: whether they are (E, n, m).
        everywhere: whether it is given what every expert gets, (E · tokens, n), zeros where a token did not choose it,
            instead of tokens (tokens, n) and choices.
    """

    stacks: tuple[str, str]
    transposed: bool
    everywhere: bool


class Rows(NamedTuple):
    """Which expert gets which rows of a tensor that is sorted by expert: the expert of each, and the counts (E,)."""

    experts: torch.Tensor
    counts: torch.Tensor

    @property
    def unknown(self) -> bool:
        """Whether there are shapes only, as for an estimate."""
        return has_no_values(self.counts)


def has_no_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a shape only."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def layout_of(module: nn.Module) -> Layout | None:
    """How `module`, dense or with layers, keeps its experts; None: it is no mixture whose kind is known here."""
    known: Any = module
    if not isinstance(_member(module, "down_proj"), nn.Parameter | ExpertList):
        return None
    if hasattr(known, "has_gate") and hasattr(known, "is_transposed"):  # transformers' experts interface
        first = "gate_up_proj" if known.has_gate else "up_proj"
        return _layout(module, (first, "down_proj"), known.is_transposed, everywhere=False)
    if hasattr(known, "act_fn") and hasattr(known, "num_experts") and _takes_rows_only(module):
        return _layout(module, ("gate_up_proj", "down_proj"), transposed=True, everywhere=True)
    return None


def _layout(module: nn.Module, stacks: tuple[str, str], transposed: bool, everywhere: bool) -> Layout | None:
    members = [_member(module, key) for key in stacks]
    fits = all(isinstance(one, ExpertList) or (one is not None and one.ndim == 3) for one in members)
    # where there are more rows than experts, some choices are none of the stack's
    return Layout(stacks, transposed, everywhere) if fits and len(members[0]) == len(members[1]) else None


def _member(module: nn.Module, key: str) -> Any:
    return module._parameters.get(key, module._modules.get(key))


def _takes_rows_only(module: nn.Module) -> bool:
    forward = dense_class(type(module)).forward
    return forward.__code__.co_argcount == 2  # itself and the rows


class ExpertList(nn.ModuleList):
    """The layers of a stack's matrices."""

    def forward(self, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Each row of x (rows, n) through its expert's layer: (rows, m)."""
        pairs = None if rows.unknown or not _has_grouped_product(x) else self._pairs()
        return one_by_one(self, x, rows) if pairs is None else grouped(self._groups(pairs), pairs, x, rows)

    def _pairs(self) -> "list[Pair] | None":
        """The factors, if all layers are plain pairs of them that nobody listens to and nobody trains."""
        layers: list[Any] = list(self._modules.values())
        if not all(map(_is_plain, layers)):
            return None
        pairs: list[Pair] = [[layer._modules[side]._parameters["weight"] for side in SIDES] for layer in layers]
        trained = torch.is_grad_enabled() and any(weight.requires_grad for pair in pairs for weight in pair)
        return None if trained else pairs

    def _groups(self, pairs: "Sequence[Pair]") -> "list[Group]":
        groups: list[Group] | None = self.__dict__.get("groups")
        if groups is None or not all(group.holds(pairs) for group in groups):
            groups = self.__dict__["groups"] = side_by_side(pairs)
        return groups

    def apart(self) -> None:
        """Give each layer weights of its own again."""
        for layer in self.children():
            for weight in layer.parameters() if self.__dict__.get("groups") else ():
                weight.data = weight.data.clone(memory_format=torch.contiguous_format)
        self.__dict__.pop("groups", None)


def heard(layers: Iterable[Any]) -> bool:
    """Whether somebody listens to one of `layers`."""
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def _is_plain(layer: Any) -> bool:
    if getattr(layer, "kind", None) != "factors":
        return False
    inner, outer = layer._modules["rank_in"], layer._modules["rank_out"]
    plain = type(inner) is type(outer) is nn.Linear and outer._parameters["bias"] is None
    return plain and not heard((layer, inner, outer))


def _has_grouped_product(x: torch.Tensor) -> bool:
    if not hasattr(nn.functional, "grouped_mm") or x.dtype not in GROUPED:
        return False
    return x.device.type == "cpu" or (x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 0))


class Group(NamedTuple):
    """Experts of similar ranks whose factors lie side by side in two tensors, B (E, R, n) and Aᵀ (E, R, m).

    These are not kept here: they are where the layers' weights are, and gone when these are.

    Attributes:
        experts: their numbers, ascending.
        rank: R, the largest rank, rounded up.
        places: where each expert's weights begin in memory, B's and A's.
    """

    experts: tuple[int, ...]
    rank: int
    places: tuple[tuple[int, int], ...]

    def holds(self, pairs: "Sequence[Pair]") -> bool:
        """Whether the weights are still where they were put."""
        first, last = pairs[self.experts[0]], pairs[self.experts[-1]]
        if self.places != tuple((pairs[i][0].data_ptr(), pairs[i][1].data_ptr()) for i in self.experts):
            return False
        # then what lies between is of one tensor as well
        return all(_same_storage(*sides) for sides in zip(first, last, strict=True))

    def factors(self, pairs: "Sequence[Pair]") -> tuple[torch.Tensor, torch.Tensor]:
        """B and Aᵀ of all, whose weights these `pairs` are."""
        B, A = pairs[self.experts[0]]
        return self._all(B.detach()), self._all(A.detach().T)

    def _all(self, first: torch.Tensor) -> torch.Tensor:
        width = first.shape[1]
        return first.as_strided((len(self.experts), self.rank, width), (self.rank * width, width, 1))


def _same_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


Pair = Sequence[Any]  # the weights B (r, n) and A (m, r) of one layer


def side_by_side(pairs: Sequence[Pair]) -> list[Group]:
    """Move the weights of factors into tensors of groups."""
    waiting = sorted(range(len(pairs)), key=lambda expert: -pairs[expert][0].shape[0])
    groups = []
    while waiting:
        largest = pairs[waiting[0]][0].shape[0]
        members = [expert for expert in waiting if pairs[expert][0].shape[0] >= SIMILAR * largest]
        waiting = waiting[len(members) :]
        groups.append(_group(pairs, tuple(sorted(members)), largest))
    return groups


def _group(pairs: Sequence[Pair], experts: tuple[int, ...], largest: int) -> Group:
    B, A = pairs[experts[0]]
    step = ALIGNED // B.element_size()
    rank = -(-largest // step) * step
    with torch.inference_mode(False), torch.no_grad():
        inner, outer = (B.new_zeros(len(experts), rank, width) for width in (B.shape[1], A.shape[0]))
        for index, expert in enumerate(experts):
            B, A = pairs[expert]
            own = len(B)
            inner[index, :own], outer[index, :own] = B, A.T
            B.data, A.data = inner[index, :own], outer[index, :own].T
    places = tuple((B.data_ptr(), A.data_ptr()) for B, A in (pairs[expert] for expert in experts))
    return Group(experts, rank, places)


def grouped(groups: Sequence[Group], pairs: Sequence[Pair], x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """A B x for each row of x (rows, n), sorted by expert, with its expert's factors: (rows, m)."""
    if len(groups) == 1:
        return _product(groups[0], pairs, x, rows.counts)
    y = x.new_empty(len(x), pairs[0][1].shape[0])
    for group in groups:
        members = torch.tensor(group.experts, device=x.device)
        chosen = torch.isin(rows.experts, members).nonzero()[:, 0]
        y = y.index_copy(0, chosen, _product(group, pairs, x[chosen], rows.counts[members]))
    return y


def _product(group: Group, pairs: Sequence[Pair], x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    B, A = group.factors(pairs)
    ends = counts.cumsum(0, dtype=torch.int32)
    inner = nn.functional.grouped_mm(x.to(B.dtype), B.mT, offs=ends)
    return nn.functional.grouped_mm(inner, A, offs=ends)


def one_by_one(layers: Iterable[Any], x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Each row of x (rows, n), sorted by expert, through its expert's layer, (rows, m), one expert after the other."""
    if rows.unknown:  # nobody knows who gets which, but the shape is that of any
        y: torch.Tensor = next(iter(layers))(x)
        return y
    parts = zip(layers, torch.split(x, rows.counts.tolist()), strict=True)
    return torch.cat([layer(part) for layer, part in parts if len(part)])


def run(experts: Any, products: Sequence[Any], *args: Any, **kwargs: Any) -> torch.Tensor:
    """What `experts` compute of what they are given, by `products`, one a stack: x (rows, n), rows → (rows, m)."""
    layout = layout_of(experts)
    assert layout is not None
    return (_everywhere if layout.everywhere else _chosen)(experts, layout, products, *args, **kwargs)


def _chosen(
    experts: Any, layout: Layout, products: Sequence[Any], x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """x (tokens, n), the experts that each token chose and their weights, both (tokens, k) → (tokens, n)."""
    choices = chosen.reshape(-1)
    count, k = len(_member(experts, layout.stacks[1])), chosen.shape[-1]
    order = choices.argsort(stable=True)
    numbers = torch.arange(count, device=x.device)
    rows = Rows(choices[order], (choices == numbers[:, None]).sum(1))
    y = _through(experts, layout, products, x[order // k], rows) * weights.reshape(-1)[order, None]
    return torch.empty_like(y).index_copy(0, order, y).view(-1, k, y.shape[-1]).sum(1).to(x.dtype)


def _everywhere(experts: Any, layout: Layout, products: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    """x (E · tokens, n), as experts get it, zeros where a token did not choose one → (E · tokens, n), zeros there."""
    count = len(_member(experts, layout.stacks[1]))
    flat = x.reshape(-1, x.shape[-1])
    used = flat.any(-1)
    numbers = torch.arange(count, device=x.device).repeat_interleave(len(flat) // count)
    if has_no_values(x):
        return _through(experts, layout, products, flat, Rows(numbers, used.view(count, -1).sum(1)))
    places = used.nonzero()[:, 0]
    y = _through(experts, layout, products, flat[places], Rows(numbers[places], used.view(count, -1).sum(1)))
    return torch.zeros_like(flat).index_copy(0, places, y.to(flat.dtype))


def _through(experts: Any, layout: Layout, products: Sequence[Any], x: torch.Tensor, rows: Rows) -> torch.Tensor:
    first, last = (
        partial(_with_bias, experts, key, product) for key, product in zip(layout.stacks, products, strict=True)
    )
    inner = first(x, rows)
    if not getattr(experts, "has_gate", True):
        inner = experts.act_fn(inner)
    elif hasattr(experts, "_apply_gate"):
        inner = experts._apply_gate(inner)
    else:
        gate, up = inner.chunk(2, dim=-1)
        inner = up * experts.act_fn(gate)
    y: torch.Tensor = last(inner, rows)
    return experts.post_expert_norm(y) if getattr(experts, "has_post_expert_norm", False) else y


def _with_bias(experts: Any, key: str, product: Any, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    y: torch.Tensor = product(x, rows)
    return y + getattr(experts, f"{key}_bias")[rows.experts] if getattr(experts, "has_bias", False) else y


def stacked(stack: torch.Tensor, transposed: bool, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Each row of x (rows, n) times its expert's matrix in a stack that stays one: (rows, m)."""
    matrices = stack.mT if transposed else stack
    if not rows.unknown and _has_grouped_product(x):
        return nn.functional.grouped_mm(x.to(stack.dtype), matrices.mT, offs=rows.counts.cumsum(0, dtype=torch.int32))
    return one_by_one([partial(nn.functional.linear, weight=W) for W in matrices], x, rows)


class Experts(nn.Module):
    """Experts of which at least one stack is a list of layers; `split` makes them of dense ones.

    What the dense class computes beside products, its own methods compute here.
    """

    _dense_class: type[nn.Module]

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the dense experts are given → what they give."""
        layout = layout_of(self)
        assert layout is not None
        return run(self, [self._product(key, layout.transposed) for key in layout.stacks], *args, **kwargs)

    def _product(self, key: str, transposed: bool) -> Any:
        if key in self._modules:
            return self._modules[key]
        slices = self.__dict__.get("slices", {}).get(key, ())  # svdexp's dense layers, to be heard
        return partial(one_by_one, slices) if heard(slices) else partial(stacked, self.get_parameter(key), transposed)

    def __getattr__(self, name: str) -> Any:
        """Methods of the dense class, too."""
        method = None if name in STACKS else getattr(type(self)._dense_class, name, None)
        return MethodType(method, self) if isfunction(method) else super().__getattr__(name)


@cache
def _experts_like(dense: Any) -> type[nn.Module]:
    return type(dense.__name__, (Experts,), {"_dense_class": dense, "__module__": __name__})


def dense_class(found: type[nn.Module]) -> type[nn.Module]:
    """The class of the dense experts that a class was made of, or the class itself."""
    dense: type[nn.Module] = getattr(found, "_dense_class", found)
    return dense


def become(experts: Any, kind: type[Any]) -> None:
    """Let `experts` be of the class `kind`, also where accelerate has, or had, hooks that keep the class's forward."""
    experts.__class__ = kind
    for key in ("forward", "_old_forward"):
        if isinstance(vars(experts).get(key), MethodType):
            setattr(experts, key, MethodType(kind.forward, experts))


def split(experts: nn.Module, key: str, layers: Iterable[nn.Module]) -> None:
    """Let `layers` take the place of the stack called `key`."""
    experts.__dict__.setdefault("order", list(experts._parameters))
    del experts._parameters[key]
    experts.add_module(key, ExpertList(layers))
    dense: Any = dense_class(type(experts))
    become(experts, _experts_like(dense))


def join(experts: nn.Module, key: str, stack: nn.Parameter) -> None:
    """The opposite: `stack` takes the place of the list called `key`."""
    del experts._modules[key]
    experts.register_parameter(key, stack)
    for name in experts.__dict__["order"]:  # as they stood
        if name in experts._parameters:
            experts._parameters[name] = experts._parameters.pop(name)
    if not any(isinstance(part, ExpertList) for part in experts.children()):
        become(experts, dense_class(type(experts)))


def matrix_of(experts: nn.Module, key: str, index: int) -> torch.Tensor:
    """A matrix (m, n) in the stack called `key`, a view."""
    layout, stack = layout_of(experts), experts._parameters[key]
    assert layout is not None and stack is not None  # noqa: PT018
    return stack[index].mT if layout.transposed else stack[index]


def split_named(model: nn.Module, names: Iterable[str]) -> None:
    """Split the stacks of `model` of which `names` call matrices, into dense layers for the time being."""
    modules = dict(model.named_modules())
    for name in dict.fromkeys(name.rpartition(".")[0] for name in names if name not in modules):
        holder, _, key = name.rpartition(".")
        experts = modules.get(holder)
        layout = None if experts is None else layout_of(experts)
        if experts is not None and layout is not None and key in layout.stacks and key in experts._parameters:
            stack = experts.get_parameter(key)
            split(experts, key, [_linear(matrix_of(experts, key, index)) for index in range(len(stack))])


def _linear(W: torch.Tensor) -> nn.Linear:
    m, n = W.shape
    layer = nn.Linear(n, m, bias=False, dtype=W.dtype, device="meta")
    layer.weight = nn.Parameter(W.detach().clone(memory_format=torch.contiguous_format), requires_grad=W.requires_grad)
    return layer
