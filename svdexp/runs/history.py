"""What a model learnt from that an earlier run compressed, as that run's record says: it must not be measured on it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from svdexp.data import Excerpt, resolve_bos
from svdexp.record import RESULTS, Record
from svdexp.record import results as keys
from svdexp.runtime.errors import UserError
from svdexp.runtime.model_names import CHECKPOINT
from svdexp.runtime.reading import read_object
from svdexp.schema import Bos, CalibrationConfig, Sampling

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learnt:
    """The texts of a compression, by the keys that named them; none of a model that is no run's.

    Attributes:
        excerpts: of those that can still be found here.
        bos: what their windows began with.
        sampling: how calibration windows were drawn, with `seed`.
    """

    excerpts: Mapping[str, Excerpt] = field(default_factory=dict)
    bos: Bos = Bos.none
    sampling: Sampling = Sampling.first
    seed: int = 0

    def windows(self, tokenizer: Any) -> dict[str, torch.Tensor]:
        """Their token ids (N, L), of those that lie on this disk; none without a tokenizer."""
        return {} if tokenizer is None else dict(self._read(tokenizer))

    def _read(self, tokenizer: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for knob, excerpt in self.excerpts.items():
            drawn = self.sampling is Sampling.random and knob == keys.CALIBRATION.name
            generator = torch.Generator().manual_seed(self.seed) if drawn else None
            try:
                if excerpt.read_from():
                    bos = resolve_bos(self.bos, tokenizer, f"{knob}.bos")
                    yield knob, excerpt.windows(tokenizer, bos, generator)
            except UserError as error:
                log.debug("%s", error)


def learnt_by(model: Path) -> Learnt:
    """What the run learnt from whose checkpoint lies in the folder `model`, or that saved it there from Python."""
    beside = [model / RESULTS, *([model.parent / RESULTS] if model.name == CHECKPOINT else [])]
    path = next((path for path in beside if path.is_file()), None)
    if path is None:
        return Learnt()
    try:
        return learnt_in(read_object(path))
    except (UserError, ValueError, TypeError) as error:
        log.warning("%s does not say what this model learnt from, so nobody knows whether it is measured on it", path)
        log.debug("%s", error)
        return Learnt()


def learnt_in(record: Record) -> Learnt:
    """The same of a record, as any version wrote it."""
    table = keys.CALIBRATION.get(record) or {}
    known = {key.name for key in fields(CalibrationConfig)}
    found = {}
    if table:
        part = CalibrationConfig(**{key: value for key, value in table.items() if key in known})
        found[keys.CALIBRATION.name] = Excerpt.of(part)
    for name, training in (keys.TRAINING.get(record) or {}).items():
        options = training["options"]
        if isinstance(options, Mapping) and options.get("text"):
            chosen = {key: options.get(key) for key in ("text", "files", "chat", "samples", "seq_len")}
            knob = f"method.training.{name}"
            found[knob] = Excerpt(**chosen, knob=knob)  # type: ignore[arg-type]
    return Learnt(
        {knob: excerpt for knob, excerpt in found.items() if is_there(excerpt)},
        Bos(keys.CALIBRATION_BOS.get(record) or Bos.none),
        Sampling(table.get("sampling", Sampling.first)),
        keys.SEED.get(record) or 0,
    )


def is_there(excerpt: Excerpt) -> bool:
    """Whether its text can be named here: its files may be gone, and documents given in Python were never kept."""
    with suppress(UserError):
        excerpt.check()
        return True
    return False
