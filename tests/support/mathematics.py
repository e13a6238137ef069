"""Everything that runs leave in the cache, as figures beside the FORMAT that they belong to.

The tiny model's weights are Python's own random numbers, and each figure is a sum of absolute values, because the signs
of singular vectors are a library's choice. `python -m tests.support.mathematics` writes mathematics.json.
"""

import json
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypedDict

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from svdexp.allocation import Dynamic, GlobalLoss, Learned, Sensitivity, Uniform, Whole
from svdexp.calibration import Statistics
from svdexp.engine.compress import compress
from svdexp.evaluation import accuracies, load_exams, perplexity
from svdexp.factorisation import Diagonal, FisherRows, Identity, InputMoment, KFac, Metric, TwoSided
from svdexp.factorisation.weighting import ChannelScale
from svdexp.method import Method
from svdexp.runtime.shelves import FORMAT, Cache
from svdexp.schema import EvalConfig, Traversal
from svdexp.storage import AWQStorage, FactorStorage, GPTQStorage
from svdexp.training import BlockRefine, Distill, SequentialLora
from tests.conftest import tiny_tokenizer

Figures = dict[str, float]  # name → a number that every machine finds, up to SAME
SAME = 1e-3
FILE = Path(__file__).with_suffix(".json")


class Record(TypedDict):
    """The figures, and the FORMAT that they belong to."""

    format: int
    figures: Figures


@dataclass(frozen=True)
class FisherSums:
    """As FisherRows, by the statistic that storages of experts look at."""

    needs: ClassVar[tuple[str, ...]] = ("fisher_sum",)

    def __call__(self, statistics: Statistics) -> Metric:
        """Weights on the output side."""
        return Metric(left=statistics["fisher_sum"].sum(1))


WHITENED = Method("input_moment", InputMoment(), Uniform(), FactorStorage())
WEIGHTINGS = {
    "identity": Identity(),
    "fisher_rows": FisherRows(),
    "fisher_sums": FisherSums(),
    **{f"diagonal_{scale}": Diagonal(scale=scale) for scale in ChannelScale},
    "input_moment": InputMoment(),
    "two_sided": TwoSided(),
    "two_sided_diagonal": TwoSided(diagonal_left=True),
    "kfac": KFac(),
}
STEPS: dict[str, Any] = {"steps": 2, "batch": 2, "lr": 1e-2}
RANKS = Learned(epochs=1, accumulation=3, lr=200.0, lr_end=100.0, randomised=False)
# Name → method; every kind of shelf that `compress` fills is filled by one of them.
METHODS: dict[str, Method] = {
    **{name: replace(WHITENED, weighting=weighting) for name, weighting in WEIGHTINGS.items()},
    "blockwise": replace(WHITENED, traversal=Traversal.blockwise),
    "dynamic": replace(WHITENED, allocation=Dynamic()),
    "sensitivity": replace(WHITENED, allocation=Sensitivity(candidates=[0.3, 0.6], windows=2)),
    "measured": replace(WHITENED, allocation=GlobalLoss(measured=0.3, windows=2, length=8)),
    "learned": replace(WHITENED, allocation=RANKS),
    "gptq": Method("quantise", None, Whole(), GPTQStorage(3, 8)),
    "gptq_fitted": replace(WHITENED, storage=GPTQStorage(4, 8, zero_points=True, fit=True)),
    "awq": Method("quantise", None, Whole(), AWQStorage(4, 8)),
    "block_refine": replace(WHITENED, training={"block_refine": BlockRefine(**STEPS)}),
    "distill": replace(WHITENED, training={"distill": Distill(**STEPS, seq_len=16)}),
    "sequential_lora": replace(
        WHITENED, training={"sequential_lora": SequentialLora(**STEPS, text=None, seq_len=16, dropout=0.0)}
    ),
}
TASKS = ["arc_easy", "winogrande"]
# What tells apart the shelves of one stage that a method fills, beside the method.
TELLING = ("statistic", "part")


def fixed_model() -> PreTrainedModel:
    """Two blocks of a Llama, of Python's own numbers."""
    draw = random.Random(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            numbers = [draw.random() - 0.5 for _ in range(parameter.numel())]
            parameter.copy_(torch.tensor(numbers).view_as(parameter) + (parameter.ndim == 1))
    return model.eval().requires_grad_(False)


def fixed_windows() -> torch.Tensor:
    """(6, 16) tokens."""
    draw = random.Random(1)
    return torch.tensor([[draw.randrange(32) for _ in range(16)] for _ in range(6)])


def weighed(tensor: torch.Tensor) -> float:
    """Σ c |x| over all entries x, with c between 1 and 2, another at every place; nan counts as nothing."""
    x = tensor.double().nan_to_num().abs().flatten()
    c = 1 + torch.arange(len(x), dtype=torch.float64).mul((5**0.5 - 1) / 2).frac()
    return float(c @ x)


def left_by(method: Method, cache: Path) -> Figures:
    """What a run with `method` adds to the folder `cache`: STAGE/KIND → figure; layers and blocks are added up."""
    before = set(cache.rglob("*.safetensors"))
    compress(fixed_model(), fixed_windows(), method, 0.6, cache=Cache(cache))
    figures: Figures = {}
    for path in sorted(set(cache.rglob("*.safetensors")) - before):
        about = json.loads((path.parent / "identity.json").read_text())
        stage = "/".join([path.parents[1].name, *(str(about[key]) for key in TELLING if about.get(key))])
        for name, tensor in load_file(path).items():
            kind = name.rpartition("/")[2]
            key = stage if "." in kind else f"{stage}/{kind}"  # a layer's name says nothing of its kind
            figures[key] = figures.get(key, 0.0) + weighed(tensor)
    return figures


def measured() -> Figures:
    """What an evaluation leaves."""
    found = vars(perplexity(fixed_model(), fixed_windows()))
    return {f"perplexity/{key}": float(value) for key, value in found.items()}


def answered(folder: Path) -> Figures:
    """How often the model answers rightly, to questions written to `folder`; imports lm-eval, which takes seconds."""
    from tests.evaluation.task_rows import write_local

    exams = load_exams(EvalConfig(tasks=TASKS, tasks_dir=str(write_local(folder, TASKS, count=25))), seed=0)
    about: dict[str, Any] = {"batch_size": None, "cache": Cache(), "weights": None, "what": "tiny"}
    found = accuracies(fixed_model(), tiny_tokenizer(), exams, **about)
    return {f"accuracy/{key}": found[key] for key in found if isinstance(found[key], float)}


def everything(cache: Path) -> Figures:
    """All of it but answers, by method; `cache` is an empty folder."""
    left = {name: left_by(method, cache) for name, method in METHODS.items()}
    return {f"{name}/{key}": value for name, figures in left.items() for key, value in figures.items()} | measured()


def unlike(found: Mapping[str, float], expected: Mapping[str, float]) -> list[str]:
    """The names of figures that are in one of both, or are not the same up to what machines differ in."""
    return [
        key
        for key in sorted(found.keys() | expected.keys())
        if key not in found or key not in expected or not math.isclose(found[key], expected[key], rel_tol=SAME)
    ]


def recorded() -> Record:
    """What was written last."""
    record: Record = json.loads(FILE.read_text())
    return record


def record() -> None:
    """Write the figures of today's code, if they are new or FORMAT is."""
    with TemporaryDirectory() as folder:
        figures = everything(Path(folder) / "cache") | answered(Path(folder) / "tasks")
    if FILE.exists() and recorded()["format"] == FORMAT:
        old = recorded()["figures"]
        changed = unlike({key: figures[key] for key in old.keys() & figures.keys()}, old)
        if changed:
            raise SystemExit(f"raise FORMAT in svdexp/runtime/shelves.py first: {', '.join(changed)}")
    kept = {key: float(f"{value:.6g}") for key, value in figures.items()}
    FILE.write_text(json.dumps({"format": FORMAT, "figures": kept}, indent=1) + "\n")


if __name__ == "__main__":
    record()
