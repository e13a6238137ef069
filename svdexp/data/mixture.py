"""Several texts in one: how many windows each gives, and in which order."""

from collections.abc import Sequence

import torch


def apportioned(shares: Sequence[float], total: int) -> list[int]:
    """`total` dealt out by `shares`, which need not add up to 1: whole numbers, the largest remainders rounded up."""
    exact = [total * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def interleaved(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The windows of all `parts`, (N_i, L), in one (ΣN_i, L), so that every stretch holds about its share of each."""
    places = torch.cat([(torch.arange(len(part)) + 0.5) / len(part) for part in parts])
    return torch.cat(list(parts))[torch.argsort(places, stable=True)]
