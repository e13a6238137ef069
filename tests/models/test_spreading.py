"""device=balanced: what accelerate hangs on the modules of a spread model does not change what is done to it."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from svdexp.allocation import GlobalLoss
from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.loading import resolve_device
from svdexp.engine.compress import compress
from svdexp.evaluation import perplexity
from svdexp.factorisation import TwoSided
from svdexp.method import Method
from svdexp.models import spreading
from svdexp.runtime.errors import UserError
from svdexp.storage import PivotStorage
from svdexp.training import BlockRefine, Distill

METHOD = Method(
    "kron",
    TwoSided(),
    GlobalLoss(),
    PivotStorage(),
    training={
        "block_refine": BlockRefine(steps=2, batch=2, check_every=2),
        "distill": Distill(steps=2, batch=2, seq_len=8, check_every=2),
    },
)


def by_hand(model: PreTrainedModel) -> dict[str, int | str | torch.device]:
    """Every block a place of its own, all of them the CPU."""
    parts = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    return dict.fromkeys([*parts, *(f"model.layers.{i}" for i in range(3))], "cpu")


def test_a_spread_model_is_compressed_trained_measured_and_saved_as_any_other(
    llama: PreTrainedModel,
    windows: torch.Tensor,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spread = copy.deepcopy(llama)
    monkeypatch.setattr(spreading, "device_map", by_hand)
    with pytest.raises(UserError, match="cannot hold the model together"):
        spreading.spread_out(spread)
    monkeypatch.setattr(spreading, "ELSEWHERE", {"disk"})
    spreading.spread_out(spread)
    assert spreading.is_spread(spread)
    assert not spreading.is_spread(llama)
    values = []
    for model in (llama, spread):
        done = compress(model, windows, METHOD, 0.6)
        values.append(perplexity(model, windows, None, None).value)
        checkpoint.save(model, tokenizer, tmp_path / str(len(values)), done.ranks)
    assert values[0] == values[1]
    first, second = (checkpoint.load(tmp_path / part)[0].state_dict() for part in "12")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
def test_without_gpus_there_is_nothing_to_spread_over() -> None:
    with pytest.raises(UserError, match="device=balanced spreads the model over CUDA devices; there is none"):
        resolve_device("balanced")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_blocks_stand_on_all_gpus(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    one = copy.deepcopy(llama).to("cuda:0")
    spreading.spread_out(llama)
    assert len({parameter.device for parameter in llama.parameters()}) == torch.cuda.device_count()
    values = []
    for model in (one, llama):
        compress(model, windows, METHOD, 0.6)
        values.append(perplexity(model, windows, None, None).value)
    assert values[1] == pytest.approx(values[0], rel=1e-5)


@pytest.mark.parametrize("name", ["meta", "nowhere", "cpu:x"])
def test_devices_that_compute_nothing_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"device={name} is not available here: "):
        resolve_device(name)
