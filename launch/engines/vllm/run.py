"""vLLM on a CPU: run.py TASK.json RESULT.json. Offline generation, and the HTTP server."""

import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

# Set before vLLM is imported. Threads stay where the system puts them, because other work may run beside.
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
PATIENCE = 900  # seconds that the server may take to start
LENGTH = 512  # tokens that a request may have


def offline(task):
    """What vLLM gives in this process."""
    import vllm

    llm = vllm.LLM(
        task["folder"],
        dtype="float32",
        trust_remote_code=True,
        max_model_len=LENGTH,
        enforce_eager=True,  # the server compiles
        enable_prefix_caching=False,
        disable_log_stats=True,
    )

    def generated(texts, **asked):
        """What follows texts, all at once, and the seconds that it took."""
        parameters = vllm.SamplingParams(temperature=0, ignore_eos=True, **asked)
        start = time.perf_counter()
        said = llm.generate([{"prompt_token_ids": tokens} for tokens in texts], parameters, use_tqdm=False)
        return said, time.perf_counter() - start

    generated(task["prompts"], max_tokens=2)  # warms up
    continued, decode = generated(task["prompts"], max_tokens=task["tokens"])
    _, prefill = generated(task["windows"], max_tokens=1)
    scored, _ = generated(task["windows"], max_tokens=1, prompt_logprobs=0)
    losses = [
        -found[token].logprob
        for window, answer in zip(task["windows"], scored, strict=True)
        for token, found in zip(window[1:], answer.prompt_logprobs[1:], strict=True)
    ]
    tokens = [list(answer.outputs[0].token_ids) for answer in continued]
    return {
        "version": vllm.__version__,
        "tokens": tokens,
        "perplexity": math.exp(sum(losses) / len(losses)),
        "prefill": sum(map(len, task["windows"])) / prefill,
        "decode": sum(map(len, tokens)) / decode,
    }


def equal(served, offline):
    """How many tokens are the same."""
    return f"{sum(a == b for a, b in zip(served, offline, strict=True))} of {len(offline)}"


def served(task):
    """The continuation of the first prompt by the HTTP server.

    Raises:
        RuntimeError: it does not answer.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What `vllm serve` runs: that command asks for a package called vllm, which vllm-cpu is not.
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", task["folder"], "--trust-remote-code"]
    words += ["--dtype", "float32", "--max-model-len", str(LENGTH), "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen([sys.executable, *words])
    try:
        wait_for(server, f"http://127.0.0.1:{port}/health")
        body = {"model": task["folder"], "prompt": task["prompts"][0], "max_tokens": task["tokens"], "temperature": 0}
        body |= {"ignore_eos": True, "return_token_ids": True}
        answer = ask(f"http://127.0.0.1:{port}/v1/completions", body)
        return json.loads(answer)["choices"][0]["token_ids"]
    finally:
        server.terminate()
        server.wait(60)


def wait_for(server, address):
    """Return when the server answers.

    Raises:
        RuntimeError: it has ended, or does not answer in time.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"it ended with exit code {server.returncode}")
        try:
            return ask(address)
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"it did not answer in {PATIENCE} seconds")


def ask(address, body=None):
    """The text of one answer; with a body, to a POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return answer.read().decode()


if __name__ == "__main__":  # vLLM's own processes import this file, too
    given, left = map(Path, sys.argv[1:])
    asked = json.loads(given.read_text())
    result = offline(asked)
    try:
        result["also"] = f"server: {equal(served(asked), result['tokens'][0])} tokens"
    except (RuntimeError, OSError) as error:
        result["also"] = f"server: {error}"
    left.write_text(json.dumps(result))
