"""Figures that papers print, from published.yaml beside this file, to be put beside what was measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from svdexp.runtime.errors import UserError

PATH = Path(__file__).with_name("published.yaml")
METRICS = ("ppl", "acc")
CALIBRATION = ("text", "samples", "seq_len")
EVALUATED = "evaluated"  # as the text that calibrates: the one that the figure is of
WORDS = ("model", "method", "storage", "source", "protocol")


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes:
        model, method, storage: as in conf/, where this project has them.
        ratio: kept fraction, in (0, 1].
        metric: `ppl`, or `acc` for a mean accuracy in (0, 1].
        text: a text of svdexp.data, or how many tasks an accuracy is the mean of.
        value: the figure.
        source: paper and table.
        protocol: what is known of how it was measured, in words.
        calibration: the text, samples and seq_len that calibrated, as far as they are known.
        evaluation: the choice of conf/eval/ that measures so; None where that is not known.
        footnotes: keys of the footnotes that a comparison must mind.
    """

    model: str
    method: str
    storage: str
    ratio: float
    metric: str
    text: str
    value: float
    source: str
    protocol: str
    calibration: Mapping[str, Any]
    evaluation: str | None
    footnotes: tuple[str, ...]

    def __post_init__(self) -> None:
        where = f"{self.model} {self.method} {self.metric}/{self.text}"
        for name in WORDS:
            if not getattr(self, name):
                raise UserError(f"published figures: {where} has no {name}")
        if unknown := self.calibration.keys() - set(CALIBRATION):
            raise UserError(f"published figures: {where}: calibration has unknown keys {sorted(unknown)}")
        if not 0 < self.ratio <= 1:
            raise UserError(f"published figures: {where}: the ratio is a kept fraction, not {self.ratio:g}")
        if not self.value > 0 or (self.metric == "acc" and self.value > 1):
            raise UserError(f"published figures: {where} at {self.ratio:g} is {self.value:g}")


@dataclass(frozen=True)
class Published:
    """All figures, and the footnotes that they refer to."""

    figures: tuple[Figure, ...]
    footnotes: Mapping[str, str]

    def of(self, model: str, method: str, storage: str, ratio: float, metric: str, text: str) -> list[Figure]:
        """The figures of one cell; several papers may print it, with different values."""
        wanted = (model, method, storage, metric, text)
        return [
            figure
            for figure in self.figures
            if (figure.model, figure.method, figure.storage, figure.metric, figure.text) == wanted
            and abs(figure.ratio - ratio) < 1e-9
        ]


@cache
def published(path: Path = PATH) -> Published:
    """Read and check the file, once.

    Raises:
        UserError: a figure out of range or without source, a footnote that is missing or never referred to, or a cell
            that one source gives twice.
    """
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    figures = tuple(figure for table in content["figures"] for figure in _figures(table))
    footnotes: dict[str, str] = content["footnotes"]
    used = {key for figure in figures for key in figure.footnotes}
    if used != footnotes.keys():
        raise UserError(f"published figures: footnotes without text or reference: {sorted(used ^ footnotes.keys())}")
    cells = set()
    for figure in figures:
        cell = (figure.model, figure.method, figure.storage, figure.ratio, figure.metric, figure.text, figure.source)
        if cell in cells:
            raise UserError(f"published figures: twice {', '.join(map(str, cell))}")
        cells.add(cell)
    return Published(figures, footnotes)


def _figures(table: Mapping[str, Any]) -> list[Figure]:
    """The figures of one entry of the file, which gives them by metric, text and ratio."""
    unknown = table.keys() - {
        "model",
        "method",
        "storage",
        "source",
        "protocol",
        "calibration",
        "evaluation",
        "footnotes",
        "footnotes_by_text",
        *METRICS,
    }
    if unknown:
        raise UserError(f"published figures: {table.get('method')} has unknown keys {sorted(unknown)}")
    said = {name: str(table.get(name) or "") for name in WORDS}
    return [
        Figure(
            **said,
            ratio=float(ratio),
            metric=metric,
            text=text,
            value=float(value),
            calibration=table.get("calibration") or {},
            evaluation=table.get("evaluation"),
            footnotes=(*table.get("footnotes", ()), *table.get("footnotes_by_text", {}).get(text, ())),
        )
        for metric in METRICS
        for text, values in table.get(metric, {}).items()
        for ratio, value in values.items()
    ]
