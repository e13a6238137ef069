"""llama.cpp on a CPU, by llama-cpp-python: run.py TASK.json RESULT.json.

The dense model is converted by the program that llama-cpp-python's source distribution carries, once, to FOLDER.gguf,
and that file's matrices are quantised by llama.cpp, to FOLDER.q4_0.gguf and FOLDER.q8_0.gguf; an export of svdexp's has
model.gguf and perhaps lora.gguf.
"""

import ctypes
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import llama_cpp
import llama_cpp.llama_cpp as low
import numpy as np

CONVERTER = Path(sys.prefix) / "llama.cpp"  # its files
NEEDED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/")
FLOAT32 = 0  # of the cache, in ggml's numbers
LENGTH = 512  # tokens in the cache
QUANTISED = {"q4_0": low.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": low.LLAMA_FTYPE_MOSTLY_Q8_0}
BFLOAT16 = 30  # in ggml's numbers


plain = low.llama_model_default_params


def as_they_lie():
    """llama.cpp's defaults, but weights stay as they lie in the file, as with `llama-cli --no-repack`.

    On a CPU with AMX release 0.3.36 does not survive the other order, whoever wrote the file.
    """
    parameters = plain()
    parameters.use_extra_bufts = False
    return parameters


low.llama_model_default_params = as_they_lie


def files(folder):
    """The model's GGUF file, and that of its adapter or None."""
    if folder.is_file():
        return folder, None
    if (folder / "model.gguf").is_file():
        lora = folder / "lora.gguf"
        return folder / "model.gguf", lora if lora.is_file() else None
    made = Path(f"{folder}.gguf")
    if not made.is_file():
        partial = Path(f"{folder}.partial.gguf")
        words = [sys.executable, str(converter()), str(folder), "--outfile", str(partial), "--outtype", "bf16"]
        subprocess.run(words, check=True)
        for name, kind in QUANTISED.items():
            quantise(partial, Path(f"{folder}.{name}.gguf"), kind)
        partial.rename(made)
    return made, None


def quantise(file, made, kind):
    """Write the model with all its matrices but the embeddings, which svdexp does not compress, in one type.

    Raises:
        RuntimeError: llama.cpp cannot.
    """
    how = low.llama_model_quantize_default_params()
    how.ftype, how.pure = kind, True
    how.token_embedding_type = how.output_tensor_type = BFLOAT16
    if low.llama_model_quantize(str(file).encode(), str(made).encode(), ctypes.byref(how)):
        raise RuntimeError(f"llama.cpp does not quantise {file}")


def converter():
    """llama.cpp's own converter, taken out of the source distribution."""
    program = CONVERTER / NEEDED[0]
    if not program.is_file():
        with tempfile.TemporaryDirectory() as place:
            release = f"llama-cpp-python=={llama_cpp.__version__}"
            words = ["download", "--no-deps", "--no-binary", ":all:", "--dest", place, release]
            subprocess.run([sys.executable, "-m", "pip", *words], check=True)
            (archive,) = Path(place).glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                for part in packed.getmembers():
                    inner = part.name.partition("/vendor/llama.cpp/")[2]
                    if part.isfile() and inner.startswith(NEEDED):
                        part.name = inner
                        packed.extract(part, CONVERTER, filter="data")
    return program


def log_softmax(logits):
    """(…, vocabulary) in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def perplexity(model, windows):
    """Of every token of `windows` but their first ones; and the tokens per second that were read."""
    losses, seconds = [], 0.0
    for window in windows:
        model.reset()
        start = time.perf_counter()
        model.eval(window)
        seconds += time.perf_counter() - start
        said = log_softmax(model.scores[: len(window) - 1])
        losses += [-said[place, token] for place, token in enumerate(window[1:])]
    return float(np.exp(np.mean(losses))), sum(map(len, windows)) / seconds


def greedy(model, prompts, count):
    """`count` tokens after each prompt; and how many were made in a second."""
    texts, seconds = [], 0.0
    for prompt in prompts:
        model.reset()
        model.eval(prompt)
        said, last = [], len(prompt) - 1
        start = time.perf_counter()
        while True:
            said.append(int(model.scores[last].argmax()))
            if len(said) == count:
                break
            model.eval(said[-1:])
            last += 1
        seconds += time.perf_counter() - start
        texts.append(said)
    return texts, len(prompts) * (count - 1) / seconds


def main(given, left):
    """One task."""
    task = json.loads(given.read_text())
    path, lora = files(Path(task["folder"]))
    model = llama_cpp.Llama(
        str(path),
        lora_path=str(lora) if lora else None,
        n_ctx=LENGTH,
        n_batch=LENGTH,
        n_threads=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())),
        n_threads_batch=int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())),
        logits_all=True,
        type_k=FLOAT32,
        type_v=FLOAT32,
        verbose=False,
    )
    greedy(model, task["prompts"][:1], 2)  # warms up
    tokens, decode = greedy(model, task["prompts"], task["tokens"])
    found, prefill = perplexity(model, task["windows"])
    size = sum(part.stat().st_size for part in (path, lora) if part)
    result = {
        "version": llama_cpp.__version__,
        "tokens": tokens,
        "perplexity": found,
        "prefill": prefill,
        "decode": decode,
        "also": f"{size / 1e6:.1f} MB",
    }
    left.write_text(json.dumps(result))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
