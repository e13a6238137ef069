"""Prefill and decode speed with a KV cache: greedy decoding, one warm-up, median of repeats."""

import time
from dataclasses import dataclass
from statistics import median

import torch
from transformers import DynamicCache, PreTrainedModel

from svdexp.progress import progress
from svdexp.schema import EfficiencyConfig


@dataclass(frozen=True)
class Efficiency:
    """Tokens per second, summed over the batch."""

    prefill: float
    decode: float


@torch.no_grad()
def measure_efficiency(model: PreTrainedModel, shape: EfficiencyConfig, what: str, seed: int = 0) -> Efficiency:
    """Time prompt processing and token-by-token generation on random tokens of the given shape."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(model.config.get_text_config().vocab_size)
    prompt = torch.randint(vocabulary, (shape.batch_size, shape.prompt), generator=generator).to(model.device)
    _run(model, prompt, min(4, shape.generate))
    runs = [_run(model, prompt, shape.generate) for _ in progress(range(shape.repeats), what)]
    return Efficiency(
        prefill=prompt.numel() / median(run[0] for run in runs),
        decode=shape.batch_size * shape.generate / median(run[1] for run in runs),
    )


def _run(model: PreTrainedModel, prompt: torch.Tensor, steps: int) -> tuple[float, float]:
    """Seconds for the prompt and for `steps` more tokens."""
    cache = DynamicCache(config=model.config)
    start = _now(model.device)
    logits = model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    middle = _now(model.device)
    for _ in range(steps):
        token = logits[:, -1:].argmax(-1)
        logits = model(token, past_key_values=cache, use_cache=True).logits
    return middle - start, _now(model.device) - middle


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
