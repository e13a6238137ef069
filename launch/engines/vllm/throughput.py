"""Requests at once in vLLM: throughput.py TASK.json RESULT.json.

Two models stand in processes of their own and take turns; the result is tokens per second of each, turn by turn, and
tokens per second of the CPUs' time, which tells more where other work runs beside.
"""

import json
import os
import random
import sys
import time
from pathlib import Path

# Threads stay where the system puts them, because the processes would be bound to the same cores.
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}


def main(given: Path, left: Path) -> None:
    """One task."""
    import psutil
    from vllm import LLM, SamplingParams

    task = json.loads(given.read_text())
    length, count = task["prompt"] + task["tokens"], task["requests"]
    models = [
        LLM(
            folder,
            dtype="bfloat16",
            trust_remote_code=True,
            max_model_len=length,
            max_num_seqs=count,
            max_num_batched_tokens=count * task["prompt"],
            enforce_eager=task["eager"],
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
        for folder in task["folders"]
    ]
    draw, words = random.Random(0), range(2, 256)  # which a model of a single block has, too
    greedy = {"temperature": 0, "ignore_eos": True}

    def used() -> float:
        """Seconds of CPU of all models' processes."""
        return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))

    def speeds(model: LLM, tokens: int) -> tuple[float, float]:
        """Tokens, read and written, of all requests at once, by the second and by the CPUs' second."""
        prompts = [{"prompt_token_ids": draw.choices(words, k=task["prompt"])} for _ in range(count)]
        start, before = time.perf_counter(), used()
        model.generate(prompts, SamplingParams(max_tokens=tokens, **greedy), use_tqdm=False)
        done = count * (task["prompt"] + tokens)
        return done / (time.perf_counter() - start), done / (used() - before)

    for model in models:
        speeds(model, 4)  # warms up
    left.write_text(json.dumps([[speeds(model, task["tokens"]) for model in models] for _ in range(task["rounds"])]))


if __name__ == "__main__":  # vLLM's own processes import this file, too
    main(*map(Path, sys.argv[1:]))
