"""The scaling of rotary positions that a GGUF file states, and transformers drops, as the config has it.

llama.cpp has two ways to say it: keys `ARCHITECTURE.rope.scaling.…`, and a tensor `rope_freqs.weight` that divides the
frequencies, which is how Llama 3.1's scaling is written.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.integrations.gguf.reader import read_gguf_metadata

from svdexp.runtime.errors import UserError

DIVISORS = "rope_freqs.weight"
KEPT = ("gpt-oss",)  # whose scaling transformers reads
# What says how, in llama.cpp's words; `finetuned` only says whence. The rest is refused.
LINEAR = {"type", "factor", "finetuned", "original_context_length"}
YARN = LINEAR | {"yarn_beta_fast", "yarn_beta_slow", "yarn_attn_factor", "yarn_ext_factor"}
# Llama 3.1's, of all models that write it.
LOW, HIGH, TRAINED = 1.0, 4.0, 8192

Scaling = dict[str, Any]


def scaling_in(file: Path) -> Scaling:
    """What the file's scaling changes in `rope_parameters`; nothing where it has none.

    Raises:
        UserError: it has one that cannot be rebuilt; says which.
    """
    metadata, tensors = read_gguf_metadata(str(file))
    architecture = str(metadata["general.architecture"])
    if architecture in KEPT:
        return {}
    prefix = f"{architecture}.rope.scaling."
    keys = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    long = [name for name in tensors if name.startswith("rope_factors_")]
    if long:
        raise UserError(f"{file}: RoPE scaling by {long[0]} (longrope) is not read from GGUF files")
    found = stated(keys, f"{file}: {prefix}")
    if DIVISORS not in tensors:
        return found
    from gguf import GGUFReader  # few files have that tensor

    divisors = next(torch.tensor(part.data) for part in GGUFReader(file).tensors if part.name == DIVISORS).double()
    if torch.equal(divisors, torch.ones_like(divisors)):
        return found
    if found:
        raise UserError(f"{file}: it scales RoPE twice, by {prefix}type={keys.get('type', 'linear')} and by {DIVISORS}")
    return from_divisors(divisors, metadata, architecture)


def stated(keys: Mapping[str, Any], prefix: str) -> Scaling:
    """The scaling that the keys after `prefix` state.

    Raises:
        UserError: a kind, or a key, that cannot be rebuilt; names it.
    """
    kind, factor = keys.get("type", "linear"), float(keys.get("factor") or 1)
    if kind == "none" or (kind == "linear" and factor == 1):
        return {}
    known = {"linear": LINEAR, "yarn": YARN}.get(kind)
    if known is None:
        raise UserError(f"{prefix}type={kind}: this RoPE scaling is not read from GGUF files")
    if other := sorted(key for key in keys if key not in known):
        raise UserError(f"{prefix}{other[0]}={keys[other[0]]}: this part of RoPE scaling is not read from GGUF files")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if keys.get("yarn_ext_factor", 1) not in (1, -1):  # -1: the default, which is 1
        raise UserError(f"{prefix}yarn_ext_factor={keys['yarn_ext_factor']}: only 1 can be rebuilt")
    if "original_context_length" not in keys:
        raise UserError(f"{prefix}type=yarn says no original_context_length, and cannot be rebuilt")
    found: Scaling = {"rope_type": "yarn", "factor": factor}
    found["original_max_position_embeddings"] = int(keys["original_context_length"])
    found |= {part: float(keys[f"yarn_{part}"]) for part in ("beta_fast", "beta_slow") if f"yarn_{part}" in keys}
    if "yarn_attn_factor" in keys:
        found["attention_factor"] = float(keys["yarn_attn_factor"]) * (1 + 0.1 * math.log(factor))
    return found


def from_divisors(divisors: torch.Tensor, metadata: Mapping[str, Any], architecture: str) -> Scaling:
    """The scaling that divides the frequencies by `divisors` (head_dim / 2,).

    Llama 3.1's where it gives just these numbers; else the divisors themselves, which is what longrope's factors are.
    """
    base = float(metadata.get(f"{architecture}.rope.freq_base", 10000.0))
    trained = int(metadata.get(f"{architecture}.rope.scaling.original_context_length", TRAINED))
    factor = float(divisors.max())
    if torch.allclose(llama3_divisors(len(divisors), base, factor, trained), divisors, rtol=1e-5, atol=0):
        found: Scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": LOW, "high_freq_factor": HIGH}
        return found | {"original_max_position_embeddings": trained}
    context = int(metadata[f"{architecture}.context_length"])
    given = divisors.tolist()
    return {
        "rope_type": "longrope",
        "short_factor": given,
        "long_factor": given,
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }


def llama3_divisors(count: int, base: float, factor: float, trained: int) -> torch.Tensor:
    """What Llama 3.1 divides `count` frequencies by, float64: 1 for short waves, `factor` for long ones."""
    waves = 2 * math.pi * base ** (torch.arange(count, dtype=torch.float64) / count)
    smooth = ((trained / waves - LOW) / (HIGH - LOW)).clamp(0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def amend_config(config: PreTrainedConfig, scaling: Scaling) -> None:
    """Put a scaling into a config, in place; of models whose layers differ, into those with full attention."""
    parameters: dict[str, Any] = config.rope_parameters
    parameters.get("full_attention", parameters).update(scaling)
