"""Tiny random models of every supported kind of architecture, a tokenizer, and windows of random tokens."""

import tests.support.unhurried  # noqa: F401

# isort: split
import copy
import gc
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported: without it, seconds of retries

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

# torch makes its thread pool anew in a forked process, at whichever thread asks first, and a second that asks meanwhile
# finds none ("Invalid thread pool!", torch 2.13); transformers loads weights in several
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(torch.get_num_threads()))

VOCABULARY = 96
WORDS = ["the", "rank", "of", "a", "matrix", "is", "number", "its", "independent", "rows", "and", "columns"]

LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}

TINY: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**LLAMA_LIKE, num_key_value_heads=4),
    "llama_gqa": LlamaConfig(**LLAMA_LIKE, num_key_value_heads=2, tie_word_embeddings=True),
    "mistral": MistralConfig(**LLAMA_LIKE, num_key_value_heads=2, sliding_window=16),
    "qwen2": Qwen2Config(**LLAMA_LIKE, num_key_value_heads=2),
    "opt": OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
}


def tiny_model(name: str) -> PreTrainedModel:
    """A float32 model with random weights, the same at every call; biases are random too, so they count."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(TINY[name]), attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def overflow_at(model: PreTrainedModel, token: int) -> None:
    """Let the model's hidden states be infinite wherever `token` stands; the weights are sound."""

    def overflow(module: torch.nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((args[0] == token)[..., None], torch.inf)

    model.get_input_embeddings().register_forward_hook(overflow)


def pytest_collection_finish() -> None:
    """What was imported by now is no garbage, and never looked through again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks by folder: `-m unit` is quick, and `-m end_to_end` the rest."""
    for item in items:
        item.add_marker("end_to_end" if "end_to_end" in item.path.parts else "unit")


@pytest.fixture(params=sorted(TINY))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture
def llama() -> PreTrainedModel:
    return tiny_model("llama_gqa")


@pytest.fixture
def windows() -> torch.Tensor:
    """(6, 24) random tokens."""
    return torch.randint(VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(1))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; unknown words are <unk>."""
    words = ["<unk>", "<s>", "</s>", *WORDS]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A tiny Llama with its tokenizer, as a user would have it on disk."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_model("llama_gqa").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 words for that tokenizer."""
    return write_words(tmp_path_factory.mktemp("text") / "words.txt", seed=2)


@pytest.fixture(scope="session")
def other_text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many, to evaluate what `text_file` calibrates."""
    return write_words(tmp_path_factory.mktemp("text") / "other.txt", seed=3)


def write_words(path: Path, seed: int) -> Path:
    """4,000 words drawn with the seed."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (4000,), generator=generator).tolist()
    path.write_text(" ".join(WORDS[i] for i in picks))
    return path
