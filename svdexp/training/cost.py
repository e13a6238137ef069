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


def stored_descent(workload: Workload, tokens: float, length: int) -> Work:
    """The same where scales of codes are trained, which are few.

    Their gradients take those of all numbers that the codes stand for, and a step keeps these numbers.
    """
    numbers = workload.kept_entries
    work = descent(workload, tokens, length, 0)
    gradients, held = 2 * tokens * numbers, workload.itemsize * numbers
    return replace(work, backward=work.backward + gradients, bytes=work.bytes + held)
