"""Opening a checkpoint does nothing twice."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.models.portable.modeling_svdexp import low_rank, uncollected
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.portable.svdexp_pivot import PivotLinear
from tests.test_compress import WHITENED


@pytest.fixture
def folder(llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path) -> Path:
    result = compress(llama, windows, WHITENED, 0.5)
    checkpoint.save(llama, None, tmp_path, result.ranks)
    return tmp_path


def test_the_model_is_made_once_and_nothing_is_collected_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    construct = LlamaForCausalLM.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        made.append(gc.isenabled())
        construct(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", counted)
    model, _ = svdexp.load(folder)
    assert made == [False]
    assert gc.isenabled()
    assert type(model) is low_rank(LlamaForCausalLM)


@pytest.mark.parametrize("collects", [True, False])
def test_the_garbage_collector_is_as_it_was(collects: bool) -> None:
    if not collects:
        gc.disable()
    try:
        with pytest.raises(OSError, match="damaged"), uncollected():
            raise OSError("damaged" if not gc.isenabled() else "looked through")
        assert gc.isenabled() is collects
    finally:
        gc.enable()


@pytest.mark.parametrize("shape", [(6, 2, 4), (4, 2, 6)])
@pytest.mark.parametrize("kind", [LowRankLinear, PivotLinear])
def test_a_layer_that_waits_for_its_numbers_draws_none(
    kind: Any, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[nn.Linear] = []
    monkeypatch.setattr(nn.Linear, "reset_parameters", lambda layer: drawn.append(layer))
    waiting = kind.empty(*shape, True, device=torch.device("meta"))
    assert {type(child) for child in waiting.children()} == {nn.Linear}
    assert not drawn
    kind.empty(*shape, True)
    assert len(drawn) == 2
