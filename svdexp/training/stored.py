"""Stored layers while they learn: what is trained is what is stored, its rounding included.

A matrix in codes is scale · (code − zero). Its codes stay; of every scale the share is trained by which it changes, so
that one learning rate serves small and large ones. Each pass rounds the scales as the file will, and gradients go
through that rounding as if it were not there (straight through, arXiv 1308.3432). Plain numbers are trained as float32.
"""

import copy
from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import nn

from svdexp.models.portable.svdexp_bits import middle, unpack, widened
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.portable.svdexp_pivot import PivotLinear
from svdexp.models.portable.svdexp_quantised import QuantisedLinear
from svdexp.models.portable.svdexp_remap import RemapLinear
from svdexp.models.portable.svdexp_residual import ResidualLinear, total
from svdexp.models.portable.svdexp_scaled import ScaledLinear

# Of float16's positive numbers.
SMALLEST, LARGEST = 2.0**-24, torch.finfo(torch.float16).max


class Learner(nn.Module, ABC):
    """Takes a stored layer's place while it learns, and computes to the last bit what that layer will."""

    @abstractmethod
    def learnt(self) -> list[nn.Parameter]:
        """What is trained, float32."""

    @abstractmethod
    def stored(self) -> nn.Module:
        """The layer that holds what was learnt, of the class and format that it had."""

    @property
    @abstractmethod
    def weight(self) -> torch.Tensor | None:
        """What the layer holds, (m, n): some architectures look at their projections' by name."""

    @property
    @abstractmethod
    def bias(self) -> torch.Tensor | None:
        """b (m,), which is not trained."""


def learner(layer: nn.Module) -> Learner | None:
    """What trains `layer`; None where it is none of ours, such as a dense one."""
    match layer:
        case LowRankLinear() | PivotLinear():
            return PlainLearner(layer)
        case QuantisedLinear():
            return CodeLearner(layer)
        case RemapLinear():
            return RemapLearner(layer)
        case ResidualLinear():
            return ResidualLearner(layer)
    return None


class PlainLearner(Learner):
    """A layer of plain numbers, float32 meanwhile; of a delta the mean stays as it is."""

    def __init__(self, layer: LowRankLinear | PivotLinear):
        super().__init__()
        self.format = next(layer.parameters()).dtype
        self.layer = copy.deepcopy(layer)
        for parameter in self.learnt():
            parameter.data = parameter.data.float()

    def learnt(self) -> list[nn.Parameter]:
        """All matrices."""
        return [parameter for key, parameter in self.layer.named_parameters() if key.endswith(".weight")]

    def stored(self) -> nn.Module:
        """In its own format."""
        return copy.deepcopy(self.layer).to(self.format)

    @property
    def weight(self) -> torch.Tensor | None:
        """A B."""
        return cast("torch.Tensor | None", self.layer.weight)

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's."""
        return cast("torch.Tensor | None", self.layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        y: torch.Tensor = self.layer(x)
        return y


class Scales(nn.Module):
    """Scales in float16 of which a share is trained: scale · (1 + gain), of any shape."""

    start: torch.Tensor

    def __init__(self, kept: torch.Tensor):
        super().__init__()
        self.register_buffer("start", kept.view(torch.float16).float(), persistent=False)
        self.gain = nn.Parameter(torch.zeros_like(self.start), requires_grad=False)

    def kept(self) -> torch.Tensor:
        """As a layer keeps them, float16 in int16's clothes."""
        return self._half(self.start * (1 + self.gain.detach())).view(torch.int16)

    def forward(self, dtype: torch.dtype) -> torch.Tensor:
        """As the layer has them when it computes in `dtype`."""
        trained = self.start * (1 + self.gain)
        return straight(trained, self._half(trained.detach()).to(dtype).float()).to(dtype)

    def _half(self, values: torch.Tensor) -> torch.Tensor:
        """Finite, and still of their sign."""
        return torch.where(self.start == 0, 0.0, values.clamp(SMALLEST, LARGEST)).half()


class CodeLearner(Learner):
    """Factors, or a whole matrix, in codes; also with scales of columns, as AWQ has them."""

    def __init__(self, layer: QuantisedLinear):
        super().__init__()
        self.layer = layer
        self.scales = nn.ModuleDict({side: Scales(layer.get_buffer(f"{side}_scale")) for side in layer.shapes})
        self.columns = nn.ModuleDict()
        if isinstance(layer, ScaledLinear):
            self.columns.update({side: Scales(layer.get_buffer(f"{side}_columns")) for side in layer.shapes})

    def learnt(self) -> list[nn.Parameter]:
        """The shares of all scales."""
        return [*self.scales.parameters(), *self.columns.parameters()]

    def stored(self) -> nn.Module:
        """The same codes with the scales as they are now."""
        layer = copy.deepcopy(self.layer).to(self.layer.dtype)
        for name, trained in (("scale", self.scales), ("columns", self.columns)):
            for side, scales in trained.items():
                setattr(layer, f"{side}_{name}", cast("Scales", scales).kept())
        return layer

    @property
    def weight(self) -> torch.Tensor:
        """A B, or what A holds alone."""
        A = self.factor("out", torch.float32)
        return (A @ self.factor("in", torch.float32) if "in" in self.layer.shapes else A).to(self.layer.dtype)

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's."""
        return self.layer.bias

    def factor(self, side: str, dtype: torch.dtype) -> torch.Tensor:
        """As the layer's, in its order of products."""
        layer, (rows, columns) = self.layer, self.layer.shapes[side]
        codes = unpack(layer.get_buffer(f"{side}_codes"), rows * columns, layer.code_bits).view(rows, columns)
        zero = (
            widened(layer.zero(side).to(dtype), columns, layer.group_size)
            if layer.zero_points
            else middle(layer.code_bits)
        )
        W: torch.Tensor = (codes.to(dtype) - zero) * widened(self.scales[side](dtype), columns, layer.group_size)
        return W * self.columns[side](dtype) if side in self.columns else W

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        dtype = computed_in(x)
        if "in" in self.layer.shapes:
            x = nn.functional.linear(x, self.factor("in", dtype))
        return nn.functional.linear(x, self.factor("out", dtype), self.bias)


class RemapLearner(Learner):
    """Factors in 8 and 16 bits: the scales of components, and what takes 16 bits."""

    def __init__(self, layer: RemapLinear):
        super().__init__()
        self.layer = layer
        self.scale = Scales(layer.scale)
        self.rest = nn.Parameter(layer.rest.view(torch.float16).float(), requires_grad=False)

    def learnt(self) -> list[nn.Parameter]:
        """The shares of the scales, and the numbers."""
        return [self.scale.gain, self.rest]

    def stored(self) -> nn.Module:
        """The same codes with the scales and numbers as they are now."""
        layer = copy.deepcopy(self.layer).to(self.layer.dtype)
        layer.scale, layer.rest = self.scale.kept(), half(self.rest.detach()).view(torch.int16)
        return layer

    @property
    def weight(self) -> torch.Tensor:
        """A B."""
        return (self.factor("out", torch.float32) @ self.factor("in", torch.float32)).to(self.layer.dtype)

    @property
    def bias(self) -> torch.Tensor | None:
        """The layer's."""
        return self.layer.bias

    def factor(self, side: str, dtype: torch.dtype) -> torch.Tensor:
        """As the layer's."""
        layer, scale = self.layer, self.scale(dtype)
        rest = straight(self.rest, half(self.rest.detach()).to(dtype).float()).to(dtype)
        if side == "in":
            B = layer.in_codes.to(dtype) * scale[:, None]
            return torch.cat([B, rest], dim=1) if layer.in_features > layer.out_features else B
        A = layer.out_codes.to(dtype) * scale
        return torch.cat([A, rest]) if layer.out_features > layer.in_features else A

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        dtype = computed_in(x)
        return nn.functional.linear(
            nn.functional.linear(x, self.factor("in", dtype)), self.factor("out", dtype), self.bias
        )


class ResidualLearner(Learner):
    """Codes and a correction of them, both as they learn alone."""

    def __init__(self, layer: ResidualLinear):
        super().__init__()
        codes, factors = learner(layer.codes), learner(layer.factors)
        assert codes is not None and factors is not None, "they are ours"  # noqa: PT018
        self.layer, self.codes, self.factors = layer, codes, factors

    def learnt(self) -> list[nn.Parameter]:
        """Of both."""
        return self.codes.learnt() + self.factors.learnt()

    def stored(self) -> nn.Module:
        """Both as they are now."""
        layer = copy.deepcopy(self.layer)
        layer.codes = cast("QuantisedLinear", self.codes.stored())
        layer.factors = cast("LowRankLinear | QuantisedLinear", self.factors.stored())
        return layer

    @property
    def weight(self) -> torch.Tensor | None:
        """Q + A B."""
        return total(self.codes.weight, self.factors.weight)

    @property
    def bias(self) -> torch.Tensor | None:
        """That of the codes."""
        return self.codes.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        y: torch.Tensor = self.codes(x) + self.factors(x)
        return y


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def straight(values: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded`, through which gradients pass to `values` unchanged."""
    found: torch.Tensor = _Straight.apply(values, rounded)  # type: ignore[no-untyped-call]
    return found


def half(values: torch.Tensor) -> torch.Tensor:
    """As float16, the largest of it where they are beyond."""
    return values.clamp(-LARGEST, LARGEST).half()


def computed_in(x: torch.Tensor) -> torch.dtype:
    """The number format of products with x where a layer is called."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
