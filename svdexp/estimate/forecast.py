"""The estimate of one run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from svdexp.allocation import Budget, expected_ranks
from svdexp.estimate.anatomy import workload_of
from svdexp.estimate.calibration import by_group
from svdexp.estimate.devices import Machine
from svdexp.estimate.disk import with_disk
from svdexp.estimate.speed import measure_speed
from svdexp.estimate.stages import Stage, stages
from svdexp.estimate.table import render
from svdexp.method import Method
from svdexp.models.matrices import Matrix, Ranks
from svdexp.models.structure import stored_bytes
from svdexp.runtime.shelves import identity
from svdexp.schema import Config, Traversal


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        what: the run and its device, in words.
        rows: one per stage.
        machine: what it is for.
        beside: bytes in every row that are no tensors'.
        shared: of stages whose results a cache keeps, by name, what runs that find them there have in common.
    """

    what: str
    rows: Sequence[Stage]
    machine: Machine
    beside: int
    shared: Mapping[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(self.machine.speed.seconds(row.work) for row in self.rows)

    @property
    def bytes(self) -> float:
        """Of the stage that takes most memory."""
        return max(row.bytes for row in self.rows)

    @property
    def disk(self) -> float:
        """Bytes on disk, at most."""
        return max(row.disk for row in self.rows)

    @property
    def text(self) -> str:
        """As a table."""
        return render(self.rows, self.machine, self.what, self.beside)


def forecast(
    config: Config,
    method: Method,
    model: PreTrainedModel,
    layers: Sequence[Matrix],
    budget: Budget,
    fixed: Ranks,
    texts: Sequence[int],
    machine: Machine,
    streamed: bool = False,
) -> Forecast:
    """What the run will take on `machine`, its model whole or `streamed`.

    `model` may be on the meta device; `budget` and `fixed` are the plan's; `texts` are the numbers of windows that each
    text is evaluated on.
    """
    beside = beside_tensors(model) if machine.shared else 0
    rows = foreseen(config, method, model, layers, budget, fixed, texts, streamed, routed=machine.shared)
    rows = [replace(row, bytes=row.bytes + beside) for row in rows]
    name = str(model.dtype).removeprefix("torch.")
    what = f"{config.model.name}, {method.name}, {name}{', streamed,' if streamed else ''} on {machine.name}"
    return Forecast(what, rows, machine, beside, shared_stages(config, method) if config.cache else {})


def foreseen(
    config: Config,
    method: Method,
    model: PreTrainedModel,
    layers: Sequence[Matrix],
    budget: Budget,
    fixed: Ranks,
    texts: Sequence[int],
    streamed: bool,
    routed: bool = True,
) -> list[Stage]:
    """The stages of a run, their bytes without what Python and its libraries take; arguments are `forecast`'s and, of
    `stages`, `routed`."""
    part = config.calibration
    ranks = expected_ranks(method.allocation, budget, fixed)
    workload = workload_of(model, layers, budget, ranks, windows=part.samples, length=part.seq_len)
    cached = config.cache is not None
    judged = None
    if config.ppl is not None and texts:
        judged = texts[config.eval.texts.index(config.ppl_text) if config.ppl_text else 0]
    how: dict[str, Any] = {"save": config.save, "cached": cached, "streamed": streamed}
    rows = stages(workload, method, config.eval, texts, **how, judged=judged, routed=routed)
    return with_disk(rows, workload, method, **how)


def shared_stages(config: Config, method: Method) -> dict[str, str]:
    """For each stage whose results a cache keeps, the identity of what is configured that they depend on."""
    model = {"model": asdict(config.model), "precision": config.precision, "device": config.device}
    found = {"evaluate_dense": identity(**model, eval=asdict(config.eval))}
    if method.weighting and method.traversal is Traversal.dense:
        targets = {**asdict(config.targets), "ranks": {}}
        about = {**model, "calibration": asdict(config.calibration), "targets": targets, "seed": config.seed}
        shapes = {"wide": (1, 2), "square": (1, 1), "tall": (2, 1)}
        found["calibration"] = identity(**about, needs={name: method.needs(*shape) for name, shape in shapes.items()})
        found["factorisation"] = identity(**about, **method.decomposition)
    return found


def this_machine(device: torch.device, dtype: torch.dtype, layers: Sequence[Matrix], length: int) -> Machine:
    """`device`, timed with blocks like the largest one of `layers` in `dtype` and windows of `length` tokens; takes
    about two seconds, and less where all `layers` are small."""
    cuda = device.type == "cuda"
    memory = torch.cuda.get_device_properties(device).total_memory if cuda else psutil.virtual_memory().total
    largest = max(by_group(layers), key=lambda block: sum(layer.m * layer.n for layer in block))
    speed = measure_speed(device, dtype, tuple((layer.m, layer.n) for layer in largest), length)
    return Machine(str(device), memory, speed, "from a few blocks of its shapes", shared=device.type == "cpu")


def beside_tensors(model: PreTrainedModel) -> int:
    """The bytes that Python and its libraries take of this machine's memory: what this process holds now, less the
    weights."""
    weights = 0 if model.device.type == "meta" else stored_bytes(model)
    held: int = psutil.Process().memory_info().rss
    return max(0, held - weights)
