"""Plain factors."""

from typing import Any, ClassVar

import torch

from .svdexp_base import Pair, dense
from .svdexp_products import pair


class LowRankLinear(Pair):
    """y = A (B x) + b.

    Two nn.Linear children, so peft, GPTQ tools and serving engines see ordinary linear layers. Their names
    end like no projection of a known architecture, because such tools match modules by suffix.
    """

    kind: ClassVar[str] = "factors"
    form: ClassVar[str | None] = "pair"
    sides: ClassVar[tuple[str, str] | None] = ("rank_out", "rank_in")

    def __init__(self, n: int, rank: int, m: int, bias: bool, **kwargs: Any):
        super().__init__()
        self.rank_in = dense(n, rank, False, **kwargs)
        self.rank_out = dense(rank, m, bias, **kwargs)

    @property
    def weight(self) -> torch.Tensor | None:
        """A B, (m, n); None where another library has put layers without weights in the children's places."""
        A, B = (getattr(side, "weight", None) for side in (self.rank_out, self.rank_in))
        return None if A is None or B is None else A @ B

    @property
    def bias(self) -> torch.Tensor | None:
        """That of the output side."""
        return self.rank_out.bias

    @property
    def pair_shape(self) -> tuple[int, int]:
        """(r, m)."""
        return self.rank_in.out_features, self.rank_out.out_features

    def latent(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, r)."""
        h: torch.Tensor = self.rank_in(x)
        return h

    def rebuilt(self, latent: torch.Tensor) -> torch.Tensor:
        """(…, r) → (…, m)."""
        y: torch.Tensor = self.rank_out(latent)
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, n) → (…, m)."""
        return pair(self._modules["rank_in"], self._modules["rank_out"], x)
