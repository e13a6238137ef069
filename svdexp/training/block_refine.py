"""Block refinement: every compressed block towards the dense block's output, from the inputs that it will really get.

AA-SVD (arXiv 2604.02119): all parameters that are a block's own, mean squared error ‖block'(x̂) − block(x)‖², where x
comes through the dense blocks before it and x̂ through the compressed ones. Memory holds the states of all windows on
both paths; of a streamed model, one dense and one compressed block beside them.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from svdexp.descent.descent import Curve, Descent, Schedule, joined
from svdexp.models.path import BlockPath
from svdexp.models.residency import at_hand
from svdexp.models.work import Work, Workload
from svdexp.training.base import Lesson
from svdexp.training.cost import descent, stored_descent
from svdexp.training.student import Student


@dataclass(frozen=True)
class BlockRefine(Schedule):
    """Each block by itself, in order; an item is a window. The paper has 25 epochs of 256 windows in batches of 32.

    Attributes:
        stored: train what is stored, after rounding, instead of plain factors before.
    """

    steps: int | None = 200
    batch: int = 32
    lr: float = 1e-4
    floor: float = 0.1
    weight_decay: float = 0.01
    stored: bool = False

    @property
    def knob(self) -> str:
        """Where these options stand in the configuration."""
        return "method.training.block_refine"

    def cost(self, workload: Workload) -> Work:
        """Every window through every block that often; and the states of all windows, twice."""
        tokens = self.steps_over(workload.windows) * self.batch * workload.length
        states = 2 * workload.tokens * workload.width * workload.itemsize
        work = (
            stored_descent(workload, tokens, workload.length)
            if self.stored
            else descent(workload, tokens, workload.length, workload.factor_numbers)
        )
        return replace(work, bytes=work.bytes / workload.blocks + states)

    def __call__(self, lesson: Lesson) -> Curve:
        """Train all blocks; the curve runs through them, and its errors are each block's own."""
        paths = Paths(lesson.student, lesson.windows)
        curve: Curve = []
        for name in list(paths.compressed.waiting):
            with at_hand(lesson.student.model, name, changes=True):
                curve = joined(curve, self.refine(name, paths, lesson))
                paths.advance()
        return curve

    def refine(self, name: str, paths: "Paths", lesson: Lesson) -> Curve:
        """Train one block."""
        blocks = paths.compressed.blocks
        learnt, held_out = self.split(torch.arange(len(paths.compressed.states)))
        paths.aim()
        others = {id(p) for key, other in blocks.items() if key != name for p in other.parameters()}
        # what another block has as well would change that one, too
        parameters = [p for p in blocks[name].parameters() if p.is_floating_point() and id(p) not in others]
        lesson.student.remember(parameters)
        formats = [p.dtype for p in parameters]
        for parameter in parameters:
            # a copy, because a layer may have its bias from the dense one, which is the teacher's
            parameter.data = parameter.data.to(torch.float32, copy=True)
        descent = Descent(
            schedule=self,
            parameters=parameters,
            loss=lambda index: paths.error(name, int(learnt[index])),
            count=len(learnt),
            score=lambda: mean_error(paths, name, held_out),
            seed=lesson.seed,
            what=f"refining {name}",
        )
        curve = descent.run(lesson.shelf(part=name))
        own = lesson.student.own()
        for parameter, dtype in zip(parameters, formats, strict=True):
            if parameter not in own:
                parameter.data = parameter.data.to(dtype)
        return curve


class Paths:
    """The windows on the dense and on the compressed path, both at the entrance of the next block."""

    def __init__(self, student: Student, windows: torch.Tensor):
        self.student = student
        with student.as_teacher() as teacher:
            self.dense = BlockPath(teacher, windows)
        self.compressed = self.dense.fork(student.model)

    def aim(self) -> None:
        """Bring the dense path behind the next block: what the compressed block is to give."""
        with self.student.as_teacher():
            self.dense.advance()

    def advance(self) -> None:
        """Bring the compressed path behind the block as it is now, in the format that the dense one gives."""
        with self.student.precision():
            self.compressed.advance()
        pairs = zip(self.compressed.states, self.dense.states, strict=True)
        self.compressed.states = [state.to(dense.dtype) for state, dense in pairs]

    def error(self, name: str, index: int) -> torch.Tensor:
        """Mean squared error of the block's output on one window, a scalar."""
        with self.student.precision():
            found = self.compressed.run(name, self.compressed.states[index])
        return nn.functional.mse_loss(found.float(), self.dense.states[index].to(found.device).float())


@torch.no_grad()
def mean_error(paths: Paths, name: str, windows: torch.Tensor) -> float:
    """The block's mean squared error over windows, by index."""
    return float(torch.stack(list(map(partial(paths.error, name), windows.tolist()))).mean())
