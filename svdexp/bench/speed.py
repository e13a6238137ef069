"""Command line: `python -m svdexp.bench.speed` prints how fast models of pairs or codes are beside dense.

All models stand in memory and take turns, pass by pass, so that what else a machine does meets all alike. Each is told
by medians: CPU milliseconds of all threads, their spread between the quartiles, the best, wall milliseconds, and how
many times faster than the dense model it is as plain transformers runs that one (by CPU, by the best, by the wall), and
than the routed one, which has our routes for its own products. `limit` is what memory could do at best: milliseconds
for the bytes that a step must read, at the speed of a copy.
"""

from svdexp.runtime.interruption import interruptible

# isort: split
import argparse
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from statistics import median, quantiles
from typing import Any, NamedTuple

from svdexp.runtime.invocation import command

ROUNDS = 15
PRECISIONS = ["float32", "bfloat16", "float16"]
COPIES = 5
COPIED = 1 << 29  # bytes: no cache holds them
DENSE, ROUTED = "dense", "dense, our routes"


class Case(NamedTuple):
    """What is timed: one pass over `prompt` tokens, or steps behind them, for `batch` texts at once."""

    batch: int
    prompt: int
    decode: bool

    def __str__(self) -> str:
        what = f"decode behind {self.prompt}" if self.decode else f"prefill of {self.prompt}"
        return f"{what} tokens, batch {self.batch}"


def main(words: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog=command("bench.speed"), description="Decode and prefill beside dense.")
    parser.add_argument("--shape", choices=["demo", "wide"], default="demo")
    parser.add_argument("--blocks", type=int, help="so many of its blocks, and words in proportion")
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=PRECISIONS[:2])
    parser.add_argument("--forms", nargs="+", default=["factors", "pivot"], help="or remap, int8, int4, int4+16")
    parser.add_argument("--ratios", nargs="+", type=float, default=[0.8, 0.6, 0.4])
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    parser.add_argument("--contexts", nargs="*", type=int, default=[64, 1024])
    parser.add_argument("--prompts", nargs="*", type=int, default=[256, 2048])
    parser.add_argument("--align", nargs="+", type=int, default=[1], help="ranks are multiples of these, in turn")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args(words)
    cases = [Case(batch, context, True) for batch in asked.batches for context in asked.contexts]
    cases += [Case(1, prompt, False) for prompt in asked.prompts]
    made = forms_of(asked.forms, asked.ratios, asked.align)
    for precision in asked.precision:
        show(asked.shape, asked.blocks, precision, made, cases, asked.rounds)
    return 0


class Form(NamedTuple):
    """How the layers of a model are kept; pairs of how many of their bits, and ranks are multiples of what."""

    storage: str
    kept: float | None = None
    align: int = 1

    def __str__(self) -> str:
        if self.kept is None:
            return self.storage
        return f"{self.storage} {self.kept}" + (f", ranks of {self.align}" if self.align > 1 else "")


def forms_of(names: Sequence[str], ratios: Sequence[float], aligned: Sequence[int]) -> list[Form]:
    """Pairs at every ratio and alignment; codes, which have neither, once."""
    from svdexp.bench.stacks import CODES, CORRECTED

    codes = {*CODES, *CORRECTED}
    each = ([(name,)] if name in codes else list(product([name], ratios, aligned)) for name in names)
    return [Form(*of) for some in each for of in some]


class Turn(NamedTuple):
    """Milliseconds of one pass of a model."""

    cpu: float
    wall: float


def show(
    shape: str, blocks: int | None, precision: str, forms: Sequence[Form], cases: Sequence[Case], rounds: int
) -> None:
    """Print a table a case."""
    import torch
    from rich.console import Console

    torch.manual_seed(0)
    with torch.no_grad():
        models = standing(config_of(shape, blocks), getattr(torch, precision), forms)
        speed = bandwidth()
        for case in cases:
            of = shape if blocks is None else f"{shape}, {blocks} blocks"
            title = f"{of}, {precision}, {case}; {torch.get_num_threads()} threads, copies at {speed / 1e9:.1f} GB/s"
            Console(width=120).print(table(title, models, turns(models, case, rounds), case, speed))


def config_of(shape: str, blocks: int | None) -> Any:
    """Of all blocks of a shape, or of so many, with as large a share of its words."""
    from svdexp.bench.stacks import DEMO, WIDE

    config = copy.deepcopy({"demo": DEMO, "wide": WIDE}[shape])
    if blocks is not None:
        config.vocab_size = config.vocab_size * blocks // config.num_hidden_layers
        config.num_hidden_layers = blocks
    return config


def standing(config: Any, dtype: Any, forms: Sequence[Form]) -> dict[str, Any]:
    """The models by what they are called, the plain dense one first."""
    from svdexp.bench.stacks import compressed, in_codes, random_model
    from svdexp.models.portable.svdexp_products import quicken

    models = {DENSE: random_model(config), ROUTED: random_model(config)}
    for form in forms:
        name, kept, align = form
        models[str(form)] = in_codes(config, name) if kept is None else compressed(config, name, kept, align)
    for name, model in models.items():
        model.to(dtype)
        if name != DENSE:
            quicken(model)
    return models


def turns(models: dict[str, Any], case: Case, rounds: int) -> dict[str, list[Turn]]:
    """Each model's, one a round, after one that does not count."""
    found: dict[str, list[Turn]] = {name: [] for name in models}
    work = {name: steps(model, case) if case.decode else passes(model, case) for name, model in models.items()}
    for turn in range(rounds + 1):
        for name, timed in work.items():
            taken = next(timed)
            if turn:
                found[name].append(taken)
    return found


def passes(model: Any, case: Case) -> Iterator[Turn]:
    """Over a prompt."""
    import torch

    prompt = torch.randint(model.config.vocab_size, (case.batch, case.prompt))
    while True:
        with clocked() as taken:
            model(prompt, use_cache=True, logits_to_keep=1)
        yield taken[0]


def steps(model: Any, case: Case) -> Iterator[Turn]:
    """One token behind a prompt of random keys and values."""
    import torch
    from transformers import DynamicCache

    config, token = model.config, torch.zeros(case.batch, 1, dtype=torch.long)
    width = config.hidden_size // config.num_attention_heads
    shape = (case.batch, config.num_key_value_heads, case.prompt, width)
    cache = DynamicCache(config=config)
    for layer in range(config.num_hidden_layers):
        cache.update(*torch.randn(2, *shape, dtype=model.dtype), layer)
    while True:
        with clocked() as taken:
            model(token, past_key_values=cache, use_cache=True)
        cache.crop(-1)
        yield taken[0]


@contextmanager
def clocked() -> Iterator[list[Turn]]:
    """What the context takes."""
    taken: list[Turn] = []
    cpu, wall = time.process_time(), time.perf_counter()
    yield taken
    taken.append(Turn(1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)))


def bandwidth() -> float:
    """Bytes that a copy reads and writes in a second of the CPU, the best of a few."""
    import torch

    source = torch.zeros(COPIED // 4)
    target = torch.ones_like(source)
    found = []
    for _ in range(COPIES):
        with clocked() as taken:
            target.copy_(source)
        found.append(2 * COPIED / (1e-3 * taken[0].cpu))
    return max(found)


def bytes_read(model: Any, case: Case) -> int:
    """What a step must read at least: all weights but the embeddings, if the head has its own, and keys and values."""
    config, tensors = model.config, [*model.parameters(), *model.buffers()]
    embeddings = model.get_input_embeddings().weight
    weights = sum(x.nbytes for x in tensors if config.tie_word_embeddings or x is not embeddings)
    width = config.hidden_size // config.num_attention_heads * config.num_key_value_heads
    return int(weights + 2 * case.batch * case.prompt * width * config.num_hidden_layers * model.dtype.itemsize)


def table(title: str, models: dict[str, Any], found: dict[str, list[Turn]], case: Case, speed: float) -> Any:
    """A row a model."""
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for heading in ("", "CPU ms", "spread", "best", "wall ms", "× dense", "of the best", "wall", "× routed", "limit"):
        made.add_column(heading, justify="right" if heading else "left")
    best = min(turn.cpu for turn in found[DENSE])
    for name, taken in found.items():
        (cpu, wall), least = (median(turn[i] for turn in taken) for i in (0, 1)), min(turn.cpu for turn in taken)
        quarters = quantiles([turn.cpu for turn in taken], n=4, method="inclusive")
        ratios = (beside(found[DENSE], taken, 0), best / least, beside(found[DENSE], taken, 1))
        made.add_row(
            *(name, f"{cpu:.1f}", f"{(quarters[2] - quarters[0]) / cpu:.0%}", f"{least:.1f}", f"{wall:.1f}"),
            *(f"{ratio:.2f}" for ratio in (*ratios, beside(found[ROUTED], taken, 0))),
            f"{1e3 * bytes_read(models[name], case) / speed:.1f}" if case.decode else "–",
        )
    return made


def beside(dense: Sequence[Turn], ours: Sequence[Turn], clock: int) -> float:
    """How many times faster: the median of the rounds' ratios."""
    return median(theirs[clock] / mine[clock] for theirs, mine in zip(dense, ours, strict=True))


if __name__ == "__main__":
    sys.exit(interruptible(main))
