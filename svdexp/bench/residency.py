"""Command line: `python -m svdexp.bench.residency` prints the peak memory of streamed runs of 8 and of 16 blocks.

The models are random Llamas of hidden size 2048, narrow inside, so that decompositions are quick, and written block by
block; a run calibrates, decomposes, truncates, measures a perplexity and saves a checkpoint.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from svdexp.bench.folders import write_llama, write_text
from svdexp.record.results import PEAK_RSS, RESULTS
from svdexp.runtime.interruption import interruptible

SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 2048,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
METHOD = ["method=kron", "ratio=0.6", "calibration.samples=4", "calibration.seq_len=128", "precision=bfloat16"]


def peak(folder: Path, blocks: int, *words: str) -> int:
    """Bytes that a run holds at most; its model is made first."""
    model = folder / f"model-{blocks}"
    write_llama(model, SHAPE | {"num_hidden_layers": blocks})
    texts = [folder / f"{name}.txt" for name in "ab"]
    for number, path in enumerate(texts):
        write_text(path, 2000, SHAPE["vocab_size"], number)
    run = folder / f"run-{blocks}"
    command = [
        *(sys.executable, "-m", "svdexp", f"model.path={model}", *METHOD, "tracker=none", *words),
        *(f"hydra.run.dir={run}", f"cache={folder / f'cache-{blocks}'}"),
        *("calibration=files", f"calibration.files=[{texts[0]}]", "eval=ppl", "eval.texts=[files]"),
        *(f"eval.files=[{texts[1]}]", "eval.windows=2", "eval.seq_len=128"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return int(PEAK_RSS.of(json.loads((run / RESULTS).read_text())))


def main(words: Sequence[str] | None = None) -> int:
    """Print the peaks, and their ratio; `words` are keys of the runs, instead of `residency=streamed`."""
    keys = (sys.argv[1:] if words is None else words) or ["residency=streamed"]
    found = {}
    for blocks in (8, 16):
        with TemporaryDirectory() as folder:
            found[blocks] = peak(Path(folder), blocks, *keys)
        print(f"{blocks} blocks: {found[blocks] / 1e9:.3f} GB", flush=True)
    print(f"16 blocks / 8 blocks: {found[16] / found[8]:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
