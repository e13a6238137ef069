"""Architectures whose files differ from their models: other names, several matrices in one tensor, and buffers that
no file has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.loading import load_model
from svdexp.checkpoints.verification import unfilled_memory_shows
from svdexp.export.merge import merge
from svdexp.models.matrices import matrices_in
from svdexp.schema import ModelConfig
from svdexp.storage import FactorStorage
from tests.conftest import LLAMA_LIKE
from tests.support.shrunk import truncated

COMMON = LLAMA_LIKE | {"num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def neox() -> PreTrainedConfig:
    """The head is called one thing in files and another in memory."""
    return transformers.GPTNeoXConfig(**COMMON)


def image_text() -> PreTrainedConfig:
    """The text part of a larger model: its tensors have longer names in files."""
    kinds = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 8}
    sizes = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    }
    text = transformers.Qwen3_5TextConfig(**COMMON, **kinds, **sizes, num_key_value_heads=2)
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    return transformers.Qwen3_5Config(text_config=text, vision_config=vision)


def fused() -> PreTrainedConfig:
    """Gate, queries, keys and values are one tensor in files."""
    return transformers.HrmTextConfig(**COMMON, head_dim=8, prefix_lm=False)


def experts() -> PreTrainedConfig:
    """Experts are stacked in memory, and one by one in files."""
    return transformers.MixtralConfig(**COMMON, num_key_value_heads=2, num_local_experts=2)


def filled_by_the_parent() -> PreTrainedConfig:
    """A module without unread tensors of its own fills a buffer that is in no file."""
    mamba = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}
    return transformers.FalconH1Config(**COMMON, num_key_value_heads=2, **mamba)


def tied() -> PreTrainedConfig:
    """No head in the file."""
    return transformers.LlamaConfig(**COMMON, tie_word_embeddings=True)


KINDS = [neox, image_text, fused, experts, filled_by_the_parent, tied]


@pytest.fixture
def dense(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PreTrainedModel, set[str]]:
    """A model read from a folder, as runs read it, and the names of its tensors in the file."""
    config, folder = request.param(), tmp_path / "dense"
    torch.manual_seed(0)
    whole = getattr(
        transformers, "AutoModelForImageTextToText" if hasattr(config, "text_config") else "AutoModelForCausalLM"
    )
    whole.from_config(config).save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    return load_model(ModelConfig("tiny", str(folder)), torch.float32, torch.device("cpu")), names


@torch.no_grad()
def shrink(model: PreTrainedModel) -> dict[str, int | None]:
    """Factors in the place of every second linear layer, so that of fused ones some are and some are not."""
    matrices = [matrix for matrix in matrices_in(model) if ".layers." in matrix.name]
    ranks: dict[str, int | None] = {}
    for matrix in matrices[::2]:
        W = matrix.weight(model)
        ranks[matrix.name] = rank = min(5, *W.shape)
        matrix.put(model, FactorStorage().layer(truncated(W, rank), matrix.bias(model), W))
    return ranks


@pytest.mark.parametrize("dense", KINDS, indirect=True, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_saved_and_loaded(
    dense: tuple[PreTrainedModel, set[str]], windows: torch.Tensor, tokenizer: Any, tmp_path: Path
) -> None:
    model, _ = dense
    checkpoint.save(model, tokenizer, tmp_path / "here", shrink(model))
    expected = model(windows).logits
    readers: list[Callable[[], Any]] = [
        lambda: svdexp.load(tmp_path / "here")[0],
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "here"),  # by svdexp's quantiser
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "here", trust_remote_code=True),
    ]
    for read in readers:
        with unfilled_memory_shows():
            loaded = read()
        assert torch.equal(loaded(windows).logits, expected)
    loaded.save_pretrained(tmp_path / "copy")  # a stranger's
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(tmp_path / "copy", trust_remote_code=True)(windows).logits, expected
    )


@pytest.mark.parametrize("dense", [neox, fused, experts], indirect=True, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_a_merged_one_has_the_names_of_files_again(
    dense: tuple[PreTrainedModel, set[str]], windows: torch.Tensor, tokenizer: Any, tmp_path: Path
) -> None:
    model, names = dense
    checkpoint.save(model, tokenizer, tmp_path / "here", shrink(model))
    loaded, _ = svdexp.load(tmp_path / "here")
    merge(loaded)
    loaded.save_pretrained(tmp_path / "merged")
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == names
    plain, report = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(plain(windows).logits, model(windows).logits, rtol=1e-4, atol=1e-4)
