"""OpenVINO GenAI on a CPU: run.py TASK.json RESULT.json. optimum-intel exports the folder, once, to FOLDER.openvino."""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import openvino
import openvino_genai

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
DEVICE = "CPU"


def exported(folder):
    """The model as OpenVINO has it, with what GenAI wants beside it."""
    made = Path(f"{folder}.openvino")
    if not made.is_dir():
        from optimum.exporters.openvino import main_export
        from transformers import dynamic_module_utils as files

        # Of a folder's Python files this transformers copies the first and those that it imports, not what these do.
        files.check_imports = lambda file: [Path(found).stem for found in files.get_relative_import_files(file)]
        partial = Path(f"{folder}.openvino.partial")
        main_export(str(folder), partial, task="text-generation-with-past", trust_remote_code=True)
        partial.rename(made)
    return made


def greedy(pipeline, prompt, count):
    """`count` tokens after a prompt; no token ends a text."""
    how = openvino_genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
    given = np.array([prompt], dtype=np.int64)
    mask = np.ones_like(given)
    tokens = openvino_genai.TokenizedInputs(openvino.Tensor(given), openvino.Tensor(mask))
    return list(pipeline.generate(tokens, how).tokens[0])


def loss(request, window):
    """The summed loss of a window, and the seconds of its pass."""
    request.reset_state()
    given = np.array([window], dtype=np.int64)
    inputs = {"input_ids": given, "attention_mask": np.ones_like(given), "beam_idx": np.zeros(1, dtype=np.int32)}
    inputs["position_ids"] = np.arange(len(window), dtype=np.int64)[None]
    start = time.perf_counter()
    logits = request.infer(inputs)["logits"][0, :-1].astype(np.float64)
    seconds = time.perf_counter() - start
    logits -= logits.max(-1, keepdims=True)
    chosen = logits[np.arange(len(window) - 1), window[1:]]
    return float((np.log(np.exp(logits).sum(-1)) - chosen).sum()), seconds


def main(given, left):
    """One task."""
    task = json.loads(given.read_text())
    folder = exported(Path(task["folder"]))
    pipeline = openvino_genai.LLMPipeline(folder, DEVICE, **EXACT)
    greedy(pipeline, task["prompts"][0], 2)  # warms up
    start = time.perf_counter()
    tokens = [greedy(pipeline, prompt, task["tokens"]) for prompt in task["prompts"]]
    decode = sum(map(len, tokens)) / (time.perf_counter() - start)
    del pipeline
    compiled = openvino.Core().compile_model(folder / "openvino_model.xml", DEVICE, EXACT)
    request = compiled.create_infer_request()
    loss(request, task["windows"][0])  # warms up
    losses = [loss(request, window) for window in task["windows"]]
    result = {
        "version": openvino_genai.__version__,
        "tokens": tokens,
        "perplexity": math.exp(sum(nll for nll, _ in losses) / sum(len(window) - 1 for window in task["windows"])),
        "prefill": sum(map(len, task["windows"])) / sum(seconds for _, seconds in losses),
        "decode": decode,
    }
    left.write_text(json.dumps(result))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
