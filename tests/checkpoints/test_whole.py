"""A checkpoint of which anything is missing or cut short is not whole."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.whole import require_whole
from svdexp.engine.compress import compress
from svdexp.runtime.errors import UserError
from tests.conftest import tiny_model
from tests.test_compress import WHITENED


@pytest.fixture
def saved(windows: torch.Tensor, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In several shards, and elastic, so that it has files of every kind."""
    monkeypatch.setattr(checkpoint, "SHARD_SIZE", "20KB")
    model = tiny_model("llama_gqa")
    result = compress(model, windows, WHITENED, 0.5, elastic=True)
    checkpoint.save(model, tokenizer, tmp_path / "checkpoint", result.ranks, result.elastic)
    return tmp_path / "checkpoint"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def forget_a_tensor(path: Path) -> None:
    """The index names a tensor that its file does not have."""
    table = json.loads(path.read_text())
    table["weight_map"]["model.elsewhere.weight"] = next(iter(table["weight_map"].values()))
    path.write_text(json.dumps(table))


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a shard is gone": ("model-00002-*.safetensors", Path.unlink, "names model-00002-.*, which is not there"),
    "a shard is cut": ("model-00002-*.safetensors", cut, "model-00002-.* is damaged or cut short"),
    "the index is gone": ("model.safetensors.index.json", Path.unlink, "has no weights"),
    "the index is cut": ("model.safetensors.index.json", cut, "index.json cannot be read"),
    "the index promises more": ("model.safetensors.index.json", forget_a_tensor, "first model.elsewhere.weight"),
    "config.json is gone": ("config.json", Path.unlink, "config.json cannot be read"),
    "the code is gone": ("modeling_svdexp.py", Path.unlink, "lacks modeling_svdexp.py"),
    "the list of formats is gone": ("svdexp_layers.py", Path.unlink, "lacks svdexp_layers.py"),
    "a format is gone": ("svdexp_factors.py", Path.unlink, "lacks svdexp_factors.py"),
    "what formats share is gone": ("svdexp_base.py", Path.unlink, "lacks svdexp_base.py"),
    "the tokenizer is gone": ("tokenizer_config.json", Path.unlink, "lacks tokenizer_config.json"),
    "a component is gone": ("elastic/*layers.1.mlp.up_proj*", Path.unlink, "lacks elastic/.*up_proj.safetensors"),
    "a component is cut": ("elastic/*layers.1.mlp.up_proj*", cut, "up_proj.safetensors is damaged or cut short"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(damage: str, saved: Path) -> None:
    require_whole(saved)
    pattern, change, sentence = DAMAGES[damage]
    (path,) = saved.glob(pattern)
    change(path)
    with pytest.raises(UserError, match=sentence):
        require_whole(saved)
