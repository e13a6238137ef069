"""One call of `compress`: what is to be done to which model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.engine.identity import source_of
from svdexp.method import Method
from svdexp.models.fingerprint import model_fingerprint
from svdexp.models.matrices import Matrix
from svdexp.models.residency import twin
from svdexp.runtime.clock import StageClock
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes
from svdexp.runtime.shelves import Cache, Shelf, identity
from svdexp.storage import Storage


@dataclass(frozen=True)
class Job:
    """One call of `compress`: the model, and what is to be done to it.

    Attributes:
        source: what every result depends on, taken while the model is dense.
        teacher: the dense model, where trainings need it and `model` is streamed.
        storages: of each layer, where the allocation chose that; the method's says which there are.
        measurements: shelves of what allocations measure, by their identities: a search asks one allocation again and
            again, also where the cache keeps nothing.
    """

    model: PreTrainedModel
    windows: torch.Tensor
    method: Method
    layers: Sequence[Matrix]
    cache: Cache
    clock: StageClock
    seed: int
    texts: Mapping[str, torch.Tensor]
    elastic: bool
    source: Mapping[str, Any]
    teacher: PreTrainedModel | None
    storages: Mapping[str, Storage] = field(default_factory=dict)
    measurements: dict[str, Shelf] = field(default_factory=dict)

    def storage(self, name: str) -> Storage:
        """What keeps the layer called `name`."""
        return self.storages.get(name, self.method.storage)

    def measured(self, stage: str, **options: Any) -> Shelf:
        """The shelf of what an allocation measures."""
        key = identity(stage=stage, **options)
        if key not in self.measurements:
            self.measurements[key] = self.cache.shelf(stage, **options, source=self.source)
        return self.measurements[key]

    def choosing(self, forms: Mapping[str, str]) -> "Job":
        """The job once layers have `forms`, by their words."""
        menu = self.method.storage.menu
        return replace_fields(self, storages={name: menu[word].storage for name, word in forms.items()})

    @property
    def groups(self) -> list[str]:
        """The groups of the layers, in the model's order."""
        return list(dict.fromkeys(layer.group for layer in self.layers))

    def of(self, group: str) -> list[Matrix]:
        """The layers of a group."""
        return [layer for layer in self.layers if layer.group == group]


def begin(
    model: PreTrainedModel,
    windows: torch.Tensor,
    method: Method,
    layers: Sequence[Matrix],
    cache: Cache,
    clock: StageClock,
    seed: int,
    texts: Mapping[str, torch.Tensor],
    elastic: bool,
    weights: str | None,
) -> Job:
    """The job, while the model is dense; `weights` is its fingerprint, if that is known.

    Raises:
        UserError: several processes have no cache that they can share.
    """
    if Processes().count > 1 and cache.folder is None:
        raise UserError("cache=null keeps finished stages in memory, but processes share files; set cache=FOLDER")
    if Processes().count > 1 and not cache.may_write():
        raise UserError(f"cache={cache.folder} cannot be written, but processes share files there; set cache=FOLDER")
    source = source_of(weights or model_fingerprint(model), windows, layers)
    teacher = twin(model) if method.training else None
    return Job(model, windows, method, layers, cache, clock, seed, texts, elastic, source, teacher)
