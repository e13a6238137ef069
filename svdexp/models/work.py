"""How work is counted, what it is done on, and how a part of a method states its own.

Counts are FLOPs of leading order; a multiplication and an addition are two.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from svdexp.models.matrices import Matrix

# Norms, rotations, activations and residuals read and write what stands between two products about so many times,
BETWEEN = 4
# in about so many operations a block.
BLOCK_LAUNCHES = 45


@dataclass(frozen=True)
class Work:
    """FLOPs, apart by how fast a device does them, what is done beside products, and memory.

    Attributes:
        model: products in the model's number format.
        backward: the same, on the way back; a device may be slower there.
        float32: products in float32, in which statistics are summed.
        float64: products, triangular solutions and Cholesky factors in float64.
        eigen: what is far slower than products of as many FLOPs: eigendecompositions, SVDs, QR and LU in float64.
        moved: bytes that are read or written outside of products.
        launches: small operations, each of which takes as long as it takes to start one.
        bytes: the most that is alive at once on the model's device, beyond the model.
        elapsed: seconds that were measured instead: of Python's start, of reading files.
    """

    model: float = 0.0
    backward: float = 0.0
    float32: float = 0.0
    float64: float = 0.0
    eigen: float = 0.0
    bytes: float = 0.0
    moved: float = 0.0
    launches: float = 0.0
    elapsed: float = 0.0

    @property
    def flops(self) -> float:
        """Of all kinds."""
        return self.model + self.backward + self.float32 + self.float64 + self.eigen

    def __add__(self, other: "Work") -> "Work":
        """Both, one after the other: all adds up, but of bytes the larger counts."""
        return Work(
            self.model + other.model,
            self.backward + other.backward,
            self.float32 + other.float32,
            self.float64 + other.float64,
            self.eigen + other.eigen,
            max(self.bytes, other.bytes),
            self.moved + other.moved,
            self.launches + other.launches,
            self.elapsed + other.elapsed,
        )

    def __mul__(self, times: float) -> "Work":
        """The same again and again: all grows, but bytes do not."""
        return Work(
            self.model * times,
            self.backward * times,
            self.float32 * times,
            self.float64 * times,
            self.eigen * times,
            self.bytes,
            self.moved * times,
            self.launches * times,
            self.elapsed * times,
        )


@dataclass(frozen=True)
class Workload:
    """What a run works on, in numbers that a part can multiply. Tokens count where they enter the model.

    Attributes:
        layers: the targeted layers, in the order of the model's modules.
        leaders: for each of them, the first linear layer fed by the same tensor.
        blocks: how many blocks the model has.
        width: of the hidden states.
        vocabulary: width of the logits.
        body, head: entries of all matrices that multiply a token, inside and outside the blocks.
        stored: numbers that a backward pass keeps per token, see `forward_backward`.
        itemsize: bytes of one number of the model.
        model_bytes: of the dense model.
        windows, length: how many windows calibrate, and their tokens.
        ranks: what each of the layers is expected to get; None is not factorised.
        kept_entries: of the matrices that multiply a token in the targeted layers, after compression.
        kept_share: of the targeted layers' bits.
    """

    layers: tuple[Matrix, ...]
    leaders: Mapping[str, str]
    blocks: int
    width: int
    vocabulary: int
    body: int
    head: int
    stored: int
    itemsize: int
    model_bytes: int
    windows: int
    length: int
    ranks: Mapping[str, int | None]
    kept_entries: int
    kept_share: float

    @property
    def tokens(self) -> int:
        """How many tokens calibrate."""
        return self.windows * self.length

    @property
    def inputs(self) -> dict[str, int]:
        """The width n of each distinct input of targeted layers, by leader."""
        return {self.leaders[layer.name]: layer.n for layer in self.layers}

    @property
    def entries(self) -> int:
        """Of the targeted layers' dense matrices."""
        return sum(layer.m * layer.n for layer in self.layers)

    @property
    def compressed_bytes(self) -> float:
        """Of the model after compression, as bits are counted: in the model's own format."""
        return self.model_bytes - (1 - self.kept_share) * self.entries * self.itemsize

    @property
    def factor_numbers(self) -> int:
        """Of all plain factors A (m, r) and B (r, n)."""
        return sum(self.rank(layer) * (layer.m + layer.n) for layer in self.layers)

    def rank(self, layer: Matrix) -> int:
        """The rank that `layer` is expected to get; 0 where it is not factorised."""
        return self.ranks[layer.name] or 0

    def forward(
        self,
        windows: float,
        *,
        length: int | None = None,
        batch: int = 1,
        head: bool = True,
        compressed: bool = False,
        share: float = 1.0,
    ) -> Work:
        """`windows` forward passes, `batch` windows of `length` tokens (by default the calibration's) at a time.

        They go through that `share` of the blocks, and through the head if `head`.

        2 FLOPs per token and entry of a matrix, and 4 · length · width per token and block for attention. Bytes are
        the widest activation, in and out, and with `head` the logits beside their float32 copy and softmax. Between
        products each of their inputs and outputs is read or written BETWEEN times, and a block is BLOCK_LAUNCHES
        operations.
        """
        length = length or self.length
        inside = share * (2 * self._entries(False, compressed) + self._attention(length))
        per_token = inside + (2 * self.head if head else 0)
        widest = max(layer.m + layer.n for layer in self.layers)
        logits = self.vocabulary * (self.itemsize + 8) if head else 0
        return Work(
            model=windows * length * per_token,
            bytes=batch * length * (2 * self.itemsize * widest + logits),
            moved=windows * length * self._moved(head, share),
            launches=math.ceil(windows / batch) * share * self.blocks * BLOCK_LAUNCHES,
        )

    def decoding(self, steps: float, rows: int, *, compressed: bool = False) -> Work:
        """`steps` steps that each read all weights for one token of `rows` sequences."""
        step = self.forward(rows, length=1, batch=rows, compressed=compressed)
        weights = self._entries(head=True, compressed=compressed) * self.itemsize
        return (step + Work(moved=weights)) * steps

    def forward_backward(self, windows: float, *, compressed: bool = False) -> Work:
        """`windows` passes forward and backward of one calibration window each, without gradients of parameters.

        The backward pass repeats each matrix's product once, and attention's twice, as both of its factors have
        gradients. It keeps about what goes in and comes out of every linear layer, distinct inputs once (`stored`);
        the loss takes the logits, their softmax and both gradients.
        """
        entries, attention = self._entries(head=True, compressed=compressed), self._attention(self.length)
        tokens = windows * self.length
        kept = self.stored * self.itemsize + self.vocabulary * (3 * self.itemsize + 8)
        return Work(
            model=tokens * (2 * entries + attention),
            backward=tokens * (2 * entries + 2 * attention),
            bytes=self.length * kept,
            moved=3 * tokens * self._moved(head=True),
            launches=3 * windows * self.blocks * BLOCK_LAUNCHES,
        )

    def _entries(self, head: bool, compressed: bool) -> float:
        return self.body + (self.head if head else 0) - (self.entries - self.kept_entries if compressed else 0)

    def _moved(self, head: bool, share: float = 1.0) -> float:
        """Bytes per token that a pass reads or writes outside of products; of the logits, what their loss takes."""
        return share * BETWEEN * self.stored * self.itemsize + (self.vocabulary * (self.itemsize + 16) if head else 0)

    def _attention(self, length: int) -> int:
        return 4 * length * self.width * self.blocks


@runtime_checkable
class Costly(Protocol):
    """An allocation, update or storage whose work is worth counting; parts without `cost` take next to nothing."""

    def cost(self, workload: Workload) -> Work:
        """What the part itself does in one run."""


def cost_of(part: object, workload: Workload) -> Work:
    """What `part` states."""
    return part.cost(workload) if isinstance(part, Costly) else Work()


def eigh_flops(d: float) -> float:
    """All eigenvectors of a symmetric (d, d) matrix: 9 d³, Golub and Van Loan, Matrix Computations, §8.3."""
    return 9 * d**3


def svd_flops(m: float, n: float) -> float:
    """The thin SVD of an (m, n) matrix: 6 l k² + 20 k³ with k = min(m, n), l = max(m, n), as there, §8.6."""
    small, large = sorted((m, n))
    return 6 * large * small**2 + 20 * small**3
