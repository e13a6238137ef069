"""The divergence of one distribution over next words from another, with its gradient in closed form.

Logits of 512 tokens and 49152 words are a hundred megabytes in float32. Operation by operation autograd goes through
ten such tensors, which takes a third of a training step of a small model; here a few rows at a time are read once.
"""

from typing import Any

import torch

NUMBERS = 1 << 20  # of logits at a time


def divergence(found: torch.Tensor, wanted: torch.Tensor, T: float) -> torch.Tensor:
    """The mean over tokens of KL(softmax(wanted / T) ‖ softmax(found / T)), in nats, a scalar.

    Args:
        found: logits (tokens, words); gradients go here.
        wanted: logits (tokens, words), a constant.
        T: the temperature.
    """
    value: torch.Tensor = _Divergence.apply(found, wanted, T)  # type: ignore[no-untyped-call]
    return value


class _Divergence(torch.autograd.Function):
    """∂/∂found of a token's KL is (softmax(found / T) − softmax(wanted / T)) / T."""

    @staticmethod
    def forward(ctx: Any, found: torch.Tensor, wanted: torch.Tensor, T: float) -> torch.Tensor:
        count = len(found)
        gradient = torch.empty_like(found)
        total = torch.zeros((), device=found.device)
        rows = max(1, NUMBERS // found.shape[1])
        for part in range(0, count, rows):
            here = slice(part, part + rows)
            p, q = (log_probabilities(logits[here], T) for logits in (wanted, found))
            likely = p.exp()
            total += likely.mul(p.sub_(q)).sum()
            gradient[here] = q.exp_().sub_(likely).div_(T * count)
        ctx.save_for_backward(gradient)
        return total / count

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(outer[0]), None, None  # in place: a second time is an error of autograd's


def log_probabilities(logits: torch.Tensor, T: float) -> torch.Tensor:
    """log softmax(logits / T) of each row, float32."""
    return torch.log_softmax(logits if T == 1 else logits.float() / T, -1, dtype=torch.float32)
