"""What a run will take, told before it starts: `dry_run=true`. No weights are loaded, and no network is needed."""

import logging
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, PreTrainedModel

from svdexp.cells import state_of
from svdexp.cells.choices import published_config
from svdexp.checkpoints.hub import hub_answers
from svdexp.checkpoints.loading import dense_config, resolve_device, resolve_dtype, skeleton_of
from svdexp.data import Split, characters_of, read_documents
from svdexp.engine.plan import plan
from svdexp.estimate.beginning import beginning
from svdexp.estimate.devices import published_machine
from svdexp.estimate.disk import shortage
from svdexp.estimate.forecast import Forecast, forecast, this_machine
from svdexp.estimate.table import rows
from svdexp.evaluation import passage, reading_of
from svdexp.evaluation.tasks import TASKS, expand
from svdexp.method import Method, build, build_method
from svdexp.models.structure import Targets, stored_bytes
from svdexp.runs.checks import check_inputs, check_lengths, window_lengths
from svdexp.runs.converted import tokenizer_of, weight_files
from svdexp.runs.foreseen import cached_stages
from svdexp.runs.inputs import calibration_windows, size_of
from svdexp.runs.residency import obstacle, room, streams, why_not_read
from svdexp.runtime.errors import UserError
from svdexp.schema import IMAGES, THIS, Config, ModelConfig, Precision, Residency, dry_device

log = logging.getLogger(__name__)

CHARACTERS = 4  # a token, where no tokenizer can be asked


class Known(NamedTuple):
    """A transformers configuration, and a sentence where it is the one that ships with svdexp."""

    config: Any
    note: str


def preview(config: Config, run_dir: Path) -> Forecast:
    """Print what the run would take, and where it stands.

    No weights are loaded, and a text only where all of its windows count.

    Raises:
        UserError: as `run` does for the configuration and the model's structure.
    """
    method, _ = build_method(config), build(config.tracker, "tracker")
    asked = dry_device(config.dry_run) or THIS
    device, dtype = format_on(asked, config)
    elsewhere = None if asked == THIS else published_machine(asked, dtype)
    began = time.perf_counter()
    known = known_config(config.model)
    header = time.perf_counter() - began
    check_inputs(config, method, known.config)
    model = skeleton_of(config.model, known.config, dtype)
    check_lengths(model, window_lengths(config, method))
    planned = plan(model, method, size_of(config), Targets(**vars(config.targets)))
    counts, notes = window_counts(config, offline=bool(known.note))
    uncounted = [name for name in expand(config.eval.tasks, config.eval.include_path) if name not in TASKS]
    if uncounted:
        notes.append(f"not counted: {', '.join(uncounted)}, whose rows lm-eval alone knows")
    said = [*planned.warnings, *filter(None, [known.note]), *notes]
    print(*said, sep="\n", end="\n" if said else "")
    machine = elsewhere or this_machine(device, dtype, planned.layers, config.calibration.seq_len)
    here = elsewhere is None and not known.note
    memory, fault = (room(device), why_not_read(config.model)) if here else (machine.memory, None)
    streamed = streams(config, method, model, planned, memory, fault)
    how = config, method, model, planned.layers, planned.budget, planned.fixed, counts, machine

    def complete(streamed: bool) -> Forecast:
        found = forecast(*how, streamed)
        return with_beginning(found, config, model, header) if here else found

    found = complete(streamed)
    print(found.text)
    if config.residency is Residency.auto and not (fault or obstacle(config, method, model)):
        other = Residency.whole if streamed else Residency.streamed
        print(f"instead, residency={other.value}:", rows(complete(not streamed).rows, machine), sep="\n")
    print(f"the run itself: {state_of(config, run_dir)}")
    if here:
        if lacking := shortage(found.disk, config.cache, run_dir):
            print(lacking)
        print(in_the_cache(config, method, model, planned.layers))
    return found


def with_beginning(found: Forecast, config: Config, model: PreTrainedModel, header: float) -> Forecast:
    """With the rows that come first on this machine; reading the model's config took `header` seconds."""
    files = weight_files(config, model.dtype)
    first = beginning(files or [], header if files is None else None, stored_bytes(model))
    once = {"start": "one process"} | ({"load": config.model.path} if files is None and config.cache else {})
    converted = stored_bytes(model) if "load" in once else 0.0
    first = [replace(row, bytes=row.bytes + found.beside) for row in first]
    after = [replace(row, disk=row.disk + converted) for row in found.rows]
    return replace(found, rows=[*first, *after], shared={**found.shared, **once})


def format_on(asked: str, config: Config) -> tuple[torch.device, torch.dtype]:
    """Where the model would run, and its number format there; a device that is not here is taken to have bfloat16."""
    if asked == THIS:
        device = resolve_device(config.device)
        return device, resolve_dtype(config.precision, device)
    precision = Precision.bfloat16 if config.precision is Precision.auto else config.precision
    return torch.device("cpu"), resolve_dtype(precision, torch.device("cpu"))


def in_the_cache(config: Config, method: Method, model: Any, layers: Any) -> str:
    """Which stages an earlier run left, in one line."""
    tokenizer = partial(tokenizer_of, config.model, config.cache)
    return cached_stages(config, method, model, layers, lambda: calibration_windows(config, tokenizer()))


def known_config(model: ModelConfig) -> Known:
    """The model's own configuration or, where neither folder nor hub can be had, the published one that ships with it.

    Raises:
        UserError: neither can be had.
    """
    fields = published_config(model.path)
    try:
        return Known(dense_config(model, here=fields is not None and not hub_answers()), "")
    except UserError:
        if fields is None:
            raise
        note = f"{model.path} cannot be had here; the estimate is of its published shape, which ships with svdexp"
        return Known(AutoConfig.for_model(**fields), note)


def window_counts(config: Config, offline: bool = False) -> tuple[list[int], list[str]]:
    """How many windows of each text will be evaluated, and a sentence on those whose number is a guess.

    Where all windows count and the text or, `offline`, the tokenizer cannot be had, it follows from the text's size.

    Raises:
        UserError: a text cannot be had, and its size is not known.
    """
    part, counts, guessed = config.eval, [], []
    for name in part.texts:
        count = part.windows_of(name)[0]
        if name == IMAGES and count is None:
            count = len(read_documents(name, Split.evaluation, reading=reading_of(name, part)))  # a window each
        if count is None and not offline:
            try:
                count = len(passage(name, part, tokenizer_of(config.model, config.cache)))
            except UserError as error:
                log.debug("%s", error)
        if count is None:
            characters = characters_of(name, part.files, reading_of(name, part))
            count = max(1, characters // CHARACTERS // (part.stride or part.seq_len))
            guessed.append(name)
        counts.append(count)
    note = f"windows of {', '.join(guessed)} are guessed from its size: at {CHARACTERS} characters a token"
    return counts, [note] if guessed else []
