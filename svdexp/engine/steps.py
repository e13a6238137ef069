"""The steps of one compression."""

from collections.abc import Mapping
from dataclasses import replace as replace_fields
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.allocation import Evidence, RankCurves
from svdexp.calibration import BlockwiseStatistics, DenseStatistics
from svdexp.checkpoints.elastic import components
from svdexp.data.reads import described
from svdexp.engine.result import Compression
from svdexp.engine.workbench import Workbench
from svdexp.factorisation import Decomposition, Weighting
from svdexp.method import Method
from svdexp.models.factors import Factors, factors_of, low_rank_layer
from svdexp.models.fingerprint import model_fingerprint
from svdexp.models.matrices import Matrix, Ranks, layers_of
from svdexp.runtime.clock import StageClock
from svdexp.runtime.errors import UserError
from svdexp.runtime.processes import Processes
from svdexp.runtime.progress import progress
from svdexp.runtime.shelves import Cache, fingerprint
from svdexp.storage import largest_rank, stored_bits
from svdexp.training import Student, Trained, teach
from svdexp.update import place_all


class Job:
    """One call of `compress`: the model, what is to be done to it, and the steps in order."""

    def __init__(
        self,
        model: PreTrainedModel,
        windows: torch.Tensor,
        method: Method,
        layers: list[Matrix],
        cache: Cache,
        clock: StageClock,
        seed: int,
        texts: Mapping[str, torch.Tensor],
        elastic: bool,
    ):
        self.model, self.windows, self.method, self.layers = model, windows, method, layers
        self.cache, self.clock, self.seed, self.texts, self.elastic = cache, clock, seed, texts, elastic
        self.processes = Processes()
        if self.processes.count > 1 and cache.folder is None:
            raise UserError("cache=null keeps finished stages in memory, but processes share files; set cache=FOLDER")
        if self.processes.count > 1 and not cache.may_write():
            raise UserError(
                f"cache={cache.folder} cannot be written, but processes share files there; set cache=FOLDER"
            )
        self.matrices = {matrix.name: matrix for matrix in layers}
        self.groups = list(dict.fromkeys(matrix.group for matrix in layers))
        self.replaced: dict[Matrix, nn.Module] = {}  # dense layers, while their factors are trained
        self.components: dict[str, dict[str, torch.Tensor]] = {}
        self.curves: RankCurves | None = None
        # what every result of this job depends on; taken now, while the model is dense
        self.source = {
            "model": model_fingerprint(model),
            "windows": fingerprint({"": windows}),
            "layers": list(self.matrices),
        }

    def from_dense_model(self, weighting: Weighting) -> Workbench:
        """Decompositions under the dense model's statistics, shared between ratios and allocations."""
        method = self.method
        shelves = {need: self.cache.shelf("statistics", statistic=need, **self.source) for need in weighting.needs}
        statistics = DenseStatistics(self.model, self.layers, self.windows, shelves)
        shelf = self.cache.shelf("decompositions", **method.decomposition, **self.source)
        how = weighting, method.numerics, method.storage
        parts = Workbench(self.model, self.layers, statistics, *how, shelf, self.clock)
        if self.processes.count > 1:
            self._share_out(statistics, parts)
        return parts

    def _share_out(self, statistics: DenseStatistics, parts: Workbench) -> None:
        """Windows and decompositions that no run left on the shelves, each done by one of the processes."""
        missing = self.processes.agree([group for group in self.groups if group not in parts.shelf])
        if missing:
            with self.clock("calibration"):
                statistics.prepare(self.processes)
            for group in progress(self.processes.share(missing), "decomposition"):
                parts.decompositions(group)
            self.processes.wait()

    def from_compressed_path(self, weighting: Weighting, ranks: Ranks) -> Workbench:
        """Decompositions under inputs that the compressed blocks produce; the groups must be asked for in order."""
        method = self.method
        statistics = BlockwiseStatistics(self.model, self.layers, self.windows, weighting.needs)
        shelf = self.cache.shelf("blockwise", method=method.described(), ranks=ranks, **self.source)
        how = weighting, method.numerics, method.storage
        return Workbench(self.model, self.layers, statistics, *how, shelf, self.clock, ranks)

    def spectra(self, parts: Workbench) -> dict[str, torch.Tensor]:
        """Singular values of every layer's L W R; leaves all decompositions on the shelf."""
        found: dict[str, torch.Tensor] = {}
        for group in progress(self.groups, "decomposition"):
            found |= {name: part.spectrum for name, part in parts.decompositions(group).items()}
        return found

    def evidence(self, spectra: dict[str, torch.Tensor], parts: Workbench | None) -> Evidence:
        """What the allocation may look at."""
        method = self.method
        made_with = {
            "weighting": described(method.weighting),
            "numerics": method.numerics,
            "storage": described(method.storage),
        }
        shelf = partial(self.cache.shelf, source=self.source)
        truncated = partial(self.truncated, parts)
        keep = self.keep_curves
        return Evidence(self.model, self.windows, spectra, truncated, made_with, shelf, self.seed, keep)

    def keep_curves(self, curves: RankCurves) -> None:
        """Called by an allocation that trains ranks."""
        self.curves = curves

    def truncated(self, parts: Workbench | None, name: str, rank: int) -> nn.Module:
        """One layer at a rank, for allocations that try it out; the model is not touched."""
        assert parts is not None, "an allocation that builds layers must set needs_spectra"
        matrix = self.matrices[name]
        part = parts.decompositions(matrix.group)[name]
        return self._layer(self._factors(part, rank), matrix.bias(self.model), matrix.weight(self.model))

    def truncate(self, parts: Workbench | None, ranks: Ranks) -> Compression:
        """Replace every layer that has a rank, block by block, repairing each block as the method says."""
        dense_bits = sum(self._stored_bits().values())
        update = self.method.update
        stage = "update" if update else "storage"
        with self.clock(stage):
            repair = update.start(self.model, self.layers, self.windows, ranks) if update else place_all
        done: dict[str, Decomposition] = {}
        for group in progress(self.groups, "truncation"):
            found = parts.decompositions(group) if parts else {}
            members = [x for x in self.layers if x.group == group and ranks[x.name] is not None]
            dense = layers_of(self.model, members)
            factors = {x.name: self._factors(found[x.name], ranks[x.name]) for x in members if x.name in found}
            if self.elastic:
                self.components |= {name: self._components(name, part, ranks[name]) for name, part in found.items()}

            def place(name: str, pair: Factors, dense: Mapping[str, nn.Module] = dense) -> None:
                with self.clock("storage"):
                    matrix = self.matrices[name]
                    matrix.put(self.model, self._first_layer(matrix, dense[name], pair))

            with self.clock(stage):
                targets = {x.name: self.method.storage.target(x.weight(self.model))[0] for x in members}
                repair(group, targets, factors, place)
            done |= {name: part.keep(0) for name, part in found.items()}
        training = self._train(ranks) if self.method.training else {}
        with self.clock("storage"):
            self._finish(ranks)
        return Compression(
            layers=self.layers,
            ranks=ranks,
            errors={name: part.error(ranks[name]) for name, part in done.items()},
            damping={name: float(part.damping.max()) for name, part in done.items()},
            spectra={name: part.spectrum for name, part in done.items()},
            dense_bits=dense_bits,
            layer_bits=self._stored_bits(),
            curves=self.curves,
            training=training,
        )

    def _train(self, ranks: Ranks) -> dict[str, Trained]:
        """Gradient descent on the factors as they are placed, which are then put into the method's storage."""
        student = Student(self.model, self.replaced)
        about = {"method": replace_fields(self.method, training={}).described(), "ranks": ranks, "seed": self.seed}
        shelf = partial(self.cache.shelf, "training", **about, source=self.source)
        with self.clock("training"):
            trained = teach(student, self.method.training, self.windows, self.texts, shelf, self.seed)
        with self.clock("storage"):
            for name, layer in student.layers.items():
                matrix = self.matrices[name]
                W = matrix.family.weight(self.replaced[matrix])
                matrix.put(self.model, self._stored(factors_of(layer), layer.rank_out.bias, W))
        return trained

    def _finish(self, ranks: Ranks) -> None:
        """What storage does when all factors stand: matrices without, and what waits for the finished model."""
        storage = self.method.storage
        for matrix in (matrix for matrix in self.layers if ranks[matrix.name] is None):
            whole = storage.whole(matrix.weight(self.model), matrix.bias(self.model))
            if whole is not None:
                matrix.put(self.model, whole)
        storage.finish(self.model, self.layers, self.windows)

    def _first_layer(self, matrix: Matrix, dense: nn.Module, factors: Factors) -> nn.Module:
        """What takes a dense layer's place: the layer that is stored, or plain factors that can be trained."""
        W, bias = matrix.family.weight(dense), matrix.family.bias(dense)
        if not self.method.training:
            return self._stored(factors, bias, W)
        self.replaced[matrix] = dense
        return low_rank_layer(factors, bias, W.float())

    def _factors(self, part: Decomposition, rank: int | None) -> Factors:
        assert rank is not None
        return part.truncate(rank, self.method.sigma_fuse)

    def _components(self, name: str, part: Decomposition, rank: int | None) -> dict[str, torch.Tensor]:
        W = self.matrices[name].weight(self.model)
        return components(self._factors(part, largest_rank(*W.shape)), part.spectrum, W, rank)

    def _stored(self, factors: Factors, bias: torch.Tensor | None, W: torch.Tensor) -> nn.Module:
        """The layer that is stored in place of W (m, n), or plain factors while storage waits for the model."""
        return low_rank_layer(factors, bias, W) if self.method.storage.waits else self._layer(factors, bias, W)

    def _layer(self, factors: Factors, bias: torch.Tensor | None, W: torch.Tensor) -> nn.Module:
        """The storage's layer in place of the dense W (m, n)."""
        return self.method.storage.layer(factors, bias, W, self.method.storage.target(W)[1])

    def _stored_bits(self) -> dict[str, int]:
        return {name: stored_bits(layer) for name, layer in layers_of(self.model, self.layers).items()}
