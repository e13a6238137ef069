"""What a training takes, for the estimate before a run."""

from dataclasses import replace

from svdexp.models.work import Work, Workload


def descent(workload: Workload, tokens: float, length: int, trained: float) -> Work:
    """`tokens` forward and backward through the compressed model, in items of `length`.

    AdamW holds of `trained` float32 numbers the values, gradients, both moments, and the best values so far.
    """
    alone = workload.forward_backward(tokens / workload.length, compressed=True)
    gradients = 2 * tokens * trained
    held = alone.bytes * length / workload.length + 20 * trained
    return replace(alone, backward=alone.backward + gradients, bytes=held)
