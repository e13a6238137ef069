"""How small a model shall be: a ratio of the compressed layers' bits, the bytes of the whole, or how near to dense."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from svdexp.models.matrices import Matrix
from svdexp.models.structure import stored_bytes
from svdexp.runtime.errors import require
from svdexp.runtime.sizes import size_in_words


@dataclass(frozen=True)
class WholeModel:
    """At most so many bytes of stored tensors, layers that are not compressed included.

    Attributes:
        bytes: how many; up to 1, a fraction of the dense model's.
    """

    bytes: float

    def ratio(self, model: PreTrainedModel, layers: Sequence[Matrix]) -> float:
        """The kept fraction of the bits of `layers` of the dense `model` that leaves it at most this size.

        Bits count numbers as 16 (docs/architecture.md, Size). In a wider format numbers grow with the dense model's,
        but integers do not, so that a model with some is then smaller than was asked for.

        Raises:
            UserError: it is more than the dense model takes, or less than the other layers alone.
        """
        whole = stored_bytes(model)
        targeted = sum(layer.m * layer.n for layer in layers) * model.dtype.itemsize
        wanted = self.bytes * whole if self.bytes <= 1 else self.bytes
        asked, rest = f"bytes={size_in_words(wanted)}", whole - targeted
        require(wanted <= whole, f"{asked} is more than the dense model takes, {size_in_words(whole)}")
        require(
            wanted > rest,
            f"{asked} is less than what is not compressed takes alone, {size_in_words(rest)}: embeddings, head and all "
            "that targets leaves out",
        )
        return (wanted - rest) / targeted


@dataclass(frozen=True)
class NearDense:
    """The smallest size at which the perplexity on a text is at most a multiple of the dense model's.

    Attributes:
        factor: how many times, at least 1.
        text: the text's name, for records and sentences.
    """

    factor: float
    text: str


Size = float | WholeModel | NearDense


def ratio_of(size: float | WholeModel, model: PreTrainedModel, layers: Sequence[Matrix]) -> float:
    """The kept fraction that `size` comes to where `layers` of the dense `model` are compressed.

    Raises:
        UserError: as `WholeModel.ratio`.
    """
    return size.ratio(model, layers) if isinstance(size, WholeModel) else size
