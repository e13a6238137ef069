"""Accumulators: each turns a stream of activations, or of gradients, into one statistic.

Sums are float32 on the activations' device; results are means, so they do not depend on how the tokens were
split into batches beyond the order of float32 additions.
"""

from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from scipy.linalg.blas import ssyrk

from svdexp.runtime.processes import Processes

# What one layer's calibration yields: statistic name → tensor. Layers fed by one tensor share the tensors.
Statistics = Mapping[str, torch.Tensor]

# Width of the block rows in which second moments add up beside a CPU: wide enough for fast products, narrow enough to
# skip much.
BLOCK = 256


class Statistic(Protocol):
    """What every accumulator can do."""

    def pool(self, processes: Processes) -> None:
        """Account for what the other processes added."""

    def sums(self) -> dict[str, torch.Tensor]:
        """What there is of it so far, by name."""

    def resume(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Go on from such `sums`."""

    def result(self) -> torch.Tensor:
        """The statistic over everything added."""


class VectorStatistic(Statistic, Protocol):
    """A statistic of one vector a token: a layer's input x, its output, or the gradient that it gives its input."""

    def __init__(self, width: int, device: torch.device) -> None: ...

    def add(self, v: torch.Tensor) -> None:
        """Account for the vectors `v` of shape (tokens, width)."""

    @staticmethod
    def flops(width: int) -> int:
        """What `add` takes per token, in FLOPs."""


class GradientStatistic(Statistic, Protocol):
    """A statistic of g = ∂loss/∂y, the gradient at a layer's output; the loss is the sum over tokens."""

    needs_inputs: ClassVar[bool]  # whether `add` looks at x

    def __init__(self, m: int, n: int, device: torch.device) -> None: ...

    def add(self, x: torch.Tensor | None, g: torch.Tensor) -> None:
        """Account for inputs `x` (windows, tokens, n) and output gradients `g` (windows, tokens, m)."""

    @staticmethod
    def flops(m: int, n: int) -> int:
        """What `add` takes per token, in FLOPs."""


class Mean:
    """A sum and how many it is of."""

    def __init__(self, *shape: int, device: torch.device):
        self.total = torch.zeros(*shape, device=device)
        self.count = 0

    def pool(self, processes: Processes) -> None:
        """Add what the other processes added."""
        self.total = processes.add_up(self.total)
        self.count = int(processes.add_up(torch.tensor(self.count)))

    def sums(self) -> dict[str, torch.Tensor]:
        """The sum, and the count."""
        return {"total": self.total, "count": torch.tensor(self.count)}

    def resume(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Go on from them."""
        self.total, self.count = sums["total"].to(self.total.device), int(sums["count"])

    def result(self) -> torch.Tensor:
        """The mean, or zeros where nothing arrived (an expert that no token was routed to)."""
        return self.total / max(self.count, 1)


class SecondMoment(Mean):
    """E[v vᵀ] of a stream of vectors, (d, d)."""

    def __init__(self, width: int, device: torch.device):
        super().__init__(width, width, device=device)

    def add(self, v: torch.Tensor) -> None:
        """Add Σ v vᵀ over the rows of `v`: the upper triangle, and what below it comes with that."""
        if len(v):
            add = _add_by_blas if v.device.type == "cpu" else add_in_block_rows
            add(self.total, v.float())
            self.count += len(v)

    def result(self) -> torch.Tensor:
        """The mean of the upper triangle, and its mirror image."""
        mean = super().result()
        for start in range(0, len(mean), BLOCK):
            stop = start + BLOCK
            square = mean[start:stop, start:stop]
            square.copy_(square.triu() + square.triu(1).T)
            mean[stop:, start:stop] = mean[start:stop, stop:].T
        return mean

    @staticmethod
    def flops(width: int) -> int:
        """In block rows: n² per token for wide inputs, 2 n² up to one block. A CPU takes n² of all."""
        return sum(2 * min(BLOCK, width - start) * (width - start) for start in range(0, width, BLOCK))


class Gram(SecondMoment):
    """C = E[x xᵀ], the input second moment, (n, n)."""


class OutputGram(SecondMoment):
    """W C Wᵀ = E[y yᵀ] of outputs y = W x without bias, (m, m): C as W sees it."""


class InputGradGram(SecondMoment):
    """Wᵀ G W = E[(Wᵀ g)(Wᵀ g)ᵀ] of what the layer alone gives its input as a gradient, (n, n): G as W sees it."""


def add_in_block_rows(total: torch.Tensor, v: torch.Tensor) -> None:
    """Add Σ v vᵀ over the rows of `v` to the upper triangle of `total`, and to some of what is below it."""
    for start in range(0, v.shape[1], BLOCK):
        total[start : start + BLOCK, start:].addmm_(v[:, start : start + BLOCK].T, v[:, start:])


def _add_by_blas(total: torch.Tensor, v: torch.Tensor) -> None:
    # BLAS has a product of a matrix with itself, at half of the cost, and torch has not. To BLAS rows are columns.
    ssyrk(1.0, v.contiguous().numpy().T, beta=1.0, c=total.numpy().T, lower=1, overwrite_c=1)


class AbsMean(Mean):
    """E|x| per input channel, (n,)."""

    def __init__(self, width: int, device: torch.device):
        super().__init__(width, device=device)

    def add(self, v: torch.Tensor) -> None:
        """Add Σ |v|."""
        self.total += v.float().abs().sum(0)
        self.count += len(v)

    @staticmethod
    def flops(width: int) -> int:
        """Absolute value and sum."""
        return 2 * width


class AbsMax:
    """max |x| per input channel, (n,)."""

    def __init__(self, width: int, device: torch.device):
        self.largest = torch.zeros(width, device=device)

    def add(self, v: torch.Tensor) -> None:
        """Keep the larger."""
        if len(v):
            self.largest = torch.maximum(self.largest, v.float().abs().amax(0))

    def pool(self, processes: Processes) -> None:
        """Keep the largest of all processes."""
        self.largest = processes.largest(self.largest)

    def sums(self) -> dict[str, torch.Tensor]:
        """The maximum so far."""
        return {"largest": self.largest}

    def resume(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Go on from it."""
        self.largest = sums["largest"].to(self.largest.device)

    def result(self) -> torch.Tensor:
        """The maximum."""
        return self.largest

    @staticmethod
    def flops(width: int) -> int:
        """Absolute value and comparison."""
        return 2 * width


class GradGram:
    """G = E[g gᵀ], the output-gradient second moment, (m, m)."""

    needs_inputs: ClassVar[bool] = False

    def __init__(self, m: int, n: int, device: torch.device):
        self.moment = SecondMoment(m, device)

    def add(self, x: torch.Tensor | None, g: torch.Tensor) -> None:
        """Add Σ g gᵀ over all tokens."""
        self.moment.add(g.flatten(0, -2))

    def pool(self, processes: Processes) -> None:
        """Pool the moment."""
        self.moment.pool(processes)

    def sums(self) -> dict[str, torch.Tensor]:
        """Those of the moment."""
        return self.moment.sums()

    def resume(self, sums: Mapping[str, torch.Tensor]) -> None:
        """Go on from them."""
        self.moment.resume(sums)

    def result(self) -> torch.Tensor:
        """The mean over tokens."""
        return self.moment.result()

    @staticmethod
    def flops(m: int, n: int) -> int:
        """That of the moment."""
        return SecondMoment.flops(m)


class ClippedGradGram(GradGram):
    """G as KFAC-SVD takes it (LEMS, ICML 2026), (m, m): from the middle three quarters of each window's tokens.

    The norm of each of their gradients is brought into 0.1 … 10 times its mean over these tokens of the window; one of
    zero stays zero, and counts in no mean of norms.
    """

    def add(self, x: torch.Tensor | None, g: torch.Tensor) -> None:
        """Add Σ g gᵀ over those tokens."""
        left_out = g.shape[1] // 8
        super().add(x, clipped(g[:, left_out : g.shape[1] - left_out].float()))


def clipped(g: torch.Tensor, least: float = 0.1, most: float = 10.0) -> torch.Tensor:
    """Gradients (windows, tokens, m) whose norms are `least` to `most` times the window's mean norm."""
    norms = g.norm(dim=-1, keepdim=True)
    some = norms > 0
    mean = norms.sum(1, keepdim=True) / some.sum(1, keepdim=True).clamp_min(1)
    scale: torch.Tensor = norms.clamp(least * mean, most * mean) / norms.where(some, 1)
    return g * scale


class Fisher(Mean):
    """E[(∂loss/∂W)²] per element of W, (m, n): squared gradients of single windows, averaged (empirical Fisher)."""

    needs_inputs: ClassVar[bool] = True

    def __init__(self, m: int, n: int, device: torch.device):
        super().__init__(m, n, device=device)

    def add(self, x: torch.Tensor | None, g: torch.Tensor) -> None:
        """Square each window's own weight gradient Σ_t g_t x_tᵀ."""
        assert x is not None
        for inputs, gradients in zip(x.float(), g.float(), strict=True):
            self.total += (gradients.T @ inputs).square()
        self.count += len(x)

    @staticmethod
    def flops(m: int, n: int) -> int:
        """The product that is the weight's gradient."""
        return 2 * m * n


class FisherSum(Fisher):
    """Σ (∂loss/∂W)² per element of W, (m, n), over all windows, also those that do not reach an expert.

    So experts compare: a mean would be one over the windows that reach each.
    """

    def result(self) -> torch.Tensor:
        """The sum."""
        return self.total


# Of x, shared by layers that one tensor feeds; all others are each layer's own.
INPUT_STATISTICS: dict[str, type[VectorStatistic]] = {"gram": Gram, "abs_mean": AbsMean, "abs_max": AbsMax}
OUTPUT_STATISTICS: dict[str, type[VectorStatistic]] = {"output_gram": OutputGram}
GRADIENT_STATISTICS: dict[str, type[GradientStatistic]] = {
    "grad_gram": GradGram,
    "clipped_grad_gram": ClippedGradGram,
    "fisher": Fisher,
    "fisher_sum": FisherSum,
}
INPUT_GRADIENT_STATISTICS: dict[str, type[VectorStatistic]] = {"input_grad_gram": InputGradGram}
# The names of all.
STATISTICS = (*INPUT_STATISTICS, *OUTPUT_STATISTICS, *GRADIENT_STATISTICS, *INPUT_GRADIENT_STATISTICS)


def pack(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One entry per distinct tensor, keyed by the comma-joined names of the layers that share it."""
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return {",".join(sharing): tensors[sharing[0]] for sharing in names.values()}


def unpack(packed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `pack`."""
    return {name: tensor for names, tensor in packed.items() for name in names.split(",")}
