"""The models that engines are given, each made once, and what svdexp itself says of them in float32."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svdexp.bench.engines.environments import last_line
from svdexp.bench.engines.kinds import DENSE, PERPLEXITIES, Form
from svdexp.record.results import RESULTS
from svdexp.runtime.disk import whole_folder, write_atomically
from svdexp.runtime.errors import require
from svdexp.runtime.shelves import identity
from svdexp.schema import ModelConfig

PROMPTS = (
    "The singular value decomposition of a matrix is",
    "Once upon a time there was",
    "To read a file in Python,",
    "Water boils at a lower temperature in the mountains because",
    "The three largest cities of Europe are",
)
TOKENS = 32
WINDOWS, LENGTH = 4, 256
# What no form changes. Weights are bfloat16 from the beginning, so that every engine can hold them exactly.
ALWAYS = ("precision=bfloat16", "eval.windows=1", "eval.efficiency=null", "tracker=none", "save=checkpoint")


def dense_folder(model: ModelConfig, folder: Path) -> Path:
    """The dense model as a folder of bfloat16 safetensors, whatever it comes from."""
    made = folder / DENSE
    if not made.is_dir():
        import torch

        from svdexp.checkpoints.loading import load_model, load_tokenizer

        with whole_folder(made) as partial:
            load_model(model, torch.bfloat16, torch.device("cpu")).save_pretrained(partial)
            load_tokenizer(model).save_pretrained(partial)
    return made


def compressed_folder(form: Form, dense: Path, words: Sequence[str], folder: Path) -> tuple[Path, Path]:
    """The model of a form that svdexp speaks for, and the folder, or the file, that an engine is given.

    The first is the second where svdexp loads that: an export may round what it turns into factors, and what the engine
    answers for is the file. Else it is the run's checkpoint.

    Args:
        form: how it is made.
        dense: the dense model.
        words: further ones of the compression; they win over the form's.
        folder: where everything of this model is kept.

    Raises:
        UserError: a command ends with an error, or there is no such file.
    """
    if form.file is not None:
        made = Path(form.file.format(dense=dense))
        require(made.is_file(), f"{made} is not there: llama.cpp's script makes it of the dense model")
        return made, made
    run = folder / f"run-{identity(words=[*form.compress, *words])}"
    called = [f"model.path={dense}", *ALWAYS, *form.compress, *words, f"hydra.run.dir={run}"]
    if not (run / RESULTS).is_file():
        command(called, Path(f"{run}.log"))
    if not form.export:
        return run / "checkpoint", run / "checkpoint"
    from svdexp.checkpoints.checkpoint import is_compressed

    exported = Path(f"{run}-{identity(words=list(form.export))}")
    if not exported.is_dir():
        words = [word.format(dense=dense) for word in form.export]
        command([f"path={run}", f"to={exported}", *words], Path(f"{exported}.log"), "svdexp.export")
    return exported if is_compressed(exported) else run / "checkpoint", exported


def command(words: Sequence[str], log: Path, program: str = "svdexp") -> None:
    """One command of svdexp's, as a user types it.

    Raises:
        UserError: it ends with an error; what it said is in `log`.
    """
    print(f"python -m {program} {' '.join(words)}", file=sys.stderr, flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as said:
        done = subprocess.run([sys.executable, "-m", program, *words], stdout=said, stderr=subprocess.STDOUT)
    require(done.returncode == 0, f"svdexp itself: {last_line(log)}")


def material(dense: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of the prompts, and of windows of text that calibration did not see."""
    from svdexp.checkpoints.loading import load_config, load_tokenizer
    from svdexp.data import Split, cut_windows, read_text, resolve_bos, tokenize, with_first
    from svdexp.schema import Bos

    config = ModelConfig(DENSE, str(dense))
    tokenizer = load_tokenizer(config)
    first = resolve_bos(Bos.tokenizer, tokenizer).token
    prompts = [with_first(first, tokenize(text, tokenizer)[None])[0].tolist() for text in PROMPTS]
    length = min(LENGTH, getattr(load_config(config), "max_position_embeddings", LENGTH))
    stream = tokenize(read_text("pydoc", Split.evaluation, []), tokenizer)
    windows = cut_windows(
        stream, length, WINDOWS, knob="eval.windows", bos=resolve_bos(Bos.tokenizer, tokenizer).of_windows
    )
    return prompts, windows.tolist()


def svdexps_own(folder: Path, prompts: Sequence[Sequence[int]], windows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Greedy tokens after each prompt and the perplexity of a dense or compressed model, in float32; kept beside it.

    A GGUF file is a dense model's.
    """
    kept = Path(f"{folder}.said.json")
    asked = identity(prompts=prompts, windows=windows, tokens=TOKENS)
    if kept.is_file() and (said := json.loads(kept.read_text()))["asked"] == asked:
        return dict(said)
    import torch

    from svdexp.checkpoints.checkpoint import load
    from svdexp.checkpoints.loading import load_model
    from svdexp.evaluation.generation import greedy
    from svdexp.evaluation.perplexity import perplexity

    if folder.name == DENSE or folder.suffix == ".gguf":
        model = load_model(ModelConfig(DENSE, str(folder)), torch.float32, torch.device("cpu"))
    else:
        model, _ = load(folder, torch.float32)
    with torch.no_grad():  # no token ends a text
        tokens = [list(greedy(model, torch.tensor([prompt]), TOKENS)) for prompt in prompts]
    said = {
        "asked": asked,
        "tokens": tokens,
        PERPLEXITIES: perplexity(model, torch.tensor(windows), what=None).value,
    }
    write_atomically(kept, json.dumps(said))
    return said
