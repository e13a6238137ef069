"""What a workbench holds while it decomposes a block."""

import weakref
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from svdexp.calibration import Statistics
from svdexp.engine.workbench import Workbench
from svdexp.factorisation import Metric
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.clock import StageClock
from svdexp.runtime.shelves import Shelf
from svdexp.schema import Numerics
from svdexp.storage import FactorStorage


def test_a_layers_statistics_are_let_go_once_it_is_decomposed(llama: PreTrainedModel) -> None:
    layers = [matrix for matrix in find_matrices(llama, Targets()) if matrix.group == "model.layers.0"]
    made: dict[str, weakref.ref[torch.Tensor]] = {}
    alive: list[int] = []

    class Source:
        def statistics(self, group: str) -> dict[str, Statistics]:
            moments = {layer.name: torch.eye(layer.n) for layer in layers if layer.group == group}
            made.update({name: weakref.ref(moment) for name, moment in moments.items()})
            return {name: {"gram": moment} for name, moment in moments.items()}

    class Looking:
        needs: ClassVar[tuple[str, ...]] = ("gram",)

        def __call__(self, statistics: Statistics) -> Metric:
            alive.append(sum(reference() is not None for reference in made.values()))
            return Metric()

    bench = Workbench(llama, layers, Source(), Looking(), Numerics.eigh, FactorStorage(), Shelf(), StageClock())
    bench.decompose("model.layers.0")
    assert alive == [7, 6, 5, 4, 3, 2, 1]
