"""What a GGUF file says of its tokenizer and transformers leaves out: how text is split, and whether BOS is added.

Byte-level BPE cuts a text into words before it merges, and the merges were learnt on such words. A GGUF file gives the
way of cutting a name, `tokenizer.ggml.pre`, that llama.cpp knows (src/llama-vocab.cpp). transformers knows some of the
names and cuts as GPT-2 does at all others.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Punctuation, Split
from tokenizers.pre_tokenizers import Sequence as Steps
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata

log = logging.getLogger(__name__)

GPT2 = frozenset(
    ["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "exaone4", "mellum", "a.x-4.0", "granite-docling"]
)
DIGITS = frozenset(["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"])
QWEN2 = frozenset(["stablelm2", "hunyuan", "solar-open", "grok-2"])
LLAMA3 = frozenset(["glm4", "chatglm-bpe"])
BLOOM = frozenset(["bloom", "poro-chat", "gpt3-finnish"])
# Of these llama.cpp takes a word that is a token as it is, unmerged, and begins a text with BOS unless told not to.
WHOLE_WORDS = frozenset(
    ["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken"]
)

BLOOM_WORD = r" ?[^(\s|.,!?…。，、।۔،)]+"
CHINESE = "[一-龥ࠀ-一가-퟿]+"


def amend_tokenizer(tokenizer: Any, file: Path) -> None:
    """Make the tokenizer that transformers converted from a GGUF file cut text as the file says, in place.

    A file that gives no name for it, or one that is unknown here, is warned of.
    """
    warn_of_unknown(file)
    metadata, _ = read_gguf_metadata(str(file))
    name = split_named(metadata)
    if (words := words_of(name)) is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = words
    if name in WHOLE_WORDS:
        tokenizer.backend_tokenizer.model.ignore_merges = True
        if "tokenizer.ggml.add_bos_token" not in metadata:
            tokenizer.add_bos_token = True


def warn_of_unknown(file: Path) -> None:
    """Log a warning where it is unknown how the model's own tokenizer cuts text."""
    metadata, _ = read_gguf_metadata(str(file))
    name = split_named(metadata)
    if metadata.get("tokenizer.ggml.model") != "gpt2" or name in GPT2 or name in GGUF_PRE_TOKENIZER_SPLITS:
        return
    if words_of(name) is None:
        said = f"names the pre-tokenizer {name}, which is unknown here" if name else "does not name its pre-tokenizer"
        log.warning("%s %s: text is cut as GPT-2 does, and some tokens may differ from the model's own", file, said)


def split_named(metadata: Mapping[str, Any]) -> str | None:
    """The name of the way of cutting text; None where there is none, as with sentencepiece, which cuts nothing."""
    return metadata.get("tokenizer.ggml.pre") if metadata.get("tokenizer.ggml.model") == "gpt2" else None


def words_of(name: str | None) -> PreTokenizer | None:
    """What cuts text into words under llama.cpp's `name`; None where transformers' choice stands, right or unknown."""
    if name in DIGITS:
        return Steps([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if name in QWEN2:
        return _splits([GGUF_PRE_TOKENIZER_SPLITS["qwen2"]])
    if name in LLAMA3:
        return _splits([GGUF_PRE_TOKENIZER_SPLITS["llama3"]])
    if name in BLOOM:
        return _splits([BLOOM_WORD])
    if name == "viking":
        return _splits([BLOOM_WORD, r"\p{N}"])
    if name == "deepseek-coder":
        return _splits([r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CHINESE, r"\p{N}"])
    if name == "falcon":
        return Steps(
            [
                Punctuation("contiguous"),
                ByteLevel(add_prefix_space=False),
                Digits(individual_digits=False),
                Split(Regex("[0-9][0-9][0-9]"), "isolated"),
            ]
        )
    return None


def _splits(patterns: Sequence[str]) -> PreTokenizer:
    """One cut after the other, then bytes."""
    cuts = [Split(Regex(pattern), "isolated") for pattern in patterns]
    return Steps([*cuts, ByteLevel(add_prefix_space=False, use_regex=False)])
