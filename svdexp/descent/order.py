"""Which items a step of gradient descent sees."""

import torch


def batch_of(step: int, size: int, count: int, seed: int, epochs: int | None = None) -> list[int]:
    """The indices, below `count`, of the `size` items of `step`; fewer where the last of `epochs` ends.

    Every epoch is a permutation of its own, drawn with the seed; a function of the arguments, so training can go on
    from any step.
    """
    end = (step + 1) * size
    positions = range(step * size, end if epochs is None else min(end, epochs * count))
    orders: dict[int, list[int]] = {}
    for epoch in {position // count for position in positions}:
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        orders[epoch] = torch.randperm(count, generator=generator).tolist()
    return [orders[position // count][position % count] for position in positions]
