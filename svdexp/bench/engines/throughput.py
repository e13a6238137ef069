"""Command line: `python -m svdexp.bench.engines.throughput`: many requests at once in vLLM, factors beside dense.

Random Llamas of hidden size 2048 in bfloat16, ranks multiples of 32. The dense model and one of factors stand in memory
at the same time and take turns, so that what else a machine does meets both; a ratio is the median over these turns.
"""

from svdexp.runtime.interruption import interruptible

# isort: split
import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from svdexp.runtime.invocation import command

ALIGN = 32  # of ranks: what the fast kernels of CPUs count in
REQUESTS, PROMPT, GENERATED = 16, 256, 64


def main(words: Sequence[str] | None = None) -> int:
    """Write the models, let them run, print the ratios."""
    parser = argparse.ArgumentParser(prog=command("bench.engines.throughput"), description="Requests at once in vLLM.")
    parser.add_argument("--kept", nargs="+", type=float, default=[0.8, 0.6, 0.4], help="shares of the layers' bits")
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--folder", type=Path, default=Path("outputs/engines"), help="of all that is made")
    asked = parser.parse_args(words)
    from svdexp.bench.engines.__main__ import SCRIPTS
    from svdexp.bench.engines.environments import bare, python_of
    from svdexp.bench.engines.kinds import ENGINES
    from svdexp.runtime.markdown import table

    folder = asked.folder.absolute()
    environment, scripts = folder / "environments" / "vllm", SCRIPTS / "vllm"
    python = python_of(ENGINES["vllm"], scripts, environment)
    dense = written(folder / "models" / f"wide-{asked.blocks}", asked.blocks, None)
    rows = [["kept", "tokens per second, dense", "factors", "factors / dense", "from", "to", "by CPU seconds"]]
    for kept in asked.kept:
        factors = written(dense.with_name(f"{dense.name}-{kept}"), asked.blocks, kept)
        task = {"folders": [str(dense), str(factors)], "rounds": asked.rounds, "eager": asked.eager}
        task |= {"requests": REQUESTS, "prompt": PROMPT, "tokens": GENERATED}
        given, left = (folder / "answers" / f"throughput.{what}.json" for what in ("task", "result"))
        given.parent.mkdir(exist_ok=True)
        given.write_text(json.dumps(task))
        call = [str(python), str(scripts / "throughput.py"), str(given), str(left)]
        subprocess.run(call, env=bare(environment), check=True, stdout=sys.stderr)
        rows.append([f"{kept}", *cells(json.loads(left.read_text()))])
        print(" · ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(rows))
    return 0


def cells(turns: Sequence[Sequence[Sequence[float]]]) -> list[str]:
    """What is told of turns, each of (dense, factors) of tokens (by the second, by the CPUs' second)."""
    ratios = [ours[0] / plain[0] for plain, ours in turns]
    by_cpu = median(ours[1] / plain[1] for plain, ours in turns)
    speeds = [median(turn[model][0] for turn in turns) for model in (0, 1)]
    return [*(f"{speed:.0f}" for speed in speeds), *(f"{of(ratios):.2f}" for of in (median, min, max)), f"{by_cpu:.2f}"]


def written(folder: Path, blocks: int, kept: float | None) -> Path:
    """The folder of a random model of so many blocks, dense or of factors; written where it is not there yet."""
    if folder.is_dir():
        return folder
    import torch

    from svdexp.bench.folders import write_tokenizer
    from svdexp.bench.speed import config_of
    from svdexp.bench.stacks import compressed, random_model
    from svdexp.checkpoints.checkpoint import label
    from svdexp.checkpoints.quantiser import forget_quantiser
    from svdexp.checkpoints.together import say_together
    from svdexp.models.portable.svdexp_factors import LowRankLinear
    from svdexp.runtime.disk import whole_folder

    config = config_of("wide", blocks)
    config.tie_word_embeddings = False
    with torch.device("meta"):
        model: Any = random_model(config) if kept is None else compressed(config, "factors", kept, ALIGN)
    model.to_empty(device="cpu").to(torch.bfloat16)
    fill(model)
    if kept is not None:
        pairs = {name: part for name, part in model.named_modules() if isinstance(part, LowRankLinear)}
        label(model, {name: part.pair_shape[0] for name, part in pairs.items()})
        say_together(model)
    with whole_folder(folder) as partial:
        model.save_pretrained(partial)
        forget_quantiser(partial)
        write_tokenizer(partial, config.vocab_size)
    return folder


def fill(model: Any) -> None:
    """Put small random numbers into all matrices, the same again and again: what they compute does not matter."""
    import torch

    numbers = 0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            count = parameter.numel()
            drawn = numbers.repeat(-(-count // len(numbers)))[:count].view_as(parameter)
            parameter.copy_(drawn if parameter.dim() > 1 else torch.ones_like(parameter))


if __name__ == "__main__":
    sys.exit(interruptible(main))
