"""What a spectrum σ₁ ≥ σ₂ ≥ … of L W R, (min(m, n),), says about a matrix."""

import math

import torch

from svdexp.allocation.budget import Budget, SpectralEvidence


def tails(spectrum: torch.Tensor) -> torch.Tensor:
    """Σ_{i>r} σᵢ², the squared error at rank r, for r = 0 … min(m, n); (min(m, n) + 1,) float64 on the CPU."""
    energy = spectrum.double().cpu().square()
    return torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])


def effective_rank(spectrum: torch.Tensor) -> float:
    """exp H(σ² / Σ σ²), the exponential of the entropy of the energies: from 1 to min(m, n)."""
    energy = spectrum.double().square()
    share = energy / energy.sum().clamp_min(1e-300)
    return float(torch.special.entr(share).sum().exp())


def stable_rank(spectrum: torch.Tensor) -> float:
    """‖·‖_F² / σ₁²: from 1 to min(m, n); 1 for a matrix of zeros."""
    energy = spectrum.double().square()
    peak = float(energy.max())
    return float(energy.sum()) / peak if peak > 0 else 1.0


def uniform_errors(budget: Budget, evidence: SpectralEvidence) -> dict[str, float]:
    """‖L (W − W_k) R‖ per layer at its uniform rank k, over all calibration tokens; the spectra are means per token."""
    errors = {}
    for name in budget.shapes:
        tail = tails(evidence.spectra[name])
        rank = min(int(budget.uniform_rank(name)), len(tail) - 1)
        errors[name] = math.sqrt(evidence.tokens * float(tail[rank]))
    return errors
