"""Command line: `python -m svdexp.bench.residency` prints the peak memory of runs, streamed and whole.

The models are random Llamas, hidden size 2048 and inside as wide as TinyLlama, and written block by block; a run
calibrates, decomposes, truncates, measures a perplexity and saves a checkpoint. Words are keys of all runs.
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
from svdexp.schema import Residency

SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
# More tokens than the model is wide, or moments would have to be damped first; factors, because they are made quickly.
METHOD = [
    *("method=kron", "storage=factors", "ratio=0.6", "precision=bfloat16"),
    *("calibration.samples=20", "calibration.seq_len=128"),
]


def peak(folder: Path, blocks: int, *words: str) -> int:
    """Bytes that a run holds at most; its model is made first."""
    model = folder / f"model-{blocks}"
    write_llama(model, SHAPE | {"num_hidden_layers": blocks})
    texts = [folder / f"{name}.txt" for name in "ab"]
    for number, path in enumerate(texts):
        write_text(path, 4000, SHAPE["vocab_size"], number)
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
    """Print the peaks, and their ratios."""
    keys = sys.argv[1:] if words is None else words
    streamed, whole = Residency.streamed, Residency.whole
    found = {}
    for residency, blocks in ((streamed, 8), (streamed, 16), (whole, 16)):
        with TemporaryDirectory() as folder:
            found[residency, blocks] = peak(Path(folder), blocks, f"residency={residency}", *keys)
        print(f"{blocks} blocks, {residency}: {found[residency, blocks] / 1e9:.3f} GB", flush=True)
    print(f"16 blocks / 8 blocks: {found[streamed, 16] / found[streamed, 8]:.3f}")
    print(f"streamed / whole: {found[streamed, 16] / found[whole, 16]:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
