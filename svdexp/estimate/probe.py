"""A few decoder blocks with a model's widths, run on this device, to see what a pass reaches of it.

Square products alone flatter a device: a block's are narrow, its attention, norms and activations are no products, each
operation is started from Python, and weights and what a backward pass keeps come from memory. So the rates are those at
which the counts of `Work` give the seconds that these blocks took: Llama's, as most decoders have what they have, in
transformers' own code.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import DynamicCache, LlamaConfig, LlamaModel

from svdexp.models.work import BETWEEN, BLOCK_LAUNCHES

HEAD, LEAST_HEAD = 64, 8
# Beyond this side rates change little, and the probe would be slow.
SIDE = 2048
BLOCKS = 4  # more than the processor's caches hold of most models
# FLOPs of a forward pass at most, so that all takes a second or two.
FLOPS = 2e10
# Of the seconds of a pass, what products take at least: what is counted beside them is rough.
LEAST = 0.2


class Counts(NamedTuple):
    """What `Work` counts for one pass of the blocks: products forward and back, and bytes beside them going forward."""

    forward: float
    backward: float
    moved: float


class Probe:
    """BLOCKS blocks of the widths of linear layers with `shapes`, of (m, n) each."""

    def __init__(self, shapes: Sequence[tuple[int, int]], device: torch.device, dtype: torch.dtype):
        config = config_like(shapes)
        with torch.device("meta"):
            model = LlamaModel(config)
        self.model: nn.Module = model.to_empty(device=device).requires_grad_(False)
        self.model.train(False).to(dtype)
        self.config = config
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            tensor.fill_(0.01)  # the run's random numbers stay those of its seed

    @property
    def layers(self) -> list[nn.Linear]:
        """All linear layers."""
        return [module for module in self.model.modules() if isinstance(module, nn.Linear)]

    @property
    def entries(self) -> int:
        """Of all matrices."""
        return sum(layer.weight.numel() for layer in self.layers)

    def tokens(self, length: int) -> int:
        """As many as `length`, or as FLOPS allows."""
        return max(1, min(length, int(FLOPS / (2 * self.entries))))

    def states(self, length: int) -> torch.Tensor:
        """States (1, length, width) that enter."""
        weight = self.layers[0].weight
        angles = torch.arange(length * weight.shape[1], dtype=torch.float32).reshape(1, length, -1)
        return angles.sin().to(weight)

    def counts(self, length: int) -> Counts:
        """For one window of `length` tokens."""
        attention = 4 * length * self.config.hidden_size * BLOCKS
        stored = sum(layer.out_features for layer in self.layers)
        stored += BLOCKS * (3 * self.config.hidden_size + self.config.intermediate_size)
        linear, itemsize = 2 * self.entries, self.layers[0].weight.itemsize
        moved = BETWEEN * stored * itemsize * length
        return Counts(length * (linear + attention), length * (linear + 2 * attention), moved)

    @torch.no_grad()
    def step(self) -> torch.Tensor:
        """One more token behind one that is kept, as in decoding."""
        kept = DynamicCache(config=self.config)
        self.model(inputs_embeds=self.states(1), past_key_values=kept, use_cache=True)
        out: torch.Tensor = self.model(inputs_embeds=self.states(1), past_key_values=kept, use_cache=True)[0]
        return out[0]

    @torch.no_grad()
    def ahead(self, states: torch.Tensor) -> torch.Tensor:
        """Forward."""
        out: torch.Tensor = self.model(inputs_embeds=states, use_cache=False)[0]
        return out[0]

    @torch.enable_grad()
    def there_and_back(self, states: torch.Tensor) -> torch.Tensor:
        """Forward, and the gradient of what entered."""
        states = states.detach().requires_grad_()
        out: torch.Tensor = self.model(inputs_embeds=states, use_cache=False)[0]
        torch.autograd.backward(out.float().sum())
        assert states.grad is not None
        return states.grad[0]


def config_like(shapes: Sequence[tuple[int, int]]) -> LlamaConfig:
    """Of blocks whose states are as wide as most inputs, whose MLP is as wide as the widest side, and whose keys and
    values are as narrow as the narrowest output, all up to SIDE."""
    width = min(SIDE, Counter(n for _, n in shapes).most_common(1)[0][0])
    narrow = min(width, *(m for m, _ in shapes))
    head = math.gcd(width, narrow, HEAD)
    if head < LEAST_HEAD:
        head = max(LEAST_HEAD, min(HEAD, width) // LEAST_HEAD * LEAST_HEAD)
    heads = max(1, width // head)
    return LlamaConfig(
        hidden_size=heads * head,
        intermediate_size=min(2 * SIDE, max(max(shape) for shape in shapes)),
        num_hidden_layers=BLOCKS,
        num_attention_heads=heads,
        num_key_value_heads=math.gcd(heads, max(1, narrow // head)),
        head_dim=head,
        vocab_size=8,
    )


class Rates(NamedTuple):
    """FLOP/s forward and backward in the model's format, and seconds to start one of a block's operations."""

    forward: float
    backward: float
    launch: float


def launches(seconds: float, counts: Counts, weights: float, rate: float, bandwidth: float) -> float:
    """Seconds to start one operation of a pass of one token through all BLOCKS, which reads `weights` bytes."""
    beside = counts.forward / rate + (counts.moved + weights) / bandwidth
    return max(seconds - beside, LEAST * seconds) / (BLOCKS * BLOCK_LAUNCHES)


def reached(flops: float, seconds: float, moved: float, starts: float, bandwidth: float, launch: float) -> float:
    """FLOP/s at which the products of a pass of `seconds` leave time for what else is counted in it."""
    return flops / max(seconds - moved / bandwidth - starts * launch, LEAST * seconds)
