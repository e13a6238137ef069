"""Stand-ins: a storage whose price is concave in the rank, a model of blocks that do next to nothing."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

from svdexp.models.factors import Factors
from svdexp.storage import Kept, Storage


@dataclass(frozen=True)
class PivotStorage(Storage):
    """r (m + n − r) numbers."""

    kind: ClassVar[str] = "pivot"

    def bits(self, rank: int, m: int, n: int) -> int:
        return rank * (m + n - rank) * 16

    def layer(
        self, factors: Factors, bias: torch.Tensor | None, like: torch.Tensor, kept: Kept | None = None
    ) -> nn.Module:
        raise NotImplementedError


class FakeModel(nn.Module):
    """An embedding and `blocks` random linear blocks of width 4, named blocks.0, blocks.1, …"""

    def __init__(self, blocks: int):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(16, 4)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(blocks))
        self.device = torch.device("cpu")
        self.base_model_prefix = ""

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, tokens: torch.Tensor, use_cache: bool = False) -> Any:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = x + block(x)
        return SimpleNamespace(logits=x)
