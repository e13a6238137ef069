"""Models as streamed ones."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from svdexp.checkpoints.loading_streamed import load_streamed
from svdexp.schema import ModelConfig


def streamed(
    model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB"
) -> PreTrainedModel:
    """What is read of `model` from a folder in `folder`, in shards of at most that size."""
    model.save_pretrained(folder / "model", max_shard_size=shard)
    return load_streamed(config_of(folder / "model"), dtype, torch.device("cpu"), folder / "blocks")


def config_of(folder: Path) -> ModelConfig:
    """Of the model in a folder."""
    return ModelConfig(name="tiny", path=str(folder))
