"""How layers multiply: for each form, number format and number of tokens by the route that is fastest.

    reference   the layer's own children, one after the other; whatever others put in their places or hang on them runs
    torch       products of one token by torch's own kernels: oneDNN takes longer for one in 16 bits
    operator    a compiled operator (svdexp_operator.py), where there is one
    spaced      products of many by torch, written to where the next one best reads them

RULES is the one table. A route computes what the reference does, up to the rounding of the number format, so a wrong
rule costs time and nothing else. What is traced, trained, on another device or not plainly held goes by the reference.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad

from .svdexp_base import Replacement, is_untouched
from .svdexp_operator import OPERATORS, ready

REFERENCE, TORCH, OPERATOR, SPACED = "reference", "torch", "operator", "spaced"
FORMS = ("linear", "pair", "columns", "rows")
FORMATS = (torch.float32, torch.bfloat16, torch.float16)
FEW = 8
MANY = FEW + 1  # any number above it has the rules of it
LINE = 128  # bytes; rows of what lies between two products begin at multiples of it,
WORTH = 1 << 26  # where the second one makes so many products of numbers


class Rule(NamedTuple):
    """The route of `forms` in the number formats `dtypes` for `least` to `most` tokens, on CPUs."""

    route: str
    forms: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    least: int
    most: int


# The first that fits is taken. Measured by `python -m svdexp.bench.speed`; docs/speed.md has the figures.
RULES = (
    Rule(OPERATOR, FORMS, FORMATS, 1, FEW),
    Rule(TORCH, FORMS, FORMATS, 1, 1),
    Rule(SPACED, ("columns",), FORMATS, MANY, MANY),
    Rule(SPACED, ("pair",), (torch.bfloat16,), MANY, MANY),
)


def fitting(form: str, dtype: torch.dtype, tokens: int, built: bool) -> str:
    """The route that RULES name, with or without compiled operators."""
    for rule in RULES:
        fits = form in rule.forms and dtype in rule.dtypes and rule.least <= min(tokens, MANY) <= rule.most
        if fits and (built or rule.route != OPERATOR):
            return rule.route
    return REFERENCE


# What is asked at every layer and token: RULES, looked up. No entry: the reference.
ROUTES = {
    (form, dtype, tokens, built): fitting(form, dtype, tokens, built)
    for form, dtype, tokens, built in product(FORMS, FORMATS, range(1, MANY + 1), (False, True))
}


def route(form: str, x: torch.Tensor, bias: torch.Tensor | None, *weights: Any) -> str:
    """By which route a layer of `form` that holds this bias and these weights, (m, n) each, multiplies x (…, n)."""
    for weight in weights:
        if type(weight) is not nn.Parameter or not weight.is_cpu or weight.dtype is not x.dtype:
            return REFERENCE
    if not is_open(x, bias, *weights) or torch.is_autocast_enabled("cpu"):
        return REFERENCE
    width = x.shape[-1]
    size = x.numel()
    if size == 0:
        return REFERENCE
    found = ROUTES.get((form, x.dtype, min(size // width, MANY), ready()), REFERENCE)
    return REFERENCE if found != OPERATOR and torch.compiler.is_compiling() else found


def is_open(x: torch.Tensor, *others: torch.Tensor | None) -> bool:
    """Whether x is a tensor on a CPU, and nobody asks how what is made of it and `others` comes about."""
    return (
        type(x) is torch.Tensor
        and x.is_cpu
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not is_transformed()
        and not (torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (x, *others)))
    )


def is_transformed() -> bool:
    """Whether torch.func or forward-mode derivatives look on: compiled operators would leave tangents out, silently."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def weight_of(child: Any) -> torch.Tensor | None:
    """The weight of a linear layer that only multiplies by it; None of any other, and where somebody listens."""
    weight: torch.Tensor | None = child._parameters.get("weight") if is_untouched(child, nn.Linear) else None
    return weight


def linear(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """W x + b of a layer that stayed dense: (…, n) → (…, m). It stands in the place of the layer's own `forward`."""
    W, b = layer._parameters.get("weight"), layer.bias
    how = route("linear", x, b, W)
    if how == OPERATOR:
        return OPERATORS["linear"](x, W, b)
    if how == TORCH:
        return without_onednn(_linear, x, W, b)
    if type(x) is torch.Tensor and x.is_cpu and x.dim() == 3 and x.stride(0) != x.shape[1] * x.stride(1):
        # The last tokens of prompts, which a head gets, lie apart: oneDNN takes 30 to 160 times as long in 16 bits.
        y = nn.functional.linear(x.reshape(-1, x.shape[-1]), layer.weight, b)
        return y.view(*x.shape[:-1], y.shape[-1])
    return nn.functional.linear(x, layer.weight, b)


def pair(inner: Any, outer: Any, x: torch.Tensor) -> torch.Tensor:
    """A (B x) + b, with B of `inner` and A and b of `outer`: (…, n) → (…, m)."""
    B: Any = weight_of(inner)
    A: Any = weight_of(outer)
    b = outer._parameters.get("bias")
    how = route("pair", x, b, B, A)
    if how == OPERATOR:
        return OPERATORS["pair"](x, B, A, b)
    if how == TORCH:
        return without_onednn(_pair, x, B, A, b)
    if how == SPACED and is_worth(x, B, len(A)):
        return nn.functional.linear(row_by_row(spaced, x, B), A, b)
    y: torch.Tensor = outer(inner(x))
    return y


def columns(order: Any, coefficients: Any, pivots: Any, x: torch.Tensor) -> torch.Tensor:
    """P (x[pivots] + C x[others]) + b, with C of `coefficients` and P and b of `pivots`: (…, n) → (…, m)."""
    C, P, b = weight_of(coefficients), weight_of(pivots), pivots._parameters.get("bias")
    how = route("columns", x, b, C, P)
    if how == OPERATOR:
        return OPERATORS["columns"](x, order, C, P, b)
    if how == TORCH:
        return without_onednn(_columns, x, order, C, P, b)
    if how == SPACED:
        return row_by_row(_spaced_columns, x, order, C, P, b)
    first, others = torch.split(reordered(x, order), [pivots.in_features, coefficients.in_features], dim=-1)
    y: torch.Tensor = pivots(first + coefficients(others))
    return y


def rows(pivots: Any, coefficients: Any, order: Any, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """[P x, C P x][order] + b, with P of `pivots` and C of `coefficients`: (…, n) → (…, m)."""
    P, C = weight_of(pivots), weight_of(coefficients)
    how = route("rows", x, bias, P, C)
    if how == OPERATOR:
        return OPERATORS["rows"](x, P, C, order, bias)
    if how == TORCH:
        y = without_onednn(_rows, x, P, C, order)
    else:
        first = pivots(x)
        y = reordered(torch.cat([first, coefficients(first)], dim=-1), order)
    return y if bias is None else y + bias


def _linear(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    """W x + b of one token: in float32 as a product with a vector, which starts sooner."""
    if x.dtype != torch.float32:
        return nn.functional.linear(x, W, b)
    y = W.mv(x.reshape(-1)) if b is None else b.addmv(W, x.reshape(-1))
    return y.view(*x.shape[:-1], -1)


def _pair(x: torch.Tensor, B: torch.Tensor, A: torch.Tensor, b: torch.Tensor | None) -> torch.Tensor:
    return _linear(_linear(x, B, None), A, b)


def _columns(
    x: torch.Tensor, order: torch.Tensor, C: torch.Tensor, P: torch.Tensor, b: torch.Tensor | None
) -> torch.Tensor:
    moved = x.index_select(-1, order.int())
    first, others = moved[..., : len(C)], moved[..., len(C) :]
    return _linear(first + _linear(others, C, None), P, b)


def _rows(x: torch.Tensor, P: torch.Tensor, C: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    first = _linear(x, P, None)
    return torch.cat([first, _linear(first, C, None)], dim=-1).index_select(-1, order.int())


def row_by_row(work: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any) -> torch.Tensor:
    """`work`, (tokens, n) → (tokens, m), of x (…, n)."""
    return work(x.reshape(-1, x.shape[-1]), *args).view(*x.shape[:-1], -1)


def narrow(x: torch.Tensor, B: torch.Tensor, m: int) -> torch.Tensor:
    """B x, (…, n) → (…, r), of a factor B that is no parameter and before a product with (m, r), as `pair` has it."""
    apart = is_worth(x, B, m) and route("pair", x, None) == SPACED
    return row_by_row(spaced, x, B) if apart else nn.functional.linear(x, B)


def is_worth(x: torch.Tensor, B: torch.Tensor, m: int) -> bool:
    """Whether a product of B x, (…, r), with (m, r) is large enough for `spaced` to save more than it costs."""
    return x.numel() // x.shape[-1] * len(B) * m >= WORTH


def spaced(x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    """W x, (tokens, n) → (tokens, m), in rows that begin at multiples of LINE bytes.

    With AMX oneDNN's product of bfloat16 rows that do not, as of odd ranks, takes up to one and a half times as long.
    It reads beyond the ends of rows and multiplies by zero, so what lies between them has to be a number.
    """
    step = LINE // x.element_size()
    y = x.new_empty(len(x), -(-len(W) // step) * step)
    y[:, len(W) :] = 0
    return torch.mm(x, W.t(), out=y[:, : len(W)])


def _spaced_columns(
    x: torch.Tensor, order: torch.Tensor, C: torch.Tensor, P: torch.Tensor, b: torch.Tensor | None
) -> torch.Tensor:
    """The sum in the place of its first part: memory that comes and goes costs as much as a tenth of the products."""
    moved = reordered(x, order)
    first, others = moved[:, : len(C)], moved[:, len(C) :]
    return nn.functional.linear(first.addmm_(others, C.t()), P, b)


def reordered(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The channels of x (…, width) by `order`, to the last bit, of any number of tokens.

    Without the operator by gather, because on prefill activations on a CPU indexing takes twice as long.
    """
    if is_open(x) and x.dtype in FORMATS and x.numel() and not torch.compiler.is_compiling() and ready():
        return OPERATORS["reordered"](x, order)
    return x.gather(-1, order.long().expand_as(x))


def reordered_each(x: torch.Tensor, orders: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """The channels of each row of x (rows, width) by the one of `orders` (count, width) that `which` (rows,) says."""
    if is_open(x) and x.dtype in FORMATS and x.numel() and not torch.compiler.is_compiling() and ready():
        return OPERATORS["reordered_each"](x, orders, which)
    return x.gather(-1, orders.long()[which])


class _OneDNN:
    """Switched off while somebody is within; threads that come and go leave it as the first one found it."""

    def __init__(self) -> None:
        self.lock, self.within, self.enabled = Lock(), 0, True

    def __enter__(self) -> None:
        with self.lock:
            if not self.within:
                self.enabled = torch._C._get_mkldnn_enabled()
                torch._C._set_mkldnn_enabled(False)
            self.within += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.within -= 1
            if not self.within:
                torch._C._set_mkldnn_enabled(self.enabled)


_WITHOUT_ONEDNN = _OneDNN()


def without_onednn(work: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    """`work` of `args` by torch's own kernels."""
    with _WITHOUT_ONEDNN:
        return work(*args)


def quicken(model: nn.Module) -> None:
    """Let the layers of `model` that are dense go by these routes, too."""
    for parent in model.modules():
        for layer in () if isinstance(parent, Replacement) else parent.children():
            if type(layer) is nn.Linear:
                layer.forward = partial(linear, layer)  # type: ignore[method-assign]


def unquicken(model: nn.Module) -> None:
    """Let them go by their own `forward` again."""
    for layer in model.modules():
        if type(layer) is nn.Linear and getattr(layer.__dict__.get("forward"), "func", None) is linear:
            del layer.forward
