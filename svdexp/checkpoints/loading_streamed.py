"""Load a dense model as a streamed one."""

from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from svdexp.checkpoints.architectures import auto_class
from svdexp.checkpoints.intake import INDEX, tensor_files, weight_files
from svdexp.checkpoints.loading import believe_weights, load_skeleton, locate, readable_errors, require_weights
from svdexp.checkpoints.prequantised import scheme_of
from svdexp.checkpoints.streaming import streamed
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.reading import read_object
from svdexp.schema import ModelConfig


def load_streamed(config: ModelConfig, dtype: torch.dtype, device: torch.device, folder: Path) -> PreTrainedModel:
    """The dense model in evaluation mode, in `dtype`, streamed through `device`.

    Args:
        config: the model, a folder with safetensors.
        dtype: number format.
        device: where blocks go for their turn, and all else stays.
        folder: where tensors are put that no file holds as they are; it must live as long as the model.

    Raises:
        UserError: as `load_model`, and for a model that cannot be streamed.
    """
    files = streamable_files(config)
    skeleton = load_skeleton(config, dtype)
    require(
        scheme_of(skeleton.config) is None,
        f"model.path={config.path} is quantised, and is read as numbers as a whole only: residency=whole",
    )
    how = {"dtype": dtype, "ignore_mismatched_sizes": True, **locate(config).options}
    how["pretrained_model_name_or_path"] = locate(config).location
    with readable_errors(config, "model"):
        load = auto_class(skeleton.config).from_pretrained
        check = partial(require_weights, config)
        model = streamed(load, how, skeleton, device, folder, tensor_files(files), check)
    believe_weights(model)
    return model


def streamable_files(config: ModelConfig) -> list[Path]:
    """The safetensors files of a model, whose headers are whole.

    Raises:
        UserError: they are not there, damaged, or not in a local folder.
    """
    source = locate(config)
    local = source.gguf_file is None and Path(source.location).is_dir()
    knob = f"model.path={config.path}"
    require(
        local, f"{knob} is no local folder of safetensors files, which blocks are read from; download or convert it"
    )
    try:
        files = weight_files(Path(source.location))
        index = read_object(Path(source.location) / INDEX) if len(files) > 1 else {"weight_map": {}}
        gone = sorted(index["weight_map"].keys() - tensor_files(files).keys())
    except UserError as error:
        raise UserError(f"{knob}: {error}") from error
    require(not gone, f"{knob}: {INDEX} names {len(gone)} tensors that no file holds, first {gone[:1]}")
    return files
