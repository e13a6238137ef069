"""Elastic checkpoints: a folder that holds one compressed model and, in `elastic/`, what it takes to make it smaller.

Per targeted layer, W of shape (m, n), `elastic/NAME.safetensors` holds

    spectrum  (min(m, n),) float64, the singular values of L W R
    A, B      (m, t − r) and (t − r, n): the ordered components from the rank r that the model holds (0 where it
              is dense there) up to the largest rank t that is smaller than the dense matrix
    W         (m, n), where the model holds a rank: an allocation may leave a layer dense at a ratio below the
              one at which it gave it a rank, when rounding leaves it the bits

in the model's number format. `elastic` in config.json's svdexp table is a `Recipe`. With both, the allocation runs
again at any lower ratio, and the ranks that it chooses are slices of what is there.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from svdexp.allocation import REPEATABLE, Allocation, Budget, Evidence, Repeatable, scaled
from svdexp.models.factors import Factors, low_rank_layer
from svdexp.models.matrices import Matrix, Ranks, matrices_in
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.runtime.errors import UserError, require, require_positive, require_ratio
from svdexp.runtime.shelves import Shelf
from svdexp.runtime.typed import fill
from svdexp.storage import FactorStorage, largest_rank

FOLDER = "elastic"


@dataclass(frozen=True)
class Recipe:
    """What an allocation was given, except the spectra; written to and read from config.json as it is.

    Attributes:
        allocation: its key in svdexp.allocation.REPEATABLE, the closed list that a checkpoint may name.
        options: its fields.
        ratio: the kept fraction of the targeted layers' bits, in (0, 1].
        tokens: how many tokens calibrated.
        layers: the names of all targeted layers, in the order of the model's modules.
        scales: by layer, what its predicted losses were multiplied by; empty where nothing was measured.
    """

    allocation: str
    options: dict[str, Any]
    ratio: float
    tokens: int
    layers: list[str]
    scales: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.allocation in REPEATABLE, f"there is no allocation {self.allocation!r} to repeat")
        require_ratio(self.ratio)
        require_positive("tokens", self.tokens)
        require(bool(self.layers), "it names no layers")
        sound = all(name in self.layers and 0 < scale < math.inf for name, scale in self.scales.items())
        require(sound, "a scale is no positive number, or of no layer")

    @classmethod
    def of(cls, allocation: Allocation, budget: Budget, evidence: Evidence) -> "Recipe":
        """The recipe of a run with `allocation`, one of REPEATABLE."""
        options: Any = allocation
        kept = list(budget.shapes), dict(evidence.scales)
        return cls(type(allocation).__name__, asdict(options), budget.ratio, evidence.tokens, *kept)

    def part(self) -> Repeatable:
        """The allocation.

        Raises:
            UserError: it has no such options.
        """
        part: Repeatable = fill(REPEATABLE[self.allocation], self.options, "options")
        return part

    def ranks(self, ratio: float, shapes: Mapping[str, tuple[int, int]], spectra: Mapping[str, torch.Tensor]) -> Ranks:
        """The ranks of a run at `ratio`.

        Raises:
            UserError: the ratio is too small for the shapes.
        """
        budget = Budget(ratio, {name: shapes[name] for name in self.layers}, FactorStorage())
        return self.part()(budget, Remembered(scaled(spectra, self.scales), self.tokens))


@dataclass(frozen=True)
class Remembered:
    """The evidence that a checkpoint keeps: svdexp.allocation.SpectralEvidence."""

    spectra: Mapping[str, torch.Tensor]
    tokens: int


@dataclass(frozen=True)
class Elastic:
    """What a run leaves for its checkpoint: the recipe, and per layer the tensors of the module's docstring."""

    recipe: Recipe
    components: Mapping[str, dict[str, torch.Tensor]]

    def save(self, folder: Path) -> None:
        """Write the components into the checkpoint `folder`."""
        shelf = Shelf(folder / FOLDER)
        for name, tensors in self.components.items():
            shelf.put(name, tensors)


def components(factors: Factors, spectrum: torch.Tensor, W: torch.Tensor, rank: int | None) -> dict[str, torch.Tensor]:
    """What to keep of a layer that the model holds at `rank`, in the CPU's memory.

    Args:
        factors: its optimum at `largest_rank`, of which the model holds the first `rank` components.
        spectrum: singular values of L W R, (min(m, n),).
        W: the dense weight, (m, n).
        rank: None where the model holds W.
    """
    held = rank or 0
    kept = {"A": factors.A[:, held:].to("cpu", W.dtype), "B": factors.B[held:].to("cpu", W.dtype)}
    return {"spectrum": spectrum.cpu()} | kept | ({"W": W.cpu()} if rank else {})


def read_recipe(folder: Path, table: Mapping[str, Any], ratio: float) -> Recipe:
    """The recipe in a checkpoint's svdexp table.

    Raises:
        UserError: there is none, it is not understood, or it gives no model of `ratio`.
    """
    require_ratio(ratio)
    if "elastic" not in table:
        raise UserError(
            f"checkpoint {folder} can only be loaded as it was saved: ratio= needs one that was saved with save=elastic"
        )
    try:
        # OmegaConf would look up ${…} in the reader's environment.
        require("${" not in json.dumps(table["elastic"]), "an option is an interpolation")
        recipe: Recipe = fill(Recipe, table["elastic"], "elastic")
        recipe.part()
    except UserError as error:
        raise UserError(f"checkpoint {folder}: config.json is damaged: {error}") from error
    if ratio > recipe.ratio:
        raise UserError(f"ratio={ratio:g} is above {recipe.ratio:g}, at which checkpoint {folder} was saved")
    return recipe


def resize(model: PreTrainedModel, skeleton: PreTrainedModel, folder: Path, recipe: Recipe, ratio: float) -> Ranks:
    """Make the model that checkpoint `folder` holds, on the CPU, the one that a run at `ratio` gives; in place.

    `skeleton` is the dense model without its weights; it lends those that become dense again their layers.

    Raises:
        UserError: a file in `elastic/` is missing or damaged, or the ratio is too small for the shapes.
    """
    matrices = {matrix.name: matrix for matrix in matrices_in(skeleton)}
    shapes, spectra = {}, {}
    for name in recipe.layers:
        require(name in matrices, f"checkpoint {folder}: config.json is damaged: the model has no layer {name}")
        matrix = matrices[name]
        held = _held(folder, matrix, model)
        shapes[name] = matrix.m, matrix.n
        spectra[name] = _spectrum(folder, name, shapes[name], held)
    ranks = recipe.ranks(ratio, shapes, spectra)
    for name, rank in ranks.items():
        matrix = matrices[name]
        layer = matrix.layer(model)
        if rank is not None:
            matrix.put(model, _at_rank(layer, rank, folder, name))
        elif isinstance(layer, LowRankLinear):
            matrix.put(model, matrix.filled(skeleton, _dense_weight(layer, folder, name), layer.bias))
    return ranks


def _held(folder: Path, matrix: Matrix, model: PreTrainedModel) -> int:
    """The rank that the model holds; 0 where it is dense.

    Raises:
        UserError: it is neither factors nor dense.
    """
    rank = _rank(matrix.layer(model))
    can = rank > 0 or matrix.is_dense(model)
    require(can, f"checkpoint {folder}: {matrix.name} is not a layer that can have another rank")
    return rank


def _rank(layer: nn.Module) -> int:
    return layer.rank_in.out_features if isinstance(layer, LowRankLinear) else 0


@contextmanager
def _tensors(folder: Path, name: str) -> Iterator[Any]:
    """The file of one layer, open; nothing of it is in memory until it is sliced.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / FOLDER / f"{name}.safetensors"
    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {folder}: {FOLDER}/{path.name} is missing or damaged: {error}") from error


def _spectrum(folder: Path, name: str, shape: tuple[int, int], held: int) -> torch.Tensor:
    """The layer's spectrum; checks it, and that its other tensors have the shapes that belong to it.

    Raises:
        UserError: they have not, or the file is missing or damaged.
    """
    (m, n), beyond = shape, largest_rank(*shape) - held
    expected = {"spectrum": [min(m, n)], "A": [m, beyond], "B": [beyond, n]} | ({"W": [m, n]} if held else {})
    with _tensors(folder, name) as file:
        found = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        if found != expected:
            raise UserError(f"checkpoint {folder}: {FOLDER}/{name} holds tensors of shapes {found}, not {expected}")
        spectrum: torch.Tensor = file.get_tensor("spectrum")
    # NaN fails the comparisons as well.
    if not (bool((spectrum.diff() <= 0).all()) and float(spectrum[-1]) >= 0 and float(spectrum[0]) < torch.inf):
        raise UserError(f"checkpoint {folder}: the spectrum of {name} is not a descending row of finite numbers")
    return spectrum


def _at_rank(module: Any, rank: int, folder: Path, name: str) -> nn.Module:
    """The layer with the first `rank` components: those of the model, then those of the file."""
    held = _rank(module)
    if rank == held:
        return module  # type: ignore[no-any-return]
    further = max(0, rank - held)
    with _tensors(folder, name) as file:
        A, B = file.get_slice("A")[:, :further], file.get_slice("B")[:further]
    if not held:
        return low_rank_layer(Factors(A, B), module.bias, module.weight)
    like = module.rank_in.weight
    # cat copies, so what is no longer needed does not stay in memory behind a view.
    A = torch.cat([module.rank_out.weight.detach()[:, :rank], A.to(like.dtype)], dim=1)
    B = torch.cat([like.detach()[:rank], B.to(like.dtype)])
    return low_rank_layer(Factors(A, B), module.bias, like)


def _dense_weight(layer: LowRankLinear, folder: Path, name: str) -> torch.Tensor:
    """W (m, n) of the file, in the number format of the `layer` that held factors."""
    with _tensors(folder, name) as file:
        W: torch.Tensor = file.get_tensor("W").to(layer.rank_in.weight.dtype)
    return W
