"""Whether a run streams its model (models/residency.py), and what it then cannot do."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from svdexp.allocation import REPEATABLE, FromFile, FromGamma, Whole
from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.intake import safetensors_read
from svdexp.checkpoints.loading import load_skeleton, locate, resolve_dtype
from svdexp.checkpoints.loading_streamed import streamable_files
from svdexp.engine.plan import Plan, plan
from svdexp.engine.size import Size
from svdexp.estimate.forecast import foreseen
from svdexp.estimate.table import USABLE, gigabytes
from svdexp.evaluation import Exam
from svdexp.method import Method
from svdexp.models.behaviour import why_not_replayed
from svdexp.models.spreading import BALANCED
from svdexp.models.structure import Targets
from svdexp.runtime.errors import UserError, require
from svdexp.runtime.processes import Processes
from svdexp.runtime.reading import read_object
from svdexp.schema import Config, EvalConfig, EvaluateConfig, ModelConfig, Residency, Save, Traversal
from svdexp.training import BlockRefine

log = logging.getLogger(__name__)

# A run takes less than this many times the model's bytes, so that no estimate is made where they are few.
MOST = 20
SPREAD = f"device={BALANCED} spreads the whole model over several GPUs"


def skeleton_to_stream(config: Config, method: Method, size: Size, device: torch.device) -> PreTrainedModel | None:
    """The model without weights where the run, which compresses it to `size`, streams it; None where it shall be whole.

    Raises:
        UserError: `residency=streamed` asks for what cannot be streamed.
    """
    agree = Processes().agree  # on what the main one sees: memory is not always as free
    whole = config.residency is Residency.whole
    if whole or (config.residency is Residency.auto and agree(fits_surely(config, device))):
        return None
    skeleton = load_skeleton(config.model, resolve_dtype(config.precision, device))
    planned = plan(skeleton, method, size, Targets(**vars(config.targets)))
    fault = why_not_read(config.model)
    return skeleton if agree(streams(config, method, skeleton, planned, room(device), fault)) else None


def fits_surely(config: Config, device: torch.device) -> bool:
    """Whether the model's files are small beside the memory of `device`, or none that could be streamed."""
    return MOST * streamable_bytes(config.model) <= USABLE * room(device)


def streamable_bytes(model: ModelConfig) -> int:
    """What the files take from which the model could be streamed; 0 where there are none, as of a GGUF file."""
    source = locate(model)
    files = [] if source.gguf_file else safetensors_read(Path(source.location))
    return sum(path.stat().st_size for path in files)


def streams(
    config: Config, method: Method, model: PreTrainedModel, planned: Plan, memory: float, fault: str | None = None
) -> bool:
    """Whether the run streams `model`, which may be on the meta device; where that was not asked for, the log says why.

    `memory` are the bytes that its tensors may take; `fault` is what is wrong with its files, where these count.

    Raises:
        UserError: `residency=streamed` asks for what cannot be streamed.
    """
    if config.residency is Residency.whole:
        return False
    reason = obstacle(config, method, model) or fault
    if config.residency is Residency.streamed:
        require(reason is None, f"residency=streamed has one block in memory at a time, but {reason}")
        return True
    layers, budget, fixed, *_ = planned
    rows = foreseen(config, method, model, layers, budget, fixed, [1] * len(config.eval.texts), streamed=False)
    needed = max(row.bytes for row in rows)
    usable = USABLE * memory
    if needed <= usable:
        return False
    sizes = f"the whole run's tensors are estimated to take {gigabytes(needed)}, and there are {gigabytes(usable)}"
    if reason is None:
        log.info("residency: the model is streamed, because %s", sizes)
        return True
    log.warning("residency: %s; the model cannot be streamed, for %s", sizes, reason)
    return False


def why_not_read(model: ModelConfig) -> str | None:
    """Why blocks cannot be read from a model's files one by one, if they cannot."""
    try:
        streamable_files(model)
    except UserError as error:
        return str(error)
    return None


def room(device: torch.device) -> int:
    """The bytes of memory that are free on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def obstacle(config: Config, method: Method, model: PreTrainedModel) -> str | None:
    """Why the run cannot stream the model, with the knob to turn; None: it can."""
    allocation = type(method.allocation)
    whole = "needs the whole model"
    known = (*REPEATABLE.values(), FromFile, FromGamma, Whole)
    reasons = {
        SPREAD: config.device == BALANCED,
        "its statistics wait on disk: set cache=FOLDER": config.cache is None,
        f"method.training {whole}; leave it out, or take method/training=block_refine": not all(
            isinstance(part, BlockRefine) for part in method.training.values()
        ),
        f"method.training.block_refine.stored=true {whole}; leave it out": bool(method.trains_stored),
        f"method.update={type(method.update).__name__} {whole}; use method.update=null": method.update is not None,
        f"storage=forms {whole}; choose another method, or another storage and method/allocation": bool(
            method.storage.menu
        ),
        f"method.allocation={allocation.__name__} {whole}; choose another method/allocation": allocation not in known,
        "method.traversal=blockwise changes blocks on the way; use method.traversal=dense": method.traversal
        is Traversal.blockwise,
        f"storage={type(method.storage).__name__} {whole}; use one that looks at no inputs": method.storage.waits,
        "ppl tries sizes on the whole model; find the ratio elsewhere, then give ratio": config.ppl is not None,
        "save=elastic gathers what was truncated in memory; use save=checkpoint": config.save is Save.elastic,
    }
    for reason, holds in reasons.items():
        if holds:
            return reason
    return obstacle_to_evaluation(config.eval) or not_alone(model)


def obstacle_to_evaluation(part: EvalConfig) -> str | None:
    """Why a streamed model cannot be evaluated so; None: it can."""
    if part.efficiency is not None:
        return "generation speed needs the whole model; set eval.efficiency=null"
    return "eval.prompts needs the whole model; leave it out" if part.prompts else None


def not_alone(model: PreTrainedModel) -> str | None:
    """Why blocks of a model, which may be on the meta device, cannot be run one by one; None: they can."""
    fault = why_not_replayed(model)
    return fault and f"blocks of {type(model).__name__} do not run alone: {fault}; use residency=whole"


def require_likelihoods(exams: Sequence[Exam]) -> None:
    """Raise UserError for a task that a streamed model cannot answer."""
    for exam in exams:
        require(
            not exam.writes,
            f"eval.tasks: answers to {exam.name} are written, which needs the whole model; leave it "
            "out, or set residency=whole or device=balanced",
        )


def evaluation_streams(config: EvaluateConfig, source: ModelConfig, device: torch.device) -> bool:
    """Whether the model at `source` is streamed while it is evaluated; the log says why where that was not asked for.

    Raises:
        UserError: `residency=streamed` asks for what cannot be streamed.
    """
    if config.residency is Residency.whole:
        return False
    usable, needed = USABLE * room(device), 0
    if config.residency is Residency.auto:
        needed = streamable_bytes(source)
        if needed <= usable:
            return False
    spread = SPREAD if config.device == BALANCED else None
    reason = spread or obstacle_to_evaluation(config.eval) or foreign(source) or why_not_read(source)
    reason = reason or not_alone(dense_skeleton(source))
    if config.residency is Residency.streamed:
        require(reason is None, f"residency=streamed has one block in memory at a time, but {reason}")
        return True
    sizes = f"the model's files take {gigabytes(needed)}, and there are {gigabytes(usable)}"
    if reason is None:
        log.info("residency: the model is streamed, because %s", sizes)
    else:
        log.warning("residency: %s; the model cannot be streamed, for %s", sizes, reason)
    return reason is None


def foreign(source: ModelConfig) -> str | None:
    """Why a compressed checkpoint cannot be read block by block; None: it can, or it is a dense model."""
    folder = Path(source.path).expanduser()
    ours = not checkpoint.is_compressed(folder) or "svdexp" in read_object(folder / "config.json")
    return None if ours else f"path={source.path} was compressed by others and is converted while it is read"


def dense_skeleton(source: ModelConfig) -> PreTrainedModel:
    """The model at `source` without weights; of a compressed one, the dense model that it was made of.

    Raises:
        UserError: as `load_skeleton`, or `checkpoint.load`.
    """
    folder = Path(source.path).expanduser()
    if not checkpoint.is_compressed(folder):
        return load_skeleton(source, torch.float32)
    config, architecture = checkpoint.configuration(folder, source.trust_remote_code)
    return checkpoint.empty_model(architecture, config)


@contextmanager
def room_for_blocks(run_dir: Path) -> Iterator[Path]:
    """A folder for blocks that a run changed, which ends with it; those of a run that was killed are removed.

    Each of the processes that share a run has its own.
    """
    processes = Processes()
    folder = run_dir / (".blocks" if processes.main else f".blocks-{processes.index}")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
