"""What the statistics of a mixture's experts need beyond those of other layers: most experts see few of the tokens.

The second moment of an expert with few tokens is lent some of the others'. As in regularised discriminant analysis
(Friedman 1989, doi 10.1080/01621459.1989.10478752), where classes with few samples share a covariance, it becomes

    (N C + d C̄) / (N + d)

with N the tokens that the expert saw, d the width of the moment, and C̄ that of all tokens of all experts of the layer:
the mean counts as d tokens, so it matters to an expert that saw fewer than it takes to know a moment of this width, and
hardly to one that saw many. G is lent the same way, clipped or not. An expert that saw no token has the others' mean.

C also counts by the share of the text's tokens that the expert saw, N + 1 of them: the loss sums over tokens, so one
price for all matrices takes more from an expert that is seldom asked. G, next to it in that sum, is a mean over the
tokens that the expert saw.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from svdexp.calibration.statistics import GradGram, Gram, SecondMoment
from svdexp.models.matrices import Matrix, stacks
from svdexp.models.structure import abbreviated

log = logging.getLogger(__name__)

Accumulators = Mapping[str, Mapping[str, Any]]


def lend(layers: Sequence[Matrix], inputs: Accumulators, gradients: Accumulators) -> None:
    """Let experts among `layers` lend one another, in the accumulators of each layer, by its name."""
    others = [layer for layer in layers if layer.rivals is None]
    together = stacks(layers)
    grams = {stack: _of(Gram, members, inputs) for stack, members in together.items()}
    seen = [sum(one.count for one in found.values()) for found in grams.values()]
    # of experts alone only their ratios matter
    tokens = max([*(one.count for one in _of(Gram, others, inputs).values()), *([] if others else seen)], default=0)
    _tell([name for found in grams.values() for name, one in found.items() if one.count == 0])
    for stack, members in together.items():
        shares = {name: min(1.0, (one.count + 1) / max(tokens, 1)) for name, one in grams[stack].items()}
        pool(grams[stack].values())
        for name, one in grams[stack].items():
            one.total *= shares[name]
        pool([one.moment for one in _of(GradGram, members, gradients).values()])


def pool(moments: Iterable[SecondMoment]) -> None:
    """Let the mean of all `moments`, of one width d, count as d vectors in each of them."""
    moments = list(moments)
    count = sum(one.count for one in moments)
    if not count:
        return
    mean = sum(one.total for one in moments) / count
    for one in moments:
        width = len(one.total)
        one.total = one.total + width * mean
        one.count += width


def _of(kind: Any, layers: Iterable[Matrix], accumulators: Accumulators) -> dict[str, Any]:
    """The accumulators of one kind, clipped gradients' among those of gradients, by layer."""
    found = {layer.name: accumulators.get(layer.name, {}) for layer in layers}
    return {name: one for name, group in found.items() for one in group.values() if isinstance(one, kind)}


def _tell(unseen: Sequence[str]) -> None:
    if unseen:
        log.warning(
            "experts saw no token of the calibration text and take the mean of their layer: %s", abbreviated(unseen)
        )
