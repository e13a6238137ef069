"""The compressed model while it is trained, beside what it was."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.models.matrices import Matrix, layers_of
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.training.stored import Learner


class Student:
    """A model whose compressed layers are plain factors or learners, and the dense layers that they replaced.

    Attributes:
        model: the compressed model. What is trained is float32; where the model is not, `precision` autocasts.
        dense: the dense layers.
        teacher: the dense model, where it is another one than `model` with its dense layers put back.
    """

    def __init__(
        self, model: PreTrainedModel, dense: Mapping[Matrix, nn.Module], teacher: PreTrainedModel | None = None
    ):
        self.model, self.dense, self.teacher = model, dense, teacher
        self._before: dict[nn.Parameter, torch.Tensor] = {}

    @property
    def layers(self) -> dict[str, LowRankLinear]:
        """The layers of plain factors, by name."""
        found = layers_of(self.model, self.dense)
        return {name: layer for name, layer in found.items() if isinstance(layer, LowRankLinear)}

    @property
    def learners(self) -> dict[str, Learner]:
        """Those of stored layers, by name."""
        found = layers_of(self.model, self.dense)
        return {name: layer for name, layer in found.items() if isinstance(layer, Learner)}

    def learnt(self) -> list[nn.Parameter]:
        """What all layers have to learn: A and B, or what learners say."""
        named = (item for layer in self.layers.values() for item in layer.named_parameters())
        factors = [parameter for key, parameter in named if key.endswith(".weight")]
        return factors + [parameter for layer in self.learners.values() for parameter in layer.learnt()]

    def own(self) -> set[nn.Parameter]:
        """The parameters of all these layers, which the dense model has not."""
        layers = [*self.layers.values(), *self.learners.values()]
        return {parameter for layer in layers for parameter in layer.parameters()}

    def remember(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keep the values of parameters that the dense model has too, before they are trained."""
        if self.teacher:
            return
        ours = self.own()
        for parameter in parameters:
            if parameter not in ours:
                self._before.setdefault(parameter, parameter.detach().clone())

    @contextmanager
    def as_teacher(self) -> Iterator[PreTrainedModel]:
        """Within this context the model is the dense one, without a second copy of what both share."""
        if self.teacher:
            with torch.no_grad():
                yield self.teacher
            return
        compressed = {matrix: matrix.layer(self.model) for matrix in self.dense}
        trained = {parameter: parameter.detach().clone() for parameter in self._before}
        self._exchange(self.dense, self._before)
        try:
            with torch.no_grad():
                yield self.model
        finally:
            self._exchange(compressed, trained)

    def precision(self) -> torch.autocast:
        """The format that the model computes in."""
        dtype = self.model.dtype
        return torch.autocast(self.model.device.type, dtype, enabled=dtype != torch.float32)

    def _exchange(self, layers: Mapping[Matrix, nn.Module], values: Mapping[nn.Parameter, torch.Tensor]) -> None:
        for matrix, layer in layers.items():
            matrix.put(self.model, layer)
        for parameter, value in values.items():
            parameter.data.copy_(value)
