"""The size at which a model is nearly as good as the dense one, found by trying sizes."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from transformers import PreTrainedModel

from svdexp.allocation import FormsFromFile, FromFile, Learned, Sensitivity, Whole
from svdexp.engine.size import NearDense
from svdexp.evaluation import NotFiniteError
from svdexp.method import Method
from svdexp.runtime.errors import UserError, require
from svdexp.schema import RATIO_STEPS

log = logging.getLogger(__name__)

Measure = Callable[[PreTrainedModel], float]  # a model's perplexity


class TooSmallError(UserError):
    """A ratio that a method cannot have."""


@dataclass(frozen=True)
class Trial:
    """A ratio, and the perplexity of the model compressed to it; None where it cannot be had or is not finite."""

    ratio: float
    ppl: float | None


@dataclass(frozen=True)
class Search:
    """How a ratio was found.

    Attributes:
        wanted: what was asked for.
        dense: the dense model's perplexity.
        trials: in the order in which ratios were tried.
        ratio: the smallest that is near enough.
    """

    wanted: NearDense
    dense: float
    trials: Sequence[Trial]
    ratio: float


def require_searchable(method: Method) -> None:
    """Raise UserError for a method that has but one size, or would train anew for every size that is tried."""
    allocation = type(method.allocation)
    refuse_target(method, "ppl")
    require(
        allocation not in (FromFile, FormsFromFile, Whole),
        f"ppl has no sizes to choose from, because method.allocation={allocation.__name__} fixes it; leave it out",
    )
    anew = "ppl tries several sizes and would train for each anew; find the ratio without it, then give ratio"
    require(not method.training, f"method.training: {anew}")
    require(allocation is not Learned, f"method.allocation=Learned: {anew}")


def refuse_target(method: Method, knob: str) -> None:
    """Raise UserError where the allocation goes by a perplexity of its own, and `knob` says how small the model shall
    be."""
    free = not isinstance(method.allocation, Sensitivity) or method.allocation.ppl_target is None
    require(free, f"{knob} and method.allocation.ppl_target both say how small the model shall be: give one of them")


def search(
    wanted: NearDense,
    model: PreTrainedModel,
    measure: Measure,
    compressed: Callable[[float], AbstractContextManager[object]],
) -> Search:
    """The smallest multiple of 1/RATIO_STEPS at which `model` is near enough to what it is now.

    It is found by bisection, which takes for granted that more bits are no worse: the next smaller multiple was tried
    and is not near enough.

    Args:
        wanted: how near.
        model: the dense model.
        measure: perplexity on the text of `wanted`, of the model as it is when called.
        compressed: a context in which `model` is compressed to a ratio; raises TooSmallError where it cannot be.

    Raises:
        UserError: even all of the bits are not near enough.
    """
    dense = measure(model)
    trials: list[Trial] = []

    def near(step: int) -> bool:
        ratio = step / RATIO_STEPS
        try:
            with compressed(ratio):
                found = measure(model)
        except (TooSmallError, NotFiniteError) as error:
            trials.append(Trial(ratio, None))
            log.info("ratio %.2f cannot be had: %s", ratio, error)
            return False
        trials.append(Trial(ratio, found))
        enough = found <= wanted.factor * dense
        said = f"{found:.4g} on {wanted.text}, {found / dense:.4f} × dense"
        log.info("ratio %.2f tried: %s, %s", ratio, said, "near enough" if enough else "too far off")
        return enough

    step = 1 + bisect_left(range(1, RATIO_STEPS + 1), True, key=near)
    require(
        step <= RATIO_STEPS,
        f"ppl={wanted.factor:g}x: even at ratio=1 perplexity on {wanted.text} is above {wanted.factor:g} times that of "
        "the dense model; ask for less, or choose a storage that keeps more",
    )
    return Search(wanted, dense, trials, step / RATIO_STEPS)
