"""Whether a checkpoint gives back the model that it was written from."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic
from transformers import PreTrainedModel

from svdexp.checkpoints import checkpoint
from svdexp.models.pictures import Pictures, showing
from svdexp.models.residency import residency_of, running
from svdexp.models.spreading import is_spread, settled
from svdexp.record import Results
from svdexp.record.results import RELOAD
from svdexp.runtime.errors import UserError
from svdexp.runtime.finite import all_finite


@torch.no_grad()
def verify_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    windows: torch.Tensor,
    trust_remote_code: bool = False,
    pictures: Pictures | None = None,
) -> Results:
    """Load what was saved and compare its logits on one window with those of the model in memory.

    Both see the `pictures` in it.

    Raises:
        UserError: those of the model in memory are not finite.
        RuntimeError: they differ by more than rounding, or by nobody knows how much.
    """

    residency = residency_of(model)
    blocks = residency.folder / "reloaded" if residency else None

    def load(device: torch.device) -> PreTrainedModel:
        with unfilled_memory_shows():
            return checkpoint.load_as(folder, "auto", device, None, trust_remote_code, blocks)[0]

    def logits(model: PreTrainedModel) -> torch.Tensor:
        with running(model), showing(model, pictures or {}):
            found: torch.Tensor = model(tokens).logits
        return found

    tokens = windows.to(model.device)
    expected = logits(model)
    if not all_finite(expected):
        wider = "" if model.dtype is torch.float32 else "precision=float32, "
        raise UserError(
            f"the compressed model computes NaN or infinity in {model.dtype}, so {folder} cannot be verified: try "
            f"{wider}a larger ratio or another method"
        )
    found = logits(settled(load, model.device, is_spread(model)))
    difference = float((expected - found).abs().max())
    # NaN fails the comparison as well.
    if not difference <= 8 * torch.finfo(expected.dtype).eps * float(expected.abs().max()):
        raise RuntimeError(f"the model reloaded from {folder} gives other logits (largest difference {difference:g})")
    return RELOAD.says(difference)


@contextmanager
def unfilled_memory_shows() -> Iterator[None]:
    """Within this context memory that nobody filled holds NaN, where it would hold what was there before."""
    settings: Any = torch.utils.deterministic
    filling = settings.fill_uninitialized_memory
    enabled, only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = filling
        torch.use_deterministic_algorithms(enabled, warn_only=only)
