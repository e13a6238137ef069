"""Block refinement: every compressed block towards the dense block's output, from the inputs that it will really get.

AA-SVD (arXiv 2604.02119): all parameters that are a block's own, mean squared error ‖block'(x̂) − block(x)‖², where x
comes through the dense blocks before it and x̂ through the compressed ones. Memory holds the states of all windows on
both paths.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from svdexp.calibration.blockwise import first_block_inputs, recorded_arguments, run_block
from svdexp.descent.descent import Curve, Descent, Schedule, joined
from svdexp.models.structure import named_blocks
from svdexp.models.work import Work, Workload
from svdexp.training.base import Lesson
from svdexp.training.cost import descent
from svdexp.training.student import Student


@dataclass(frozen=True)
class BlockRefine(Schedule):
    """Each block by itself, in order; an item is a window. The paper has 25 epochs of 256 windows in batches of 32."""

    steps: int | None = 200
    batch: int = 32
    lr: float = 1e-4
    floor: float = 0.1
    weight_decay: float = 0.01

    @property
    def knob(self) -> str:
        """Where these options stand in the configuration."""
        return "method.training.block_refine"

    def cost(self, workload: Workload) -> Work:
        """Every window through every block that often; and the states of all windows, twice."""
        tokens = self.steps_over(workload.windows) * self.batch * workload.length
        states = 2 * workload.tokens * workload.width * workload.itemsize
        work = descent(workload, tokens, workload.length, workload.factor_numbers)
        return Work(model=work.model, bytes=work.bytes / workload.blocks + states)

    def __call__(self, lesson: Lesson) -> Curve:
        """Train all blocks; the curve runs through them, and its errors are each block's own."""
        student = lesson.student
        blocks = named_blocks(student.model)
        paths = Paths(student, lesson.windows, blocks)
        curve: Curve = []
        for name in blocks:
            curve = joined(curve, self.refine(name, paths, lesson))
            paths.advance(name)
        return curve

    def refine(self, name: str, paths: "Paths", lesson: Lesson) -> Curve:
        """Train one block."""
        block = paths.blocks[name]
        learnt, held_out = self.split(torch.arange(len(paths.compressed)))
        paths.aim(name)
        others = {id(p) for key, other in paths.blocks.items() if key != name for p in other.parameters()}
        # what another block has as well would change that one, too
        parameters = [p for p in block.parameters() if p.is_floating_point() and id(p) not in others]
        lesson.student.remember(parameters)
        formats = [p.dtype for p in parameters]
        for parameter in parameters:
            parameter.data = parameter.data.float()
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
        factors = {id(p) for layer in lesson.student.layers.values() for p in layer.parameters()}
        for parameter, dtype in zip(parameters, formats, strict=True):
            if id(parameter) not in factors:
                parameter.data = parameter.data.to(dtype)
        return curve


class Paths:
    """Hidden states before the next block on the dense and on the compressed path, (1, L, d) per window on the CPU."""

    def __init__(self, student: Student, windows: torch.Tensor, blocks: dict[str, nn.Module]):
        self.student, self.blocks = student, blocks
        with student.as_teacher() as teacher:
            self.arguments: dict[str, dict[str, Any]] = recorded_arguments(teacher, blocks, windows)
            self.dense = first_block_inputs(teacher, next(iter(blocks.values())), windows)
        self.compressed = list(self.dense)

    def aim(self, name: str) -> None:
        """Bring the dense path behind the block: what the compressed block is to give."""
        with self.student.as_teacher():
            self.dense = [self._run(name, state).cpu() for state in self.dense]

    @torch.no_grad()
    def advance(self, name: str) -> None:
        """Bring the compressed path behind the block as it is now."""
        with self.student.precision():
            self.compressed = [self._run(name, state).to(state.dtype).cpu() for state in self.compressed]

    def error(self, name: str, index: int) -> torch.Tensor:
        """Mean squared error of the block's output on one window, a scalar."""
        with self.student.precision():
            found = self._run(name, self.compressed[index])
        return nn.functional.mse_loss(found.float(), self.dense[index].to(found.device).float())

    def _run(self, name: str, state: torch.Tensor) -> torch.Tensor:
        return run_block(self.blocks[name], state.to(self.student.model.device), self.arguments[name])


@torch.no_grad()
def mean_error(paths: Paths, name: str, windows: torch.Tensor) -> float:
    """The block's mean squared error over windows, by index."""
    return float(torch.stack(list(map(partial(paths.error, name), windows.tolist()))).mean())
