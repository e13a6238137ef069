"""What the layers have in common that take the place of y = W x + b with W of shape (m, n); torch is all they need."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn


def is_untouched(layer: Any, kind: type[nn.Module]) -> bool:
    """Whether a layer is just of this kind, has no forward of its own, and nobody listens to it."""
    return type(layer) is kind and not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__)


def blank(like: Callable[[type[Any]], type[Any]], dense: type[Any]) -> Any:
    """An object, yet without contents, of the class that `like` makes of `dense`.

    Pickles name this in the place of such classes, which stand in no module.
    """
    kind: Any = like(dense)
    return kind.__new__(kind)


class _Undrawn(nn.Linear):
    def reset_parameters(self) -> None:
        pass


def dense(n: int, m: int, bias: bool, **kwargs: Any) -> nn.Linear:
    """nn.Linear, of (m, n); on the meta device no numbers are drawn, which takes longer than all else about a layer."""
    if torch.device(kwargs.get("device") or "cpu").type != "meta":
        return nn.Linear(n, m, bias=bias, **kwargs)
    layer: nn.Linear = _Undrawn(n, m, bias=bias, **kwargs)
    layer.__class__ = nn.Linear
    return layer


class Replacement(nn.Module):
    """Keeps a matrix W' of rank r near W in its own way; one format, in a file svdexp_FORMAT.py.

    It is made by `empty`, for a checkpoint to fill. Beside what follows it has, as parameter or property,

        weight    W', (m, n): some architectures look at `layer.weight` of their projections by name
        bias      b, (m,), or None

    Attributes:
        kind: what config.json calls the format.
        options: what its constructor takes beside a shape, by keyword; its layers have it as attributes.
        switches: further options that are False where config.json does not name them.
        keeps_whole: whether it can keep a matrix that is not factorised, with a rank of None.
        form: which of svdexp_products.FORMS it is, where the experts of a stack can multiply together; None: each does
            by itself.
        sides: its children on the side of the outputs and of the inputs, which several devices can split as they do a
            dense layer; None where there are none.
    """

    kind: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()
    switches: ClassVar[tuple[str, ...]] = ()
    keeps_whole: ClassVar[bool] = False
    form: ClassVar[str | None] = None
    sides: ClassVar[tuple[str, str] | None] = None

    @property
    def pair_shape(self) -> tuple[int, int] | None:
        """(r, m) of a layer that gives `rebuilt(latent(x))`, with r numbers between, (…, r); None for others."""
        return None

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, r), where the layer has a `pair_shape`."""
        raise NotImplementedError

    def rebuilt(self, latent: torch.Tensor) -> torch.Tensor:
        """(…, r) → (…, m), where the layer has a `pair_shape`."""
        raise NotImplementedError

    @classmethod
    def empty(cls, n: int, rank: int | None, m: int, bias: bool, **how: Any) -> "Replacement":
        """A layer to be filled; `how` are its dtype, its device, and the options."""
        return cls(n, rank, m, bias, **how)

    def validate(self) -> None:
        """Check what a damaged file could hold and its shapes do not show.

        Raises:
            ValueError: it holds that.
        """


class Pair(Replacement):
    """Two nn.Linear children, in whose places other libraries put layers of their own."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Take a child, whatever its shape.

        On a CPU with bfloat16 units bitsandbytes packs 4-bit weights for a kernel that takes multiples of 32 outputs
        and 64 inputs only, and raises at others, such as most ranks: these go the way that all go on other CPUs.
        """
        if getattr(value, "support_avx512bf16_for_cpu", False) and (value.out_features % 32 or value.in_features % 64):
            value.support_avx512bf16_for_cpu = False
        super().__setattr__(name, value)


class CodedLinear(Replacement):
    """A layer of integer buffers, which says nothing of the format that the model's numbers have: `dtype` is that one.

    Casts of the model change it.
    """

    def __init__(self, dtype: torch.dtype | None = None):
        super().__init__()
        self.dtype = dtype or torch.get_default_dtype()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "CodedLinear":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self
