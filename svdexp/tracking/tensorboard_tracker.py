"""tracker=tensorboard: the run's folder gets tensorboard/, which `tensorboard --logdir SWEEP` shows beside the others.

Needs the extra `tensorboard`; the writer is torch's.
"""

import io
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from svdexp.record import Key, Results, place
from svdexp.record.results import METHOD, MODEL, PARTS, RATIO, SEED, TRAINING
from svdexp.runtime.errors import require
from svdexp.schema import Config
from svdexp.tracking.depth import over_depth
from svdexp.tracking.findings import Findings
from svdexp.tracking.pictures import rank_picture

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
CHOSEN: tuple[Key[Any], ...] = (MODEL, METHOD, RATIO, SEED, *PARTS)  # what cells of a sweep may differ in


@dataclass(frozen=True)
class TensorBoardTracker:
    """Scalars while the run goes; at its end figures, curves, lines over depth, the rank map, and a row of HPARAMS."""

    def __post_init__(self) -> None:
        require(
            find_spec("tensorboard") is not None,
            "tracker=tensorboard needs the package tensorboard: pip install 'svdexp[tensorboard]'",
        )

    def start(self, config: Config, run_dir: Path, cell: str) -> "TensorBoardSession":
        """A new file of events; those of an earlier start of this run stay."""
        from torch.utils.tensorboard import SummaryWriter

        return TensorBoardSession(SummaryWriter(str(run_dir / FOLDER)))


class TensorBoardSession:
    """An open file of events."""

    url = None

    def __init__(self, writer: "SummaryWriter") -> None:
        self.writer, self.step = writer, 0

    def stages(self, figures: Results) -> None:
        """A step of their curves."""
        for key, value in figures.items():
            self.writer.add_scalar(key, value, self.step)
        self.step += 1
        self.writer.flush()

    def log(self, findings: Findings) -> None:
        """Curves and pictures, then the figures with the choices that they are of."""
        for tag, line in curves(findings).items():
            for step, value in line:
                self.writer.add_scalar(tag, value, step)
        if picture := rank_picture(findings):
            pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
            self.writer.add_image("rank_map", pixels, dataformats="HWC")
        figures = findings.figures
        chosen = {key.name: figures[key.name] for key in CHOSEN if key.name in figures}
        measured = {key: value for key, value in figures.items() if is_measured(key) and math.isfinite(float(value))}
        self.writer.flush()
        # in a file of its own, which must be the last: readers do not go back to one before it
        self.writer.add_hparams(chosen, measured, run_name=".", global_step=self.step)

    def finish(self, succeeded: bool) -> None:
        """Close the file."""
        self.writer.close()


def is_measured(key: str) -> bool:
    """Whether more or less of it is better."""
    found = place(key)
    return found is not None and found.entry.better is not None


def curves(findings: Findings) -> dict[str, list[tuple[int, float]]]:
    """Lines by their tags: over the steps of trainings, or over the blocks."""
    found = {f"learned_ranks/{key}": list(enumerate(values)) for key, values in findings.learned.items()}
    for name, part in TRAINING.of(findings.results).items():
        for step, loss, score in part["curve"]:
            for tag, value in (("loss", loss), ("held_out", score)):
                if value is not None:
                    found.setdefault(f"training/{name}/{tag}", []).append((int(step or 0), value))
    for key in ("rank", "energy_lost"):
        found |= {f"depth/{key}/{name}": line for name, line in over_depth(findings.layers, key).items()}
    return found
