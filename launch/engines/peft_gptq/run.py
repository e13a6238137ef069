"""transformers with peft, and GPTQModel where a model is in its layout: run.py TASK.json RESULT.json."""

import json
import math
import os
import sys
import time
from pathlib import Path

os.environ["GPTQMODEL_CPU_WORKERS"] = "2"

import peft
import torch
from transformers import AutoModelForCausalLM, DynamicCache


def transformers_model(folder):
    """The model, with the adapter in its folder if there is one."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapter = folder / "adapter"
    return peft.PeftModel.from_pretrained(model, adapter).eval() if adapter.is_dir() else model.eval()


def gptqmodel_model(folder):
    """The same by GPTQModel and its own adapter class."""
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.adapter.adapter import Lora

    rank = json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"]
    adapter = Lora(path=str(folder / "adapter"), rank=rank)
    return GPTQModel.load(str(folder), adapter=adapter, backend=BACKEND.TORCH, device="cpu").model.eval()


@torch.inference_mode()
def greedy(model, prompts, count):
    """`count` tokens after each prompt; and how many were made in a second."""
    texts, seconds = [], 0.0
    for prompt in prompts:
        cache, said = DynamicCache(config=model.config), []
        tokens = torch.tensor([prompt])
        for place in range(count):
            start = time.perf_counter()
            logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
            tokens = logits[:, -1:].argmax(-1)
            said.append(int(tokens))
            seconds += time.perf_counter() - start if place else 0
        texts.append(said)
    return texts, len(prompts) * (count - 1) / seconds


@torch.inference_mode()
def perplexity(model, windows):
    """Of every token of `windows` but their first ones; and the tokens per second that were read."""
    losses, seconds = [], 0.0
    for window in windows:
        tokens = torch.tensor([window])
        start = time.perf_counter()
        logits = model(input_ids=tokens).logits
        seconds += time.perf_counter() - start
        losses.append(torch.nn.functional.cross_entropy(logits[0, :-1].double(), tokens[0, 1:], reduction="none"))
    return math.exp(torch.cat(losses).mean()), sum(map(len, windows)) / seconds


def equal(found, expected):
    """How many tokens are the same."""
    pairs = [pair for one, other in zip(found, expected, strict=True) for pair in zip(one, other, strict=True)]
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)}"


def main(given, left):
    """One task."""
    task = json.loads(given.read_text())
    folder = Path(task["folder"])
    model = transformers_model(folder)
    greedy(model, task["prompts"][:1], 2)  # warms up
    tokens, decode = greedy(model, task["prompts"], task["tokens"])
    found, prefill = perplexity(model, task["windows"])
    config = json.loads((folder / "config.json").read_text())
    result = {"tokens": tokens, "perplexity": found, "prefill": prefill, "decode": decode}
    result["version"] = f"peft {peft.__version__}"
    if "quantization_config" in config:
        import gptqmodel

        del model
        result["version"] += f", GPTQModel {gptqmodel.__version__}"
        try:
            said, _ = greedy(gptqmodel_model(folder), task["prompts"], task["tokens"])
            result["also"] = f"GPTQModel's adapter: {equal(said, tokens)} tokens"
        except Exception as error:  # the rest is worth a row without it
            result["also"] = f"GPTQModel's adapter: {type(error).__name__}: {error}"
    left.write_text(json.dumps(result))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
