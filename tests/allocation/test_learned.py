"""Learned ranks: loss and gradient against an independent implementation, resumption, several processes."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from svdexp.allocation import Budget, Evidence, Learned, Uniform
from svdexp.allocation.from_gamma import GAMMA_TOKENS
from svdexp.allocation.rank_training import RankTraining, cost_at
from svdexp.factorisation.activation import gate
from svdexp.models.families import LINEAR
from svdexp.models.structure import Targets, find_matrices
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Shelf
from svdexp.storage import FactorStorage, RemapStorage, Storage
from tests.conftest import overflow_at, tiny_model
from tests.support.two_processes import in_two, join_two

QUICK = Learned(epochs=2, accumulation=2, sharpness=1.0, lr=60, lr_end=1, randomised=False, save_every=1)


def budget_of(model: PreTrainedModel, ratio: float = 0.5, storage: Storage | None = None) -> Budget:
    shapes = {layer.name: (layer.m, layer.n) for layer in find_matrices(model, Targets())}
    return Budget(ratio, shapes, storage or FactorStorage())


def evidence_of(model: PreTrainedModel, windows: torch.Tensor, shelf: Shelf | None = None) -> Evidence:
    on_shelf: Callable[..., Shelf] = lambda stage, **options: shelf or Shelf()  # noqa: E731
    return Evidence(model, windows, {}, None, {}, on_shelf, seed=3)  # type: ignore[arg-type]


def training_of(model: PreTrainedModel, windows: torch.Tensor, options: Learned = QUICK) -> RankTraining:
    return RankTraining(options, budget_of(model), model, options.sequences(windows), seed=0)


@pytest.mark.parametrize("storage", [FactorStorage(), RemapStorage()])
def test_any_model_gets_ranks_within_its_budget(
    model: PreTrainedModel, windows: torch.Tensor, storage: Storage
) -> None:
    """Grouped-query attention, biases, Conv1D; layers narrower than a sequence."""
    budget = budget_of(model, 0.5, storage)
    ranks = QUICK(budget, evidence_of(model, windows))
    assert ranks.keys() == budget.shapes.keys()
    assert 0.95 * budget.total < budget.spent(ranks) <= budget.total
    assert ranks != Uniform()(budget, evidence_of(model, windows))


def reference_loss(training: RankTraining, gamma: torch.Tensor, index: int) -> torch.Tensor:
    """exp(cross-entropy) with every layer's W replaced by W after the activations' gate, by torch's full SVD."""
    model: Any = training.model
    handles = []
    for layer, name in enumerate(training.names):
        module = model.get_submodule(name)

        def hook(module: Any, args: Any, output: torch.Tensor, layer: int = layer) -> torch.Tensor:
            bias = 0 if module.bias is None else module.bias
            Y = (args[0] @ LINEAR.weight(module).T).flatten(0, -2)
            U, S, Vh = torch.linalg.svd(Y, full_matrices=False)
            rank = gamma[layer] * min(*Y.shape, args[0].shape[-1]) / GAMMA_TOKENS
            changed = (U * (S * gate(len(S), rank, training.options.sharpness))) @ Vh + bias
            return changed.reshape(output.shape)

        handles.append(module.register_forward_hook(hook))
    tokens = training.sequences[index][None]
    logits = model(tokens).logits[0, :-1]
    loss = nn.functional.cross_entropy(logits, tokens[0, 1:])
    for handle in handles:
        handle.remove()
    return torch.exp(loss)


@pytest.mark.parametrize("name", ["llama_gqa", "opt", "gpt2"])
def test_gradient_is_that_of_the_truncated_models_loss(name: str, windows: torch.Tensor) -> None:
    """In float64 against finite differences of an independent implementation.

    Sequences are shorter than every layer is wide, so that nothing but the gate discards components. The step is large
    because some norms compute in float32 whatever the model does.
    """
    model = tiny_model(name).double()
    training = training_of(model, windows[:, :8], replace(QUICK, sharpness=0.3))
    found = training.task_gradient([1], step=0)
    gradient = training.gamma.grad
    assert gradient is not None
    with torch.no_grad():
        assert math.isclose(found, float(reference_loss(training, training.gamma, 1)), rel_tol=1e-5)
        for layer in range(0, len(training.names), 4):
            step = torch.zeros_like(training.gamma)
            step[layer] = 4.0
            ahead, behind = (reference_loss(training, training.gamma + s, 1) for s in (step, -step))
            expected = float(ahead - behind) / 8
            assert math.isclose(float(gradient[layer]), expected, rel_tol=1e-2, abs_tol=1e-7)


def test_achieved_ratio_is_the_budgets_at_whole_ranks(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    training = training_of(llama, windows)
    ranks = {name: 1 + i % 4 for i, name in enumerate(training.names)}
    whole = torch.tensor(list(ranks.values())) * GAMMA_TOKENS / training.sides
    training.gamma.data.copy_(whole)
    budget = training.budget
    assert math.isclose(float(training.achieved_ratio().detach()), budget.ratio * budget.spent(ranks) / budget.total)


def test_cost_is_linear_between_whole_ranks_and_has_its_slope() -> None:
    rank = torch.tensor(2.25, dtype=torch.float64, requires_grad=True)
    cost = cost_at(lambda r: r * (10 - r), rank, 5)
    assert cost.item() == 16 + 0.25 * (21 - 16)
    (slope,) = torch.autograd.grad(cost, rank)
    assert slope == 5


def test_published_schedule(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """256 sequences, 20 epochs, 8 a step: 640 steps from 5 to 4 on half a cosine; λ as published, by ratio."""
    learned = Learned()
    assert learned.steps(256) == 640
    assert [learned.learning_rate(step, 641) for step in (0, 320, 640)] == pytest.approx([5, 4.5, 4])
    assert [learned.penalty_at(ratio) for ratio in (0.2, 0.4, 0.5, 0.6, 0.8, 0.9)] == [400, 400, 300, 200, 150, 150]


def test_every_epoch_sees_every_sequence_once(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    training = training_of(llama, windows, replace(QUICK, epochs=3, accumulation=4, seq_len=12))
    assert training.sequences.shape == (12, 12)
    seen = [index for step in range(training.steps) for index in training.batch(step)]
    assert all(sorted(seen[12 * e : 12 * e + 12]) == list(range(12)) for e in range(3))
    assert seen[:12] != seen[12:24]


def test_ratio_is_approached_by_the_penalty_alone(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    training = training_of(llama, windows, replace(QUICK, epochs=10, penalty={0.5: 1e4}, lr=30))
    training.gamma.data.mul_(1.5)
    training.run(Shelf())
    assert abs(training.history[0][1] - 0.75) < 0.01
    assert abs(training.history[-1][1] - 0.5) < 0.02


def test_interrupted_training_ends_at_the_same_ranks(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    class Killed(BaseException):
        pass

    class DyingShelf(Shelf):
        saved = 0

        def put(self, item: str, tensors: dict[str, torch.Tensor]) -> None:
            super().put(item, tensors)
            DyingShelf.saved += 1
            if DyingShelf.saved == 3:
                raise Killed

    options = replace(QUICK, randomised=True)
    undisturbed = options(budget_of(llama), evidence_of(llama, windows, Shelf(tmp_path / "one")))
    with pytest.raises(Killed):
        options(budget_of(llama), evidence_of(llama, windows, DyingShelf(tmp_path / "two")))
    trained = training_of(llama, windows, options)
    trained.restore(Shelf(tmp_path / "two").get("state"))
    assert len(trained.history) == 3
    resumed = options(budget_of(llama), evidence_of(llama, windows, Shelf(tmp_path / "two")))
    assert resumed == undisturbed
    states = [Shelf(tmp_path / name).get("state") for name in ("one", "two")]
    assert states[0]
    assert states[1]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_checkpointing_changes_nothing_but_memory(windows: torch.Tensor) -> None:
    model = tiny_model("mistral")
    forwards = {block: block.forward for block in model.modules()}
    gradients = []
    for checkpointing in (False, True):
        training = training_of(model, windows, replace(QUICK, checkpointing=checkpointing))
        training.task_gradient([0, 3], step=0)
        gradients.append(training.gamma.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    assert all(block.forward == forward for block, forward in forwards.items())


def test_the_model_is_left_as_it_was(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    before = llama(windows).logits
    QUICK(budget_of(llama), evidence_of(llama, windows))
    assert torch.equal(llama(windows).logits, before)
    assert all(not module._forward_hooks for module in llama.modules() if isinstance(module, nn.Linear))


def learn_in_a_process(rank: int, port: int, folder: str, windows: torch.Tensor) -> None:
    join_two(rank, port)
    training = training_of(tiny_model("llama_gqa"), windows)
    perplexity = training.task_gradient([4, 1, 3], step=0)
    save_file({"gradient": training.gamma.grad, "perplexity": torch.tensor(perplexity)}, f"{folder}/{rank}")
    training.run(Shelf())
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_sequences_of_a_step(windows: torch.Tensor, tmp_path: Path) -> None:
    """Of three sequences one process sees two and the other one; the gradient is that of one process."""
    in_two(learn_in_a_process, str(tmp_path), windows)
    one = training_of(tiny_model("llama_gqa"), windows)
    perplexity = one.task_gradient([4, 1, 3], step=0)
    for rank in range(2):
        found = load_file(tmp_path / str(rank))
        torch.testing.assert_close(found["gradient"], one.gamma.grad, rtol=1e-4, atol=1e-9)
        assert math.isclose(float(found["perplexity"]), perplexity, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"accumulation": 0}, "accumulation must be at least 1"),
        ({"windows": 0}, "windows must be at least 1"),
        ({"seq_len": 1}, "seq_len must be at least 2"),
        ({"sharpness": 0.0}, "sharpness must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"penalty": {}}, "penalty maps kept ratios"),
        ({"penalty": {4.0: 1.0}}, "penalty maps kept ratios"),
        ({"penalty": {0.0: 1.0}}, "penalty maps kept ratios"),
        ({"penalty": {0.5: -1.0}}, "penalty maps kept ratios"),
    ],
)
def test_bad_options_are_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=rf"method\.allocation\.{sentence}"):
        replace(QUICK, **change)


def test_sequences_longer_than_the_windows_are_refused(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"seq_len=99 is longer than calibration\.seq_len=24"):
        replace(QUICK, seq_len=99)(budget_of(llama), evidence_of(llama, windows))


def test_a_loss_that_is_not_finite_is_an_error(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    overflow_at(llama, int(windows[2, 0]))
    with pytest.raises(UserError, match=r"calibration: the output of .* is not finite"):
        replace(QUICK, accumulation=6)(budget_of(llama), evidence_of(llama, windows))
