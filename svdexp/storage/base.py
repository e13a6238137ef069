"""What every storage can do: one abstract class, and below it finals, which nobody derives from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.calibration import Statistics
from svdexp.data.reads import described
from svdexp.models.factors import Factors
from svdexp.models.matrices import Matrix, stacks
from svdexp.models.work import Work, Workload
from svdexp.runtime.shelves import Shelf

# Sizes are those of a checkpoint in a 16-bit format, whatever format a run computes in: `ratio` then means the same
# everywhere, and formats of their own width, such as int8, compare with the dense matrix that people ship.
NUMBER_BITS = 16

# What a storage keeps of W beside its factors: tensors by name, for the layer that it makes.
Kept = Mapping[str, torch.Tensor]
# Indices into several storages, and what the storage at that place loses of a matrix (m, n); None: nothing.
Errors = Iterator[tuple[int, torch.Tensor | None]]


@dataclass(frozen=True)
class Storage(ABC):
    """Prices a rank and builds the layer that holds it; the engine asks it for everything in which storages differ.

    A storage derives from this class, says `bits` and `layer`, and is final; what two of them share are functions.

    Attributes:
        waits: whether layers are plain factors, or dense, until `finish`, which runs the blocks one by one, stores all.
    """

    waits: ClassVar[bool] = False

    @property
    def rounds_factors(self) -> bool:
        """Whether its layers hold factors less exactly than in 16 bits."""
        return False

    def __init_subclass__(cls) -> None:
        """Refuse what no model could be: plain factors, which wait for `finish`, hold no part kept beside them."""
        if cls.waits and cls.target is not Storage.target:
            raise TypeError(
                f"{cls.__name__} waits for the finished model, so it cannot keep a part of W beside factors"
            )

    @abstractmethod
    def bits(self, rank: int, m: int, n: int) -> int:
        """Stored bits of a rank-`rank` (m, n) matrix."""

    @abstractmethod
    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> nn.Module:
        """The layer that replaces the dense one, of a class in models/portable/.

        Args:
            factors: A (m, r) and B (r, n).
            bias: (m,), or None.
            like: the dense weight, whose dtype and device the layer has.
            kept: what `target` kept of it.

        Raises:
            UserError: it cannot hold these numbers.
        """

    def require_use(self, matrices: Sequence[Matrix]) -> None:  # noqa: B027
        """Raise UserError where it is of no use to any of `matrices`."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The statistics of svdexp.calibration that `target` looks at, beside those of the weighting."""
        return ()

    @property
    def needs_of_experts(self) -> tuple[str, ...]:
        """The statistics that `common` looks at, of experts alone."""
        return ()

    def common(self, weights: Sequence[torch.Tensor], statistics: Sequence[Statistics]) -> Kept | None:
        """What the experts of a stack keep together, from their W (m, n) and statistics; None: nothing.

        `target` and `layer` get it as what is kept of each of them. It must be counted in `common_bits`.
        """
        return None

    def common_bits(self, m: int, n: int) -> int:
        """Stored bits of what experts of shape (m, n) keep together, once for a stack."""
        return 0

    def target(
        self, W: torch.Tensor, C: torch.Tensor | None = None, kept: Kept | None = None
    ) -> tuple[torch.Tensor, Kept | None]:
        """What is decomposed of the dense W (m, n), of the same shape, and what `layer` gets beside its factors.

        A storage that holds W ≈ Q + A B gives W − Q and Q. It must count Q in `bits`.

        Args:
            W: the dense weight.
            C: second moment of the inputs, (n, n), where `needs` asks for "gram".
            kept: what it gave before, or is `common` to experts; then it looks at nothing else.
        """
        return W, None

    @property
    def menu(self) -> Mapping[str, "Form"]:
        """What a matrix may be, by its word, where an allocation chooses that; empty: it has this storage."""
        return {}

    @property
    def split(self) -> str | None:
        """Which part of W is decomposed, in words for the identity of decompositions; None where it is all of W."""
        return None if type(self).target is Storage.target else described(self)

    def divides(self, matrix: Matrix) -> bool:
        """Whether that is so of `matrix`."""
        return self.split is not None

    def multiplied(self, rank: int, m: int, n: int) -> int:
        """Entries of the matrices by which the layer multiplies a token: those of A (m, r) and B (r, n)."""
        return rank * (m + n)

    def whole_bits(self, m: int, n: int) -> int:
        """Stored bits of an (m, n) matrix that is not factorised."""
        return m * n * NUMBER_BITS

    def whole(self, W: torch.Tensor, bias: torch.Tensor | None) -> nn.Module | None:
        """The layer that holds all of W (m, n) and `bias`, with W's dtype and device; None leaves the dense one."""
        return None

    def rounded_factors(self, factors: Factors) -> Factors:
        """The factors that its layer holds, but for the rounding to 16 bits."""
        return factors

    @staticmethod
    def errors(storages: Sequence[Any], W: torch.Tensor, C: torch.Tensor | None) -> Errors:
        """W (m, n) less what `whole` and `finish` keep of it, for each of `storages`, of this class, in any order.

        C is the second moment of the inputs, (n, n), its diagonal, (n,), or None for the identity.
        """
        yield from ((index, None) for index, _ in enumerate(storages))

    @staticmethod  # noqa: B027
    def finish(model: PreTrainedModel, storages: Mapping[Matrix, Any], windows: torch.Tensor, finished: Shelf) -> None:
        """The last step, when all else is done to all layers of `model`, of classes that wait for it.

        Args:
            model: with plain factors, or dense layers, in the places of `storages`.
            storages: all matrices whose storage is of this class, and that.
            windows: calibration tokens (N, L).
            finished: where blocks are left for a run that comes to the same model, and found.
        """

    def cost(self, workload: Workload) -> Work:
        """What the storage itself does in one run, where that is worth counting."""
        return Work()


@dataclass(frozen=True)
class Form:
    """A way to keep a matrix.

    Attributes:
        storage: what keeps it.
        ranked: at one of the ranks of that storage; else whole.
    """

    storage: Storage
    ranked: bool

    @property
    def exact(self) -> bool:
        """Whether it loses what a rank leaves of W and nothing else."""
        return not self.storage.split and not self.storage.rounds_factors

    def measured(self, m: int, n: int) -> list[int] | None:
        """The ranks at which its loss is measured; None: the loss is the spectrum's tail, at any rank.

        That is where factors are rounded: 2^k and 3 · 2^k, from 8 on.
        """
        if not self.ranked or not self.storage.rounds_factors:
            return None
        steps = [rank for power in range(3, min(m, n).bit_length()) for rank in (1 << power, 3 << power - 1)]
        return [rank for rank in steps if rank <= min(m, n)]


def stored_bits(module: nn.Module) -> int:
    """Bits of a layer's tensors, counted; biases are left out, because no method changes them."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return bits_of(tensor for name, tensor in tensors if name.rpartition(".")[2] != "bias")


def bits_of(tensors: Iterable[torch.Tensor]) -> int:
    """Stored bits of tensors."""
    return sum(tensor.numel() * width(tensor) for tensor in tensors)


def parts_of(matrices: Iterable[Matrix], bits: Callable[[Sequence[Matrix]], int]) -> dict[str, int]:
    """Each expert's part of the `bits` that its stack holds together; those of stacks without any are left out."""
    found: dict[str, int] = {}
    for members in stacks(matrices).values():
        if held := bits(members):
            found |= zip((matrix.name for matrix in members), shared_out(held, len(members)), strict=True)
    return found


def shared_out(bits: int, count: int) -> list[int]:
    """Whole bits for each of `count`, as even as can be, `bits` together."""
    ends = [bits * number // count for number in range(count + 1)]
    return [end - start for start, end in pairwise(ends)]


def width(tensor: torch.Tensor) -> int:
    """Bits of one entry: NUMBER_BITS of a floating-point number, what it takes of an integer."""
    return NUMBER_BITS if tensor.is_floating_point() else 8 * tensor.element_size()
