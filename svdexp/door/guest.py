"""Work in somebody else's process: its random numbers and modes are as they were afterwards, and mistakes are short."""

import inspect
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch

from svdexp.cells.mistakes import KNOWN, as_mistake, one_sentence
from svdexp.runtime.errors import UserError
from svdexp.runtime.nearest import did_you_mean

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


def as_guest(work: Callable[P, ResultT]) -> Callable[P, ResultT]:
    """Let `work` leave the process as it found it, and raise what a user can mend as UserError, whichever library found
    it: with one sentence and no more than the caller's own line, unless SVDEXP_DEBUG is set.

    A traceback would hold on to the model's tensors as long as a notebook remembers its last error.
    """

    known = inspect.signature(work)

    @wraps(work)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> ResultT:
        require_known(work.__name__, kwargs, known)
        try:
            with undisturbed():
                return work(*args, **kwargs)
        except Exception as raised:
            error = as_mistake(raised)
            if os.environ.get("SVDEXP_DEBUG") or not isinstance(error, KNOWN):
                raise
        raise UserError(one_sentence(error))

    return wrapped


def require_known(name: str, given: Iterable[str], known: inspect.Signature) -> None:
    """Raise TypeError, as Python would, for a keyword that the function of this name does not have; with one it has.

    What a function hands on by name is for whoever gets it.
    """
    kinds = {parameter.kind for parameter in known.parameters.values()}
    for keyword in given if inspect.Parameter.VAR_KEYWORD not in kinds else ():
        if keyword not in known.parameters:
            near = did_you_mean(keyword, [key for key in known.parameters if key != "self"])
            if not near and "overrides" in known.parameters:
                near = "; keys of conf/ that are no arguments go into overrides=['KEY=VALUE']"
            raise TypeError(f"{name}() has no argument {keyword}{near}")


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within this context torch's default format is its own; afterwards that, its modes, and random numbers are what
    they were before."""
    drawn, numbers = random.getstate(), np.random.get_state()
    format_, strict = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    gradients = torch.is_grad_enabled()
    devices = range(torch.cuda.device_count())  # none without CUDA
    try:
        with torch.random.fork_rng(devices=list(devices)):
            torch.set_default_dtype(torch.float32)  # which sums and statistics count on
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(numbers)
        torch.set_default_dtype(format_)
        torch.use_deterministic_algorithms(strict, warn_only=lenient)
        torch.set_grad_enabled(gradients)
