"""The gradient of one step of gradient descent, whose items several processes share."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from svdexp.runtime.processes import Processes


def mean_gradient(
    parameters: Sequence[nn.Parameter],
    batch: Sequence[int],
    loss: Callable[[int], torch.Tensor],
    seed: int,
    step: int,
    processes: Processes,
) -> float:
    """Leave the gradient of the mean loss over `batch` in the parameters, the same in every process.

    Args:
        parameters: what is trained.
        batch: indices of the items of this step.
        loss: of one item, by its index; a scalar.
        seed, step: of what a loss draws at random, together with the index.
        processes: which share the items.

    Returns:
        the mean loss.
    """
    total = torch.zeros((), dtype=torch.float64)
    for parameter in parameters:
        parameter.grad = None
    with torch.random.fork_rng(), torch.enable_grad():
        for index in processes.share(batch):
            _seed(seed + 1_000_003 * step + index)
            part = loss(index) / len(batch)
            part.backward()  # type: ignore[no-untyped-call]
            total += float(part.detach())
    for parameter in parameters:
        # a process has none where there are fewer items than processes
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = processes.add_up(own)
    return float(processes.add_up(total))


def _seed(number: int) -> None:
    """What torch.manual_seed does for devices that models run on.

    That also notes, for each kind of device that is not in use, from where it was called, which takes longer than a
    tiny model's step.
    """
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(number)
