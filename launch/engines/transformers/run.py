"""Plain transformers, with the files that travel with a checkpoint: run.py TASK.json RESULT.json."""

import json
import math
import sys
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

given, left = map(Path, sys.argv[1:])
task = json.loads(given.read_text())
model = AutoModelForCausalLM.from_pretrained(task["folder"], dtype=torch.float32, trust_remote_code=True).eval()
model.generation_config.eos_token_id = None  # no token ends a text


def generated(prompt):
    """The greedy continuation of a prompt, and the seconds that it took."""
    start = time.perf_counter()
    said = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=task["tokens"])
    return said[0, len(prompt) :].tolist(), time.perf_counter() - start


def loss(window):
    """The summed loss of a window, and the seconds of its pass."""
    tokens = torch.tensor([window])
    start = time.perf_counter()
    logits = model(tokens, use_cache=False).logits
    seconds = time.perf_counter() - start
    return torch.nn.functional.cross_entropy(logits[0, :-1].double(), tokens[0, 1:], reduction="sum").item(), seconds


with torch.no_grad():
    generated(task["prompts"][0]), loss(task["windows"][0])  # warms up
    continued = [generated(prompt) for prompt in task["prompts"]]
    losses = [loss(window) for window in task["windows"]]
scored = sum(len(window) - 1 for window in task["windows"])
result = {
    "version": transformers.__version__,
    "tokens": [tokens for tokens, _ in continued],
    "perplexity": math.exp(sum(nll for nll, _ in losses) / scored),
    "prefill": sum(map(len, task["windows"])) / sum(seconds for _, seconds in losses),
    "decode": sum(len(tokens) for tokens, _ in continued) / sum(seconds for _, seconds in continued),
}
left.write_text(json.dumps(result))
