"""The stages that a run will go through, each with its FLOPs and peak bytes.

Names are those of seconds/STAGE in results.json. Not counted are writing files, and what a cache holds from earlier
runs: the estimate assumes an empty one. What comes before the first of them is in beginning.py.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from svdexp.data import batch_windows
from svdexp.estimate.calibration import by_group, calibration, measures_dense, statistics_bytes
from svdexp.estimate.decomposition import decomposition, measured, sides
from svdexp.evaluation.efficiency import WARM_UP_STEPS
from svdexp.evaluation.tasks import TASKS, expand
from svdexp.factorisation import Weighting
from svdexp.method import Method
from svdexp.models.matrices import Matrix
from svdexp.models.work import Work, Workload, cost_of
from svdexp.schema import RATIO_STEPS, EfficiencyConfig, EvalConfig, Save, Traversal
from svdexp.storage import Storage, largest_rank

# Sizes that a bisection tries, the dense model beside them.
TRIALS = 1 + math.ceil(math.log2(RATIO_STEPS))


@dataclass(frozen=True)
class Stage:
    """One row.

    Attributes:
        name: as of seconds/STAGE.
        work: what it does.
        bytes: the most that the model's device holds during the stage, the model included.
        disk: the most bytes that the run has on disk until its end (disk.py).
        anew: of `work`, what a run does also where a cache has the stage's results.
    """

    name: str
    work: Work
    bytes: float
    disk: float = 0.0
    anew: Work = field(default_factory=Work)


def stages(
    workload: Workload,
    method: Method,
    evaluation: EvalConfig,
    texts: Sequence[int],
    *,
    save: Save,
    cached: bool,
    streamed: bool = False,
    judged: int | None = None,
    routed: bool = True,
) -> list[Stage]:
    """One row per stage.

    Args:
        workload: layers, model and calibration.
        method: the parts; each may state a cost of its own (`Costly`).
        evaluation: window length, batch size and speed measurement.
        texts: how many windows each text is evaluated on.
        save: what is left on disk; an elastic checkpoint gathers in memory until all is truncated.
        cached: whether finished stages go to disk; without a cache they stay in memory.
        streamed: whether one block is in memory at a time, a dense one at most; windows are then evaluated one by one.
        judged: on how many windows sizes are tried; None: the ratio is known.
        routed: whether the dense model's speed is measured by our routes as well, as it is on a CPU.
    """
    dense, small = float(workload.model_bytes), workload.compressed_bytes
    if streamed:
        workload, evaluation = of_one_block(workload), replace(evaluation, batch_size=1)
        dense = small = workload.model_bytes
    held = 0.0 if cached or method.weighting is None else components_bytes(workload.layers)
    if not cached and method.weighting and measures_dense(method):
        held += statistics_bytes(workload.layers, method.statistics(workload.layers), workload)
    evaluates = bool(texts) or bool(evaluation.tasks) or evaluation.efficiency is not None

    rows: list[Stage] = []

    def add(name: str, work: Work, resident: float) -> None:
        rows.append(Stage(name, work, resident + work.bytes))

    if evaluates:
        add("evaluate_dense", evaluate(workload, evaluation, texts, compressed=False, routed=routed), dense)
        if evaluation.efficiency:  # speed is never kept
            rows[-1] = replace(rows[-1], anew=generation(workload, evaluation.efficiency, routed=routed))
    add("usage", workload.forward_backward(1) if method.needs_gradients else workload.forward(1, head=False), dense)
    if method.weighting:
        if any(method.statistics(workload.layers).values()):
            add("calibration", calibration(workload, method, streamed), dense)
        add("factorisation", factorisation(workload, method, method.weighting), dense + held)
    if judged is not None:
        trial = search_trial(workload, method, evaluation, judged)
        add("search", trial * TRIALS, dense + small + held)
    add("allocation", cost_of(method.allocation, workload), dense + held)
    add("storage", method.storage.cost(workload), dense + held + truncation_bytes(workload, save))
    if method.update is not None:
        add("update", cost_of(method.update, workload), dense + held)
    if method.training:
        add("training", sum((cost_of(part, workload) for part in method.training.values()), Work()), dense + small)
    if evaluates:
        add("evaluate", evaluate(workload, evaluation, texts, compressed=True), small)
    if save is not Save.none:  # the checkpoint is loaded again and both run one window
        add("save", workload.forward(2, compressed=True), 2 * small)
    return rows


def search_trial(workload: Workload, method: Method, evaluation: EvalConfig, judged: int) -> Work:
    """One size that is tried: all that the method does once it has a ratio, and `judged` windows of the text."""
    work = cost_of(method.allocation, workload) + method.storage.cost(workload)
    if method.update is not None:
        work += cost_of(method.update, workload)
    if method.weighting and method.traversal is Traversal.blockwise:
        work += calibration(workload, method) + factorisation(workload, method, method.weighting)
    windows = replace(evaluation, tasks=[], efficiency=None)
    return work + evaluate(workload, windows, [judged], compressed=True)


def of_one_block(workload: Workload) -> Workload:
    """The same work, with what a backward pass keeps of one block, and in memory one block and what is in none."""
    stored, blocks = workload.body * workload.itemsize, workload.blocks
    outside = workload.model_bytes - stored
    return replace(workload, model_bytes=outside + stored // blocks, stored=workload.stored // blocks)


def evaluate(
    workload: Workload, evaluation: EvalConfig, texts: Sequence[int], *, compressed: bool, routed: bool = False
) -> Work:
    """Perplexities, accuracies and the speed measurement of one model; sizes of tasks are those of the hub's data."""
    length, batch = evaluation.seq_len, evaluation.batch_size or batch_windows(evaluation.seq_len)
    work = workload.forward(sum(texts), length=length, batch=batch, compressed=compressed) if texts else Work()
    for task in (TASKS[name] for name in expand(evaluation.tasks, evaluation.include_path) if name in TASKS):
        requests = min(evaluation.limit or task.rows, task.rows) * task.passes
        tokens = task.tokens * (1 + (evaluation.num_fewshot or 0))
        work += workload.forward(requests, length=tokens, batch=batch, compressed=compressed)
    if evaluation.efficiency is None:
        return work
    return work + generation(workload, evaluation.efficiency, compressed=compressed, routed=routed)


def generation(workload: Workload, shape: EfficiencyConfig, *, compressed: bool = False, routed: bool = False) -> Work:
    """Measuring the speed of one model; twice where it is `routed`, by its own products and by our routes."""
    prompts = (shape.warmup + shape.repeats) * shape.batch_size
    steps = shape.repeats * shape.generate + shape.warmup * min(WARM_UP_STEPS, shape.generate)
    work = workload.forward(prompts, length=shape.prompt, compressed=compressed)
    work += workload.decoding(steps, shape.batch_size, compressed=compressed)
    return work * (2 if routed and not shape.compile else 1)  # what is compiled has no routes


def factorisation(workload: Workload, method: Method, weighting: Weighting) -> Work:
    """Every layer's decomposition, twice where an allocation looks at the dense model before a blockwise run.

    Where there are forms to choose from, one for each part of W that those with ranks decompose, and their losses.

    Alive are one block's statistics and components, in float32, and one decomposition in float64.
    """
    work, needs, forms = Work(), method.statistics(workload.layers), method.storage.menu.values()
    parts = decompositions(method.storage)
    for block in by_group(workload.layers):
        given = {x.name: sides(weighting, needs[x.name]) for x in block}
        solved = sum((decomposition(x.m, x.n, given[x.name], method.numerics) for x in block), Work()) * parts
        if forms and method.allocation.needs_spectra:
            rows = Counter[str]()
            for x in block:
                rows[workload.leaders[x.name]] += x.m
            solved += sum(
                (measured(x.m, x.n, rows[workload.leaders[x.name]], given[x.name], forms) for x in block), Work()
            )
        around = statistics_bytes(block, needs, workload) + components_bytes(block)
        work += solved + Work(bytes=solved.bytes + around)
    twice = method.traversal is Traversal.blockwise and measures_dense(method)
    return work * (2 if twice else 1)


def decompositions(storage: Storage) -> int:
    """How many of every layer there are: one for each part of W that a form with ranks decomposes."""
    forms = storage.menu.values()
    return len({form.storage.split for form in forms if form.ranked}) if forms else 1


def components_bytes(layers: Sequence[Matrix]) -> float:
    """Of decompositions in float32: (m, k) and (k, n) with k = min(m, n)."""
    return sum(4 * min(x.m, x.n) * (x.m + x.n) for x in layers)


def truncation_bytes(workload: Workload, save: Save) -> float:
    """What truncation holds: one block's components, and with save=elastic what the checkpoint adds to the model."""
    block = max(components_bytes(block) for block in by_group(workload.layers))
    if save is not Save.elastic:
        return block
    return block + added_by_elastic(workload)


def added_by_elastic(workload: Workload) -> float:
    """What an elastic checkpoint has beside the compressed model: all components that pay, and the dense matrices."""
    added = sum(largest_rank(x.m, x.n) * (x.m + x.n) + x.m * x.n for x in workload.layers)
    return float(added * workload.itemsize)
