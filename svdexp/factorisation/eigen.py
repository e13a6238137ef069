"""Eigendecompositions of symmetric matrices."""

import torch
from scipy.linalg import eigh as scipy_eigh


def eigh(S: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues (k,), ascending, and eigenvectors (k, k) in columns of S (k, k), of which the lower triangle is read.

    On a CPU by scipy's OpenBLAS: where torch has MKL and the CPU is not Intel's, torch takes half as long again.

    Raises:
        ValueError: S is not finite.
    """
    if S.device.type != "cpu":
        values, vectors = torch.linalg.eigh(S)
        return values, vectors
    # the rows of a torch matrix are the columns of a Fortran one, so what is below the diagonal here is above it there
    found = scipy_eigh(S.contiguous().numpy().T, lower=False, driver="evd")
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])
