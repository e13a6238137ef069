"""A checkpoint that gives back another model fails, also where the difference is no number."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.verification import unfilled_memory_shows, verify_checkpoint
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage
from tests.support.shrunk import shrunk


@pytest.fixture
def saved(tokenizer: Any, tmp_path: Path) -> tuple[Path, PreTrainedModel]:
    model, ranks = shrunk("llama", FactorStorage(), torch.float32)
    checkpoint.save(model, tokenizer, tmp_path / "here", ranks)
    return tmp_path / "here", model


def test_the_same_model_passes(saved: tuple[Path, PreTrainedModel], windows: torch.Tensor) -> None:
    assert verify_checkpoint(*saved, windows[:1]) == {"reload_max_logit_difference": 0}


def test_another_model_fails(saved: tuple[Path, PreTrainedModel], windows: torch.Tensor) -> None:
    folder, model = saved
    tensors = load_file(folder / "model.safetensors")
    save_file({name: 1.1 * tensor for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="gives other logits"):
        verify_checkpoint(folder, model, windows[:1])


def test_a_buffer_that_nobody_fills_fails(
    saved: tuple[Path, PreTrainedModel], windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reloaded model computes NaN, which differs from everything by NaN."""
    original = PreTrainedModel._init_weights

    def forgetful(self: PreTrainedModel, module: nn.Module) -> None:
        if "RotaryEmbedding" not in type(module).__name__:
            original(self, module)

    monkeypatch.setattr(PreTrainedModel, "_init_weights", forgetful)
    with pytest.raises(RuntimeError, match=r"gives other logits \(largest difference nan\)"):
        verify_checkpoint(*saved, windows[:1])


@pytest.mark.parametrize(("dtype", "advised"), [(torch.float32, False), (torch.bfloat16, True)], ids=str)
def test_a_model_that_computes_nan_fails(
    dtype: torch.dtype, advised: bool, saved: tuple[Path, Any], windows: torch.Tensor
) -> None:
    folder, model = saved
    model.to(dtype)
    with torch.no_grad():
        model.lm_head.weight[0] = torch.nan
    with pytest.raises(UserError, match=rf"computes NaN or infinity in {dtype}.*a larger ratio") as refusal:
        verify_checkpoint(folder, model, windows[:1])
    assert ("precision=float32" in str(refusal.value)) == advised


def test_memory_is_left_as_it_was() -> None:
    def state() -> tuple[bool, bool, bool]:
        filling = torch.utils.deterministic.fill_uninitialized_memory
        enabled, only = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        return enabled, only, filling

    before = state()
    with unfilled_memory_shows():
        assert torch.empty(1000).isnan().all()
    assert state() == before
