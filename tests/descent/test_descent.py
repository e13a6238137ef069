"""The loop behind every training, against plain torch."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from svdexp.descent.descent import Descent, Schedule
from svdexp.descent.order import batch_of
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Shelf
from svdexp.training import Distill

OPTIONS = Schedule(steps=12, batch=3, lr=0.05, warmup=0.25, floor=0.1, weight_decay=0.1, check_every=4, patience=9)
TARGETS = torch.randn(7, 5, generator=torch.Generator().manual_seed(3))


def descent_of(options: Schedule, score: Callable[[torch.Tensor], float], fail_at: int | None = None) -> Descent:
    """Towards the mean of TARGETS, from a fixed start."""
    parameter = nn.Parameter(torch.full((5,), 2.0))
    calls = [0]

    def loss(index: int) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == fail_at:
            raise KeyboardInterrupt
        return (parameter - TARGETS[index]).square().sum() + 0.1 * torch.randn(()) * parameter.sum()

    return Descent(options, [parameter], loss, len(TARGETS), lambda: score(parameter), 5, "a test")


def distance(parameter: torch.Tensor) -> float:
    return float((parameter.detach() - TARGETS.mean(0)).norm())


def test_steps_are_adamw_with_clipping_and_the_schedule() -> None:
    descent = descent_of(OPTIONS, distance)
    found = descent.run(Shelf())
    parameter = nn.Parameter(torch.full((5,), 2.0))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, weight_decay=0.1)
    rising = 3
    for step in range(12):
        optimizer.zero_grad()
        for index in batch_of(step, 3, len(TARGETS), 5):
            torch.manual_seed(5 + 1_000_003 * step + index)
            loss = (parameter - TARGETS[index]).square().sum() + 0.1 * torch.randn(()) * parameter.sum()
            (loss / 3).backward()
        nn.utils.clip_grad_norm_([parameter], 1.0)
        cosine = (1 + math.cos(math.pi * (step - rising) / 9)) / 2
        optimizer.param_groups[0]["lr"] = 0.05 * ((step + 1) / 3 if step < rising else 0.1 + 0.9 * cosine)
        optimizer.step()
    assert [entry[0] for entry in found] == [0, 4, 8, 12]
    assert found[-1][2] == min(entry[2] for entry in found), "so the last parameters are the best"
    assert torch.equal(descent.parameters[0], parameter)


def test_the_best_parameters_stay() -> None:
    """A score that rises from the first look on keeps the start."""
    looks: list[float] = []

    def worse(parameter: torch.Tensor) -> float:
        looks.append(len(looks))
        return looks[-1]

    descent = descent_of(Schedule(steps=40, check_every=2, patience=3, batch=2), worse)
    curve = descent.run(Shelf())
    assert torch.equal(descent.parameters[0], torch.full((5,), 2.0))
    assert [entry[0] for entry in curve] == [0, 2, 4, 6], "three looks without improvement end it"
    assert not any(p.grad is not None for p in descent.parameters)
    assert all(p.requires_grad for p in descent.parameters), "as before"


def test_the_last_step_is_looked_at_too() -> None:
    curve = descent_of(Schedule(steps=5, check_every=2, batch=2), distance).run(Shelf())
    assert [entry[0] for entry in curve] == [0, 2, 4, 5]


def test_the_best_is_the_best_of_all_looks() -> None:
    """A score that is better than the one before, and worse than one long ago, keeps nothing."""
    scores, seen = iter([5.0, 2.0, 4.0, 3.0]), []

    def score(parameter: torch.Tensor) -> float:
        seen.append(parameter.detach().clone())
        return next(scores)

    descent = descent_of(Schedule(steps=6, check_every=2, patience=9, batch=2), score)
    descent.run(Shelf())
    assert torch.equal(descent.parameters[0], seen[1])
    assert not torch.equal(seen[1], seen[3])


@pytest.mark.parametrize("fail_at", [1, 14, 25, 36])
def test_an_interrupted_training_ends_as_an_undisturbed_one(fail_at: int, tmp_path: Path) -> None:
    whole = descent_of(OPTIONS, distance)
    expected = whole.run(Shelf())
    with pytest.raises(KeyboardInterrupt):
        descent_of(OPTIONS, distance, fail_at).run(Shelf(tmp_path))
    again = descent_of(OPTIONS, distance)
    assert str(again.run(Shelf(tmp_path))) == str(expected)  # nan equals nan
    assert torch.equal(again.parameters[0], whole.parameters[0])


def test_every_epoch_sees_every_item_once() -> None:
    seen = [index for step in range(14) for index in batch_of(step, 3, 7, seed=1)]
    assert all(sorted(seen[start : start + 7]) == list(range(7)) for start in range(0, 42, 7))
    assert seen[:7] != seen[7:14]
    assert batch_of(4, 3, 7, seed=1) == seen[12:15]
    assert batch_of(0, 7, 7, seed=1) != batch_of(0, 7, 7, seed=2)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    descent = descent_of(Schedule(), distance)
    descent.loss = lambda index: descent.parameters[0].sum() * math.nan
    with pytest.raises(UserError, match=r"a test: the loss of step 1 is not finite; .* smaller method\.training\.lr"):
        descent.run(Shelf())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"clip": math.inf}, "clip must be positive"),
        ({"warmup": 1.5}, "warmup is a share"),
        ({"held_out": -0.1}, "held_out is a share"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, but is -1.0"),
        ({"weight_decay": math.nan}, "weight_decay must not be negative, but is nan"),
        ({"weight_decay": math.inf}, "weight_decay must not be negative, but is inf"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"labels": 2.0}, "labels is a share"),
        ({"hidden": -1.0}, "hidden must not be negative"),
        ({"seq_len": 1}, "seq_len must be at least 2, not 1"),
    ],
)
def test_bad_options_are_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=rf"method\.training\.distill\.{sentence}"):
        Distill(**options)  # type: ignore[arg-type]


def test_some_windows_are_held_out() -> None:
    windows = torch.arange(10)[:, None]
    learnt, held_out = Schedule(held_out=0.3).split(windows)
    assert learnt.flatten().tolist() == list(range(7))
    assert held_out.flatten().tolist() == [7, 8, 9]
    assert len(Schedule(held_out=0.28).split(windows)[1]) == 3, "as near to the share as whole windows are"
    assert len(Schedule(held_out=0.0).split(windows)[1]) == 1
    with pytest.raises(UserError, match="leaves none to learn from"):
        Schedule().split(windows[:1])


def test_a_batch_is_not_far_larger_than_the_text() -> None:
    """Before calibration, and before a step asks for more numbers than memory holds."""
    Distill(batch=100 * 9 * 2, seq_len=12).check(10, 30)
    Schedule(batch=32).check(4, 30)  # a paper's batch meets little text
    for batch in (100 * 9 * 2 + 1, 10**15):
        with pytest.raises(UserError, match=rf"method\.training\.distill\.batch={batch} goes over all 18 items"):
            Distill(batch=batch, seq_len=12).check(10, 30)
