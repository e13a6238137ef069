"""svdexp as one of transformers' quantisers: where it is imported, `from_pretrained(folder)` runs no code of a folder.

config.json asks for it by `quantization_config`. A transformers that does not know svdexp says so in a warning and goes
on without; there `trust_remote_code=True` loads the folder by its own files.

transformers has no entry point for quantisers. `svdexp/__init__.py` lets `register` be called when transformers has its
table of them, in the middle of its own import: therefore this file imports no more of it than that.
"""

import json
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from svdexp.runtime.reading import read_object

METHOD = "svdexp"


class SvdexpConfig(QuantizationConfigMixin):
    """What config.json says: only the name; the layers are in its table `svdexp`."""

    dequantize = True  # a loaded model is an ordinary one to transformers: it learns, and is saved as it is

    def __init__(self, **kwargs: Any):
        self.quant_method = kwargs.get("quant_method", METHOD)


class SvdexpQuantiser(HfQuantizer):
    """Puts the layers that config.json names into the dense architecture before transformers reads the tensors."""

    requires_calibration = True  # a dense model is compressed by svdexp.compress

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        """Make `model` the one that the folder's own code would have made.

        Raises:
            ValueError: config.json has no table of layers, or one that is not understood.
        """
        from svdexp.models.portable.modeling_svdexp import (
            dense_class,
            furnish,
            low_rank,
        )  # transformers is whole by now

        if dense_class(type(model)) is type(model):  # else its constructor did it
            architecture: Any = type(model)  # for mypy
            model.__class__ = low_rank(architecture)
            furnish(model)

    def is_serializable(self) -> bool:
        """The model's own `save_pretrained` does all."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes have no gradients, all else has."""
        return True


def forget_quantiser(folder: Path) -> None:
    """Take what asks for svdexp's quantiser out of the checkpoint `folder`: vLLM refuses unknown ones."""
    path = folder / "config.json"
    config = read_object(path)
    config.pop("quantization_config", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def register() -> None:
    """Tell transformers, once in a process."""
    if METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(METHOD)(SvdexpConfig)
        register_quantizer(METHOD)(SvdexpQuantiser)
