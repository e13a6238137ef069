"""Random Llamas as folders of safetensors, written one block at a time, and texts in their words.

Nothing in them means anything: they are for memory and time.
"""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPREAD = 0.02  # of a weight
SPECIAL = ("<unk>", "</s>")


def write_llama(folder: Path, shape: Mapping[str, Any]) -> None:
    """A random bfloat16 Llama and a tokenizer of its words, each block in a file of its own.

    `shape` are fields of its config; `vocab_size` is among them.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, LlamaConfig

    from svdexp.models.structure import named_blocks

    config = LlamaConfig(**{key: value for key, value in shape.items() if key != "model_type"})
    config.architectures = ["LlamaForCausalLM"]
    folder.mkdir(parents=True)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    shapes = {name: tensor.shape for name, tensor in skeleton.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for group in ["", *named_blocks(skeleton)]:
        names = [name for name in shapes if (name.startswith(f"{group}.") if group else ".layers." not in name)]
        tensors = {name: _drawn(shapes[name], generator) for name in names}
        file = f"{group or 'outside'}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    write_tokenizer(folder, config.vocab_size)
    config.save_pretrained(folder)  # last: a folder with a config is whole


def write_text(path: Path, words: int, vocabulary: int, seed: int) -> None:
    """A text of so many random words."""
    drawn = random.Random(seed).choices(range(len(SPECIAL), vocabulary), k=words)
    path.write_text(" ".join(map(_word, drawn)))


def _drawn(shape: Any, generator: Any) -> Any:
    """A matrix of small random numbers, or ones for a norm."""
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (SPREAD * torch.randn(shape, generator=generator)).bfloat16()


def write_tokenizer(folder: Path, vocabulary: int) -> None:
    """Put a tokenizer of so many words into a model's folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    numbers = {_word(index): index for index in range(vocabulary)}
    tokens = Tokenizer(models.WordLevel(numbers, unk_token=_word(0)))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokens, unk_token=_word(0), eos_token=_word(1)
    )
    tokenizer.save_pretrained(folder)


def _word(index: int) -> str:
    return SPECIAL[index] if index < len(SPECIAL) else f"w{index}"
