"""Mixtures of experts whose matrices are layers, each of its own rank and format.

transformers keeps the experts of a block in stacks: `gate_up_proj`, or `up_proj`, and `down_proj` are parameters
(E, m, n), or transposed (E, n, m). Here a stack gives way to a list of E layers under its name, so the matrix of the
third expert is `…experts.down_proj.2`. All else that the experts have, such as biases, stays as it is, and they are
called as before.

No loop over experts runs where grouped products serve: tokens are sorted by expert, and the factors, or pivots and
coefficients, of experts with similar ranks lie side by side in one tensor, filled up with zeros, of which the layers'
own weights are views.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from inspect import isfunction
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from .svdexp_base import blank, is_untouched
from .svdexp_operator import ready
from .svdexp_products import FEW, is_open, is_transformed, reordered_each

STACKS = ("gate_up_proj", "up_proj", "down_proj")
# Ranks of one tensor are at least this share of its largest: what is filled up costs memory and products.
SIMILAR = 0.8
# Rows of a tensor that the kernels of grouped products take must have a multiple of so many bytes.
ALIGNED = 16
# What they multiply.
GROUPED = (torch.float32, torch.bfloat16, torch.float16)
# The children by which a layer of each form that does multiplies, in the order of use (svdexp_products.py).
STEPS = {
    "pair": ("rank_in", "rank_out"),
    "columns": ("coefficients", "pivots"),
    "rows": ("pivots", "coefficients"),
}


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
    """Which expert gets which rows of a tensor that is sorted by expert.

    Attributes:
        experts: the expert of each row.
        counts: how many rows each expert has, (E,).
        tokens: what the rows are taken of, (tokens, n), and of which of it each, where they are so taken.
    """

    experts: torch.Tensor
    counts: torch.Tensor
    tokens: tuple[torch.Tensor, torch.Tensor] | None = None

    def of_all(self, product: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """`product` of each row of x, made once of every token where these are fewer."""
        if self.tokens is None or len(self.tokens[0]) >= len(x):
            return product(x)
        tokens, which = self.tokens
        return product(tokens)[which]

    @property
    def unknown(self) -> bool:
        """Whether there are shapes only, as for an estimate."""
        return has_no_values(self.counts)


def has_no_values(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a shape only."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def is_traced() -> bool:
    """Whether what is computed becomes a graph for other tokens, whose choices nobody knows, or a derivative.

    Then every expert's layer is given all rows: a graph has no loop over those that these tokens chose, and to move the
    tensors of layers would put those of the transform in their places for good.
    """
    return (
        torch.compiler.is_exporting()
        or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        or get_proxy_mode() is not None
        or is_transformed()
    )


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
        base = self._parameters.get("base")
        alone = is_traced() or (_few(x) and base is None)
        parts = None if rows.unknown or alone or not _has_grouped_product(x) else self._parts()
        if parts is None:
            return one_by_one(self, x, rows)
        y = grouped(self._groups(parts), parts, x, rows)
        return y if base is None else y + rows.of_all(partial(nn.functional.linear, weight=base), x)

    def __setattr__(self, name: str, value: Any) -> None:
        """Take a layer; a parameter `base` is here as long as some layer computes with it (svdexp_delta.py)."""
        super().__setattr__(name, value)
        if hasattr(value, "share"):
            value.share(self)
        elif "base" in self._parameters and not any(hasattr(layer, "share") for layer in self.children()):
            del self._parameters["base"]

    def _parts(self) -> "list[Parts] | None":
        """What the layers hold, if all are plain ones of one form that nobody listens to and nobody trains."""
        layers: list[Any] = list(self._modules.values())
        form = getattr(layers[0], "form", None)
        if form not in STEPS or not all(type(layer) is type(layers[0]) and _is_plain(layer, form) for layer in layers):
            return None
        parts = [Parts.of(layer, form) for layer in layers]
        trained = torch.is_grad_enabled() and any(one.inner.requires_grad or one.outer.requires_grad for one in parts)
        return parts if not trained and _aligned(parts[0].inner, *_widths(parts[0], 0)) else None

    def _groups(self, parts: "Sequence[Parts]") -> "list[Group]":
        groups: list[Group] | None = self.__dict__.get("groups")
        if groups is None or not all(group.holds(parts) for group in groups):
            groups = self.__dict__["groups"] = side_by_side(parts)
        return groups

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """What is saved are tensors of their own: safetensors takes no views."""
        if self.__dict__.pop("groups", None):
            with torch.inference_mode(False), torch.no_grad():
                for tensor in (*self.parameters(), *self.buffers()):
                    tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
        super()._save_to_state_dict(*args, **kwargs)


def heard(layers: Iterable[Any]) -> bool:
    """Whether somebody listens to one of `layers`."""
    return any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)


def _is_plain(layer: Any, form: str) -> bool:
    if layer.bias is not None:
        return False
    steps = [layer._modules[step] for step in STEPS[form]]
    return is_untouched(layer, type(layer)) and all(is_untouched(step, nn.Linear) for step in steps)


def _has_grouped_product(x: torch.Tensor) -> bool:
    if not hasattr(nn.functional, "grouped_mm") or x.dtype not in GROUPED:
        return False
    return x.device.type == "cpu" or (x.is_cuda and torch.cuda.get_device_capability(x.device) >= (8, 0))


def _aligned(like: torch.Tensor, *widths: int) -> bool:
    """Whether the kernels take rows of so many numbers in the format of `like`."""
    return all(width * like.element_size() % ALIGNED == 0 for width in widths)


def _few(x: torch.Tensor) -> bool:
    """Whether layers multiply these rows by compiled operators, so that those of the few experts hit take less time.

    In float32 they do not: there grouped products take two thirds of the time.
    """
    return len(x) <= FEW and x.dtype != torch.float32 and is_open(x) and not torch.compiler.is_compiling() and ready()


class Parts(NamedTuple):
    """What a layer of rank r holds, in one of three forms:

    pair      y = A (B x)                      inner B (r, n),      outer A (m, r)
    columns   y = P (x[pivots] + C x[others])  inner C (r, n − r),  outer P (m, r),      order (n,): pivots, others
    rows      y = [P x, C P x][order]          inner P (r, n),      outer C (m − r, r),  order (m,)
    """

    form: str
    inner: Any
    outer: Any
    order: Any

    @classmethod
    def of(cls, layer: Any, form: str) -> "Parts":
        """Those of a layer of `form`."""
        inner, outer = (layer._modules[step]._parameters["weight"] for step in STEPS[form])
        return cls(form, inner, outer, layer._buffers.get("order"))

    @property
    def rank(self) -> int:
        """r."""
        rank: int = self.inner.shape[0]
        return rank

    @property
    def tensors(self) -> list[Any]:
        """Those that are there."""
        return [self.inner, self.outer, *([] if self.order is None else [self.order])]

    @property
    def places(self) -> tuple[int, ...]:
        """Where they begin in memory."""
        return tuple(tensor.data_ptr() for tensor in self.tensors)


class Group(NamedTuple):
    """Experts of similar ranks whose tensors lie side by side in larger ones.

    With R the largest rank, rounded up, and s the smallest, rounded down (`shared`), these are, inner and outerᵀ,

        pair      (E, R, n),      (E, R, m)
        columns   (E, R, n − s),  (E, R, m)
        rows      (E, R, n),      (E, R, m − s)

    zero beyond an expert's rank and, where s is taken off, before it: C of rank r begins r − s numbers later. Orders
    are (E, n) or (E, m). None of it is kept here: it is where the layers' tensors are, and gone when these are.

    Attributes:
        experts: their numbers, ascending.
        rank: R.
        shared: s; 0 of pairs.
        places: where each expert's tensors begin in memory.
    """

    experts: tuple[int, ...]
    rank: int
    shared: int
    places: tuple[tuple[int, ...], ...]

    def holds(self, parts: "Sequence[Parts]") -> bool:
        """Whether the tensors are still where they were put."""
        if self.places != tuple(parts[expert].places for expert in self.experts):
            return False
        # then what lies between is of one tensor as well
        first, last = parts[self.experts[0]].tensors, parts[self.experts[-1]].tensors
        return all(_same_storage(*ends) for ends in zip(first, last, strict=True))

    def all(self, parts: "Sequence[Parts]") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """inner and outerᵀ of all, and orders, of the layers that hold `parts`."""
        first = parts[self.experts[0]]
        (width_in, width_out), (before_in, before_out) = _widths(first, self.shared), _offsets(first, self.shared)
        inner = self._spread(first.inner.detach(), width_in, before_in, self.rank)
        outer = self._spread(first.outer.detach(), width_out, before_out, self.rank)
        return inner, outer, None if first.order is None else self._spread(first.order, len(first.order), 0)

    def _spread(self, first: torch.Tensor, width: int, before: int, *rows: int) -> torch.Tensor:
        """The tensor (E, *rows, width) of which the first expert's begins `before` numbers after the start."""
        shape = (len(self.experts), *rows, width)
        strides = (rows[0] * width, width, 1) if rows else (width, 1)
        return first.as_strided(shape, strides, first.storage_offset() - before)


def _same_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _offsets(parts: Parts, shared: int) -> tuple[int, int]:
    """Where a row of an expert's tensor begins in one of the larger tensor, inner and outerᵀ."""
    later = parts.rank - shared
    return later * (parts.form == "columns"), later * (parts.form == "rows")


def _widths(parts: Parts, shared: int) -> tuple[int, int]:
    """Of a row of the larger tensors, inner and outerᵀ."""
    before_in, before_out = _offsets(parts, shared)
    return before_in + parts.inner.shape[1], before_out + parts.outer.shape[0]


def side_by_side(parts: Sequence[Parts]) -> list[Group]:
    """Move the tensors of layers into those of groups."""
    waiting = sorted(range(len(parts)), key=lambda expert: -parts[expert].rank)
    groups = []
    while waiting:
        largest = parts[waiting[0]].rank
        members = [expert for expert in waiting if parts[expert].rank >= SIMILAR * largest]
        waiting = waiting[len(members) :]
        groups.append(_group(parts, tuple(sorted(members))))
    return groups


def _group(parts: Sequence[Parts], experts: tuple[int, ...]) -> Group:
    first, ranks = parts[experts[0]], [parts[expert].rank for expert in experts]
    step = ALIGNED // first.inner.element_size()
    rank = -(-max(ranks) // step) * step
    shared = 0 if first.form == "pair" else min(ranks) // step * step
    with torch.inference_mode(False), torch.no_grad():
        inner, outer = (first.inner.new_zeros(len(experts), rank, width) for width in _widths(first, shared))
        orders = None if first.order is None else torch.stack([parts[expert].order for expert in experts])
        for index, expert in enumerate(experts):
            one, own = parts[expert], parts[expert].rank
            before_in, before_out = _offsets(one, shared)
            inner[index, :own, before_in:], outer[index, :own, before_out:] = one.inner, one.outer.T
            one.inner.data, one.outer.data = inner[index, :own, before_in:], outer[index, :own, before_out:].T
            if orders is not None:
                one.order.data = orders[index]
    return Group(experts, rank, shared, tuple(parts[expert].places for expert in experts))


def grouped(groups: Sequence[Group], parts: Sequence[Parts], x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """What its expert's layer makes of each row of x (rows, n), sorted by expert: (rows, m)."""
    if len(groups) == 1:
        return _product(groups[0], parts, x, rows)
    y = None
    for group in groups:
        members = torch.tensor(group.experts, device=x.device)
        chosen = torch.isin(rows.experts, members).nonzero()[:, 0]
        own = Rows(torch.searchsorted(members, rows.experts[chosen]), rows.counts[members])
        made = _product(group, parts, x[chosen], own)
        y = (x.new_empty(len(x), made.shape[1]) if y is None else y).index_copy(0, chosen, made)
    assert y is not None
    return y


def _product(group: Group, parts: Sequence[Parts], x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The same of one group; `rows` number its experts from 0."""
    inner, outer, orders = group.all(parts)
    ends, form, shared = rows.counts.cumsum(0, dtype=torch.int32), parts[group.experts[0]].form, group.shared
    x = x.to(inner.dtype)
    if form == "columns":
        assert orders is not None
        x = reordered_each(x, orders, rows.experts)
        h = nn.functional.grouped_mm(x[:, shared:], inner.mT, offs=ends).add_(x[:, : group.rank])
        return nn.functional.grouped_mm(h, outer, offs=ends)
    h = nn.functional.grouped_mm(x, inner.mT, offs=ends)
    y = nn.functional.grouped_mm(h, outer, offs=ends)
    if form == "rows":
        assert orders is not None
        y = nn.functional.pad(y, (shared, 0))
        y[:, : group.rank] += h
        y = reordered_each(y, orders, rows.experts)
    return y


def one_by_one(layers: Iterable[Any], x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Each row of x (rows, n), sorted by expert, through its expert's layer, (rows, m), one expert after the other."""
    if is_traced():
        return _chosen_of_all([layer(x) for layer in layers], rows)
    if rows.unknown:  # nobody knows who gets which, but the shape is that of any
        y: torch.Tensor = next(iter(layers))(x)
        return y
    parts = zip(layers, torch.split(x, rows.counts.tolist()), strict=True)
    return torch.cat([layer(part) for layer, part in parts if len(part)])


def _chosen_of_all(made: Sequence[torch.Tensor], rows: Rows) -> torch.Tensor:
    """Of what every expert makes of all rows, (rows, m) each, the rows that chose it."""
    y = made[0]
    for expert, one in enumerate(made[1:], start=1):
        y = torch.where((rows.experts == expert)[:, None], one, y)
    return y


def run(experts: Any, products: Sequence[Any], *args: Any, **kwargs: Any) -> torch.Tensor:
    """What `experts` compute of what they are given, by `products`, one a stack: x (rows, n), rows → (rows, m)."""
    layout = layout_of(experts)
    assert layout is not None
    return (_everywhere if layout.everywhere else _chosen)(experts, layout, products, *args, **kwargs)


# A compiled graph would have every expert compute every row, which takes longer than to leave it and come back.
run_between_graphs = torch.compiler.disable(  # type: ignore[no-untyped-call]
    run, reason="experts compute outside of compiled graphs: compile without fullgraph=True"
)


def _chosen(
    experts: Any, layout: Layout, products: Sequence[Any], x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """x (tokens, n), the experts that each token chose and their weights, both (tokens, k) → (tokens, n)."""
    choices = chosen.reshape(-1)
    count, k = len(_member(experts, layout.stacks[1])), chosen.shape[-1]
    order = choices.argsort(stable=True)
    numbers = torch.arange(count, device=x.device)
    rows = Rows(choices[order], (choices == numbers[:, None]).sum(1))
    rows = rows._replace(tokens=(x, order // k))
    y = _through(experts, layout, products, x[order // k], rows) * weights.reshape(-1)[order, None]
    return torch.empty_like(y).index_copy(0, order, y).view(-1, k, y.shape[-1]).sum(1).to(x.dtype)


def _everywhere(experts: Any, layout: Layout, products: Sequence[Any], x: torch.Tensor) -> torch.Tensor:
    """x (E · tokens, n), as experts get it, zeros where a token did not choose one → (E · tokens, n), zeros there."""
    count = len(_member(experts, layout.stacks[1]))
    flat = x.reshape(-1, x.shape[-1])
    used = flat.any(-1)
    numbers = torch.arange(count, device=x.device).repeat_interleave(len(flat) // count)
    if has_no_values(x) or is_traced():
        y = _through(experts, layout, products, flat, Rows(numbers, used.view(count, -1).sum(1)))
        return torch.where(used[:, None], y, 0)
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
    y: torch.Tensor = last(inner, rows._replace(tokens=None))
    return experts.post_expert_norm(y) if getattr(experts, "has_post_expert_norm", False) else y


def _with_bias(experts: Any, key: str, product: Any, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    y: torch.Tensor = product(x, rows)
    return y + getattr(experts, f"{key}_bias")[rows.experts] if getattr(experts, "has_bias", False) else y


def stacked(stack: torch.Tensor, transposed: bool, x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """Each row of x (rows, n) times its expert's matrix in a stack that stays one: (rows, m)."""
    matrices = stack.mT if transposed else stack
    if not (rows.unknown or is_traced()) and _has_grouped_product(x) and _aligned(stack, *stack.shape[1:]):
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
        compiled = torch.compiler.is_compiling() and not torch.compiler.is_exporting()
        products = [self._product(key, layout.transposed) for key in layout.stacks]
        return (run_between_graphs if compiled else run)(self, products, *args, **kwargs)

    def _product(self, key: str, transposed: bool) -> Any:
        if key in self._modules:
            return self._modules[key]
        slices = self.__dict__.get("slices", {}).get(key, ())  # svdexp's dense layers, to be heard
        return partial(one_by_one, slices) if heard(slices) else partial(stacked, self.get_parameter(key), transposed)

    def __getattr__(self, name: str) -> Any:
        """Methods of the dense class, too."""
        method = None if name in STACKS else getattr(type(self)._dense_class, name, None)
        # no MethodType: torch.export(strict=True) cannot trace the making of one
        return partial(method, self) if isfunction(method) else super().__getattr__(name)

    def __reduce__(self) -> tuple[Any, ...]:
        """For pickles: made of the dense class, and then filled."""
        return blank, (_experts_like, type(self)._dense_class), self.__dict__


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
