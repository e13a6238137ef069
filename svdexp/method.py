"""A compression method is its parts."""

from dataclasses import dataclass

from svdexp.allocation import Allocation
from svdexp.calibration import GRADIENT_STATISTICS
from svdexp.errors import UserError
from svdexp.factorisation import Weighting
from svdexp.schema import Numerics, SigmaFuse, Traversal
from svdexp.storage import Storage
from svdexp.update import Update


@dataclass(frozen=True)
class Method:
    """Which error counts, who gets which rank, how factors are kept, and how they are repaired.

    Attributes:
        name: what the record calls it.
        weighting: statistics → L and R of ‖L (W − A B) R‖.
        allocation: budget and evidence → ranks.
        storage: what a rank costs, and the layer that holds it.
        update: repair after truncation, or None.
        traversal: where the weighting's statistics come from.
        numerics: route to the optimum.
        sigma_fuse: which factor carries the singular values.
    """

    name: str
    weighting: Weighting
    allocation: Allocation
    storage: Storage
    update: Update | None = None
    traversal: Traversal = Traversal.dense
    numerics: Numerics = Numerics.eigh
    sigma_fuse: SigmaFuse = SigmaFuse.balanced

    def __post_init__(self) -> None:
        gradients = [need for need in self.weighting.needs if need in GRADIENT_STATISTICS]
        if gradients and self.traversal is Traversal.blockwise:
            raise UserError(
                f"method.traversal=blockwise runs no backward pass, but the weighting needs {gradients[0]}; "
                "use method.traversal=dense"
            )
