"""What it takes to see every layer's inputs as the compressed blocks produce them."""

from svdexp.calibration.statistics import Gram
from svdexp.models.work import Work, Workload


def compressed_path(workload: Workload, samples: int) -> Work:
    """The second moments of at most `samples` windows, taken input by input.

    Every block runs once per distinct input in it, once to find those and once to move on.
    """
    windows = min(samples, workload.windows)
    runs = len(workload.inputs) / workload.blocks + 2
    work = workload.forward(runs * (windows + 1), head=False, compressed=True)
    return work + Work(float32=windows * workload.length * sum(map(Gram.flops, workload.inputs.values())))
