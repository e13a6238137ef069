"""Command line: `python -m svdexp.bench.residency` prints the peak memory of streamed runs of 8 and of 16 blocks.

The models are random Llamas of hidden size 2048, narrow inside, so that decompositions are quick, and written block by
block; a run calibrates, decomposes, truncates, measures a perplexity and saves a checkpoint.
"""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from svdexp.record.results import PEAK_RSS
from svdexp.runtime.interruption import interruptible

WIDTH, INNER, HEAD, WORDS = 2048, 512, 64, 1000
METHOD = ["method=kron", "ratio=0.6", "calibration.samples=4", "calibration.seq_len=128", "precision=bfloat16"]


def write_llama(folder: Path, blocks: int) -> None:
    """A random Llama of so many blocks with a tokenizer of WORDS words, each block in a file of its own."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    from svdexp.models.structure import named_blocks

    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=blocks,
        num_attention_heads=INNER // HEAD,
        num_key_value_heads=INNER // HEAD // 2,
        head_dim=HEAD,
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for group in ["", *named_blocks(skeleton)]:
        names = [x for x in skeleton.state_dict() if (x.startswith(f"{group}.") if group else ".layers." not in x)]
        shapes = {name: skeleton.state_dict()[name].shape for name in names}
        tensors = {
            name: torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=generator)
            for name, shape in shapes.items()
        }
        file = f"{group or 'outside'}.safetensors"
        save_file({name: x.bfloat16() for name, x in tensors.items()}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    tokens = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary())}, unk_token="w0"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokens, unk_token="w0", eos_token="w1"
    )
    tokenizer.save_pretrained(folder)


def vocabulary() -> list[str]:
    """The WORDS words."""
    return [f"w{index}" for index in range(WORDS)]


def peak(folder: Path, blocks: int, *words: str) -> int:
    """Bytes that a run holds at most; its model is made first."""
    model = folder / f"model-{blocks}"
    write_llama(model, blocks)
    texts = [folder / f"{name}.txt" for name in "ab"]
    for number, path in enumerate(texts):
        path.write_text(" ".join(random.Random(number).choices(vocabulary(), k=2000)))
    run = folder / f"run-{blocks}"
    command = [
        *(sys.executable, "-m", "svdexp", f"model.path={model}", *METHOD, "tracker=none", *words),
        *(f"hydra.run.dir={run}", f"cache={folder / f'cache-{blocks}'}"),
        *("calibration=files", f"calibration.files=[{texts[0]}]", "eval=ppl", "eval.texts=[files]"),
        *(f"eval.files=[{texts[1]}]", "eval.windows=2", "eval.seq_len=128"),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return int(PEAK_RSS.of(json.loads((run / "results.json").read_text())))


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
