"""One decoder block with a model's shapes and random numbers, run on this device, to see what a pass reaches of it.

Square products alone flatter a device: a block's are narrow, its attention, norms and activations are no products, and
each of its operations is started from Python. So the rates are those at which the counts of `Work` give the seconds
that this block took. It has what most decoders have: two norms in float32, rotary positions, causal attention with
heads of HEAD, and every linear layer.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from svdexp.models.work import BETWEEN, BLOCK_LAUNCHES

HEAD = 64
# Beyond these sides and so many layers rates change little, and the probe would be slow.
SIDE, LAYERS = 2048, 16
# FLOPs of a forward pass at most, so that all takes a fraction of a second.
FLOPS = 1e10
# Of the seconds of a pass, what products take at least: what is counted beside them is rough.
LEAST = 0.2


class Counts(NamedTuple):
    """What `Work` counts for one pass of the block: products forward and back, and bytes beside them."""

    forward: float
    backward: float
    moved: float


class Block:
    """A block whose linear layers have `shapes`, of (m, n) each."""

    def __init__(self, shapes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype):
        cut = [(min(m, SIDE), min(n, SIDE)) for m, n in shapes[:LAYERS]]
        self.width = Counter(n for _, n in cut).most_common(1)[0][0]
        generator = torch.Generator().manual_seed(0)  # the run's random numbers stay those of its seed
        self.weights = [(torch.randn(m, n, generator=generator) / n**0.5).to(device, dtype) for m, n in cut]

    @property
    def entries(self) -> int:
        """Of all matrices."""
        return sum(W.numel() for W in self.weights)

    def tokens(self, length: int) -> int:
        """As many as `length`, or as FLOPS allows."""
        return max(1, min(length, int(FLOPS / (2 * self.entries))))

    def inputs(self, length: int) -> torch.Tensor:
        """States (1, length, width)."""
        W = self.weights[0]
        return torch.randn(1, length, self.width, generator=torch.Generator().manual_seed(1)).to(W)

    def counts(self, length: int) -> Counts:
        """For one window of `length` tokens; its bytes are a forward pass's."""
        attention = 4 * length * self.width
        stored = sum(len(W) for W in self.weights) + sum({W.shape[1] for W in self.weights})
        moved = BETWEEN * stored * self.weights[0].itemsize * length
        linear = 2 * self.entries
        return Counts(length * (linear + attention), length * (linear + 2 * attention), moved)

    def __call__(self, h: torch.Tensor) -> torch.Tensor:
        """What leaves the block, (1, length, width); layers that are as wide as it add to it."""
        x = norm(h)
        h = h + attention(x)
        outputs: dict[int, torch.Tensor] = {self.width: norm(h)}
        for W in self.weights:
            m, n = W.shape
            x = outputs[n] if n in outputs else h[..., :1].expand(*h.shape[:-1], n)
            y = nn.functional.linear(x if n == self.width else nn.functional.silu(x) * x, W)
            if m == self.width:
                h = h + y
            else:
                outputs[m] = y
        return h


def norm(h: torch.Tensor) -> torch.Tensor:
    """RMSNorm as transformers computes it, in float32."""
    wide = h.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(h)


def attention(x: torch.Tensor) -> torch.Tensor:
    """Causal, of queries, keys and values that all are x (1, length, width), with rotated queries and keys."""
    head = min(HEAD, x.shape[-1])
    heads = x[..., : x.shape[-1] // head * head].reshape(*x.shape[:-1], -1, head).transpose(1, 2)
    angles = torch.ones(x.shape[1], head, dtype=x.dtype, device=x.device)
    rotated = [heads * angles + torch.cat(heads.chunk(2, -1)[::-1], -1) * angles for _ in range(2)]
    q, k = rotated
    y = nn.functional.scaled_dot_product_attention(q, k, heads, is_causal=True).transpose(1, 2).flatten(-2)
    return nn.functional.pad(y, (0, x.shape[-1] - y.shape[-1]))


class Rates(NamedTuple):
    """FLOP/s forward and backward in the model's format, and seconds to start one of a block's operations."""

    forward: float
    backward: float
    launch: float


def launches(seconds: float, counts: Counts, weights: float, rate: float, bandwidth: float) -> float:
    """Seconds to start one of the BLOCK_LAUNCHES operations of a pass of one token, which reads `weights` bytes."""
    beside = counts.forward / rate + (counts.moved + weights) / bandwidth
    return max(seconds - beside, LEAST * seconds) / BLOCK_LAUNCHES


def reached(flops: float, seconds: float, moved: float, starts: float, bandwidth: float, launch: float) -> float:
    """FLOP/s at which the products of a pass of `seconds` leave time for what else is counted in it."""
    return flops / max(seconds - moved / bandwidth - starts * launch, LEAST * seconds)
