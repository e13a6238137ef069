"""What a tracker is told of a finished run, kept beside its record until the tracker has been told."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from svdexp.cells import UNTRACKED
from svdexp.engine.result import Compression
from svdexp.record import RESULTS, Results
from svdexp.runtime.disk import write_atomically
from svdexp.runtime.errors import UserError
from svdexp.runtime.reading import read_json, read_object
from svdexp.tracking.depth import gamma_rows, learned_lines, spectrum_rows
from svdexp.tracking.layers import LayerRow, layer_rows

LAYERS = "layers.json"
REST = ("spectra", "learned", "gamma")  # what neither results.json nor layers.json has
Rows = list[list[str | int | float]]


@dataclass(frozen=True)
class Findings:
    """Plain numbers and words, so that JSON holds them.

    Attributes:
        results: the record.
        layers: the rows of layers.json.
        spectra: of `depth.spectrum_rows`; empty without a weighting.
        learned: of `depth.learned_lines`: by name, a value at every step; empty where no ranks were learned.
        gamma: of `depth.gamma_rows`; empty likewise.
    """

    results: Results
    layers: list[LayerRow]
    spectra: Rows = field(default_factory=list)
    learned: dict[str, list[float]] = field(default_factory=dict)
    gamma: Rows = field(default_factory=list)

    @classmethod
    def of(cls, results: Results, compression: Compression) -> "Findings":
        """What there is to tell of a run."""
        rows, curves = layer_rows(compression), compression.curves
        return cls(
            results=results,
            layers=rows,
            spectra=spectrum_rows(compression.spectra),
            learned=learned_lines(curves, {row["name"]: row["projection"] for row in rows}) if curves else {},
            gamma=gamma_rows(curves) if curves else [],
        )

    @property
    def figures(self) -> dict[str, int | float | str]:
        """What of the record is one number or word, not a description."""
        return {key: value for key, value in self.results.items() if isinstance(value, int | float | str)}

    @classmethod
    def left_in(cls, run_dir: Path) -> "Findings":
        """What `leave` left.

        Raises:
            UserError: a file of the run cannot be read.
        """
        rest = read_object(run_dir / UNTRACKED)
        if rest.keys() != set(REST):
            raise UserError(f"{run_dir / UNTRACKED} is not what a run leaves")
        return cls(results=read_object(run_dir / RESULTS), layers=read_json(run_dir / LAYERS), **rest)

    def leave(self, run_dir: Path) -> None:
        """Keep what results.json and layers.json do not have."""
        rest = {key: getattr(self, key) for key in REST}
        write_atomically(run_dir / UNTRACKED, json.dumps(rest))
