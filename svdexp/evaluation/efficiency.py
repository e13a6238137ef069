"""Speed and memory of generation with a KV cache: greedy decoding of random prompts, warmed up, repeated."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median, quantiles
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel, StaticCache

from svdexp.models.portable.svdexp_base import Replacement
from svdexp.models.portable.svdexp_latent import LatentCache
from svdexp.models.portable.svdexp_products import quicken, unquicken
from svdexp.models.structure import stored_bytes
from svdexp.record import Results
from svdexp.record.results import (
    DECODE,
    FLOPS_PER_TOKEN,
    GENERATION_BYTES,
    LATENCY,
    PHASES,
    PREFILL,
    SPEED,
    SPEED_ROUTED,
    SPEED_SPREAD,
)
from svdexp.runtime.errors import UserError
from svdexp.runtime.progress import progress
from svdexp.schema import CacheKind, EfficiencyConfig

SAMPLING_SECONDS = 0.02
WARM_UP_STEPS = 4


def _vector_flops(*shapes: Any, out_shape: Any = None, **how: Any) -> int:
    matrix = next(shape for shape in shapes if len(shape) == 2)
    return 2 * int(matrix[0]) * int(matrix[1])


# A prompt of one token may go by products that torch does not count.
VECTOR_FLOPS = {torch.ops.aten.mv: _vector_flops, torch.ops.aten.addmv: _vector_flops}


@dataclass(frozen=True)
class Run:
    """One prompt and what was generated after it: seconds of the prompt and of every further token."""

    prompt: float
    steps: list[float]
    cache_bytes: int

    def speeds(self, texts: int, tokens: int) -> tuple[float, float]:
        """Tokens per second of so many texts whose prompts have so many tokens: of prompts, and of what follows."""
        return texts * tokens / self.prompt, texts * len(self.steps) / sum(self.steps)


@dataclass(frozen=True)
class Efficiency:
    """What `repeats` runs of one shape took.

    Attributes:
        prefill, decode: median tokens per second, summed over the batch.
        prefill_spread, decode_spread: (fastest − slowest) / median of the repeats' tokens per second.
        first_token: median milliseconds until the first new token is known.
        latency: milliseconds per further token, at the 50th, 90th and 99th percentile of all steps.
        peak_bytes: the most memory held meanwhile: the device's tensors on CUDA; on a CPU the model's tensors and what
            the process grew by, because what it held before is not the model's alone.
        cache_bytes: the KV cache at the end.
        flops: per token of the prompt, products only.
        routed: median tokens per second, prefill and decode, where the dense model's own products went by our routes.
    """

    prefill: float
    decode: float
    prefill_spread: float
    decode_spread: float
    first_token: float
    latency: tuple[float, float, float]
    peak_bytes: int
    cache_bytes: int
    flops: float
    routed: tuple[float, float] | None = None

    def figures(self) -> Results:
        """Under their names in results.json."""
        return {
            **SPEED.says({PREFILL: self.prefill, DECODE: self.decode}),
            **SPEED_SPREAD.says({PREFILL: self.prefill_spread, DECODE: self.decode_spread}),
            **LATENCY.says(dict(zip(LATENCY.members, (self.first_token, *self.latency), strict=True))),
            **GENERATION_BYTES.says({"peak": self.peak_bytes, "kv_cache": self.cache_bytes}),
            **FLOPS_PER_TOKEN.says(self.flops),
            **(SPEED_ROUTED.says(dict(zip(PHASES, self.routed, strict=True))) if self.routed else {}),
        }


def require_context(config: PreTrainedConfig, shape: EfficiencyConfig) -> None:
    """Raise UserError where prompt and generated tokens are more than a model has positions for."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and shape.prompt + shape.generate > positions:
        raise UserError(
            f"eval.efficiency: prompt={shape.prompt} and generate={shape.generate} are more than the model's "
            f"{positions} positions"
        )


@torch.no_grad()
def measure_efficiency(
    model: PreTrainedModel,
    shape: EfficiencyConfig,
    what: str,
    seed: int = 0,
    first: int | None = None,
    routed: bool = False,
) -> Efficiency:
    """Time prompt processing and token-by-token generation on random tokens of the given shape, behind `first`.

    Where that changes anything, `routed` has a dense model take turns with itself by our routes.

    Raises:
        UserError: the shape does not fit the model, torch.compile cannot compile it, or a latent cache saves nothing.
    """
    require_context(model.config, shape)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = int(model.config.get_text_config().vocab_size)
    prompt = torch.randint(vocabulary, (shape.batch_size, shape.prompt), generator=generator).to(model.device)
    if first is not None:
        prompt[:, 0] = first
    with FlopCounterMode(display=False, custom_mapping=VECTOR_FLOPS) as counter:
        model(prompt[:1], use_cache=False)
    weights = stored_bytes(model)
    empty_cache = _caches(model, prompt, shape)
    forward = _compiled(model, prompt, shape, empty_cache) if shape.compile else model
    # the routes are a CPU's, and what is compiled keeps its own
    beside = routed and model.device.type == "cpu" and not shape.compile

    def turns(steps: int) -> list[Run]:
        found = [_run(forward, prompt, steps, empty_cache())]
        if beside:
            with by_our_routes(model):
                found.append(_run(forward, prompt, steps, empty_cache()))
        return found

    for _ in range(shape.warmup):
        turns(min(WARM_UP_STEPS, shape.generate))
    with peak_memory(model.device) as peak:
        runs, *others = zip(*(turns(shape.generate) for _ in progress(range(shape.repeats), what)), strict=True)
    (prefill, decode), *routes = (_by_phase(taken, prompt) for taken in (runs, *others))
    return Efficiency(
        prefill=median(prefill),
        decode=median(decode),
        prefill_spread=(max(prefill) - min(prefill)) / median(prefill),
        decode_spread=(max(decode) - min(decode)) / median(decode),
        first_token=1e3 * median(run.prompt for run in runs),
        latency=percentiles([1e3 * step for run in runs for step in run.steps]),
        peak_bytes=peak[0] + (0 if model.device.type == "cuda" else weights),
        cache_bytes=runs[-1].cache_bytes,
        flops=counter.get_total_flops() / shape.prompt,
        routed=(median(routes[0][0]), median(routes[0][1])) if routes else None,
    )


def _by_phase(runs: Sequence[Run], prompt: torch.Tensor) -> tuple[list[float], list[float]]:
    """Each run's tokens per second, of prompts (texts, tokens) and of what follows them."""
    found = [run.speeds(*prompt.shape) for run in runs]
    return [prefill for prefill, _ in found], [decode for _, decode in found]


@contextmanager
def by_our_routes(model: PreTrainedModel) -> Iterator[None]:
    """Within it a dense model's linear layers multiply as a compressed model's do."""
    quicken(model)
    try:
        yield
    finally:
        unquicken(model)


def percentiles(values: list[float]) -> tuple[float, float, float]:
    """The 50th, 90th and 99th, by linear interpolation."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = quantiles(values, n=100, method="inclusive")
    return cuts[49], cuts[89], cuts[98]


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """In bytes, the first element of the list once the context is left: on CUDA the most memory held within it, on a
    CPU by how much the process grew at most."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak = [0]
        yield peak
        peak[0] = torch.cuda.max_memory_allocated(device)
        return
    process, done, peak = psutil.Process(), threading.Event(), [0]
    start = process.memory_info().rss

    def watch() -> None:
        while not done.wait(SAMPLING_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss - start)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def _compiled(
    model: PreTrainedModel, prompt: torch.Tensor, shape: EfficiencyConfig, empty_cache: Callable[[], Cache]
) -> Any:
    """The model under torch.compile; what it compiles for the shape is compiled before anything is timed.

    With a static cache, as transformers' `generate` has it: a graph for prompts and one for steps, CUDA graphs on CUDA.
    """
    static = takes_static(model)
    mode = "reduce-overhead" if static and model.device.type == "cuda" else None
    try:
        compiled = torch.compile(model, mode=mode, dynamic=None if static else True)
        _run(compiled, prompt, min(WARM_UP_STEPS, shape.generate), empty_cache())
    except Exception as error:  # whatever a backend raises
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"eval.efficiency.compile=true: torch.compile cannot compile this model: {reason}") from error
    return compiled


def takes_static(model: PreTrainedModel) -> bool:
    """Whether the model can be compiled with a cache whose tensors are as long at the start as at the end."""
    return bool(model._can_compile_fullgraph)


def _caches(model: PreTrainedModel, prompt: torch.Tensor, shape: EfficiencyConfig) -> Callable[[], Cache]:
    """What gives every run an empty cache.

    A static one is the same each time, and has its tensors before anything is compiled: that may hold on to where they
    lie.
    """
    if shape.compile and takes_static(model):
        held = StaticCache(config=model.config, max_cache_len=shape.prompt + shape.generate)
        model(prompt, past_key_values=held, use_cache=True, logits_to_keep=1)

        def emptied() -> Cache:
            held.reset()  # type: ignore[no-untyped-call]
            return held

        return emptied
    return partial(_empty_cache, model, shape.cache)


def _empty_cache(model: PreTrainedModel, kind: CacheKind) -> DynamicCache:
    """A cache of `kind`; a dense model, which has no pairs, always has a plain one.

    Raises:
        UserError: it is latent and would save nothing.
    """
    if kind is CacheKind.plain or not any(isinstance(module, Replacement) for module in model.modules()):
        return DynamicCache(config=model.config)
    try:
        return LatentCache(model)
    except ValueError as error:
        raise UserError(f"eval.efficiency.cache={kind}: {error}") from error


def _run(forward: Any, prompt: torch.Tensor, steps: int, cache: Cache) -> Run:
    times = [_now(prompt.device)]
    logits = forward(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    token = logits[:, -1:].argmax(-1)
    times.append(_now(prompt.device))
    for _ in range(steps):
        logits = forward(token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        token = logits[:, -1:].argmax(-1)
        times.append(_now(prompt.device))
    seconds = [after - before for before, after in pairwise(times)]
    return Run(seconds[0], seconds[1:], _bytes(cache))


def _bytes(cache: Cache) -> int:
    """Of keys and values, and of where they stand; a layer with another kind of state has neither."""
    tensors = [getattr(layer, part, None) for layer in cache.layers for part in ("keys", "values", "positions")]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
