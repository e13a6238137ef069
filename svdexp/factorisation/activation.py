"""Truncation of a layer's output activations: Dobi-SVD (arXiv 2502.02723, eq. 2 to 4).

For Y = X Wᵀ (t tokens, m outputs) of one sequence, the best rank-k approximation Y V V ᵀ is what the layer would
compute with the weight V Vᵀ W, V (m, k) the leading right singular vectors of Y.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from svdexp.factorisation.differentiable_svd import TruncatedSVD
from svdexp.models.hooks import output_hooks
from svdexp.models.matrices import layers_of, named
from svdexp.runtime.errors import UserError
from svdexp.runtime.finite import all_finite

# Components beyond the rank that are computed at the paper's sharpness β = 10.
MARGIN = 5
# Where the argument of the sigmoid is this far below zero, the gate is 0 in float32.
SATURATED = 16


def gate(count: int, rank: torch.Tensor, sharpness: float) -> torch.Tensor:
    """½ (1 + tanh(β (γ − i))) for i = 1 … count: a step at the real-valued rank γ with a slope that γ can follow."""
    index = torch.arange(1, count + 1, device=rank.device, dtype=rank.dtype)
    return 0.5 * (1 + torch.tanh(sharpness * (rank - index)))


def soft_truncate(Y: torch.Tensor, rank: torch.Tensor, sharpness: float, randomised: bool) -> torch.Tensor:
    """U Σ diag(gate) Vᵀ of Y (…, t, m), each sequence by itself; differentiable in Y and in `rank` (scalar)."""
    margin = max(MARGIN, math.ceil(SATURATED / (2 * sharpness)))
    q = max(1, min(*Y.shape[-2:], math.ceil(float(rank.detach())) + margin))
    U, S, V = TruncatedSVD.apply(Y, q, randomised)  # type: ignore[no-untyped-call]
    result: torch.Tensor = (U * (S * gate(q, rank.to(S), sharpness))[..., None, :]) @ V.mT
    return result


@contextmanager
def changed_outputs(
    model: nn.Module, changes: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]
) -> Iterator[None]:
    """Within this context the layer called by name gives `change(X, Y)` + bias in the place of Y + bias.

    X (…, t, n) is the layer's input and Y = X Wᵀ (…, t, m) without the bias, both at least float32.

    Raises:
        UserError: in the forward pass, where an output is not finite.
    """

    matrices = {matrix.name: matrix for matrix in named(model, changes)}

    def changed(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
        if not all_finite(output):
            raise UserError(f"calibration: the output of {name} is not finite; try precision=float32")
        wide = torch.promote_types(output.dtype, torch.float32)
        b = matrices[name].bias(model)
        bias = 0.0 if b is None else b.detach().to(wide)
        return (changes[name](args[0].to(wide), output.to(wide) - bias) + bias).to(output.dtype)

    with output_hooks(layers_of(model, matrices.values()), changed):
        yield
