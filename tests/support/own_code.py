"""A tiny model with code of its own, as a repository has it that asks for trust_remote_code."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CONFIGURATION = """
from transformers import PretrainedConfig


class TwigConfig(PretrainedConfig):
    model_type = "twig"

    def __init__(self, vocab_size=96, hidden_size=32, num_hidden_layers=2, **kwargs):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        super().__init__(**kwargs)
"""
PARTS = """
import torch
from torch import nn


class TwigBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up_proj, self.down_proj = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, hidden):
        past = torch.cumsum(self.norm(hidden), 1) / (1 + torch.arange(hidden.shape[1]))[:, None]
        return hidden + self.down_proj(torch.relu(self.up_proj(past)))
"""
MODELING = """
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from .configuration_twig import TwigConfig
from .parts_of_twig import TwigBlock


class TwigPreTrainedModel(PreTrainedModel):
    config_class = TwigConfig
    base_model_prefix = "model"

    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, TwigModel):
            nn.init.constant_(module.stretch, 1.5)


class TwigModel(TwigPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TwigBlock(config.hidden_size) for _ in range(config.num_hidden_layers))
        self.register_buffer("stretch", torch.full((1,), 1.5), persistent=False)
        self.post_init()

    def forward(self, input_ids=None, **kwargs):
        hidden = self.embed(input_ids) * self.stretch
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutput(last_hidden_state=hidden)


class TwigForCausalLM(TwigPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = TwigModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, labels=None, **kwargs):
        logits = self.lm_head(self.model(input_ids)[0])
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size)
        return CausalLMOutput(loss=loss, logits=logits)
"""
FILES = {"configuration_twig.py": CONFIGURATION, "parts_of_twig.py": PARTS, "modeling_twig.py": MODELING}


def write(folder: Path, tokenizer: Any) -> Path:
    """The model's repository in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    classes = {"AutoConfig": "configuration_twig.TwigConfig", "AutoModel": "modeling_twig.TwigModel"}
    classes["AutoModelForCausalLM"] = "modeling_twig.TwigForCausalLM"
    config = {"model_type": "twig", "architectures": ["TwigForCausalLM"], "auto_map": classes, "dtype": "float32"}
    config |= {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)
    width, shapes = 32, {"model.embed.weight": (96, 32), "lm_head.weight": (96, 32)}
    for layer in ("model.layers.0", "model.layers.1"):
        shapes |= {f"{layer}.norm.weight": (width,), f"{layer}.norm.bias": (width,)}
        shapes |= {f"{layer}.up_proj.weight": (2 * width, width), f"{layer}.up_proj.bias": (2 * width,)}
        shapes |= {f"{layer}.down_proj.weight": (width, 2 * width), f"{layer}.down_proj.bias": (width,)}
    tensors = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder
