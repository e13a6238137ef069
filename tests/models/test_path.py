"""The walk of hidden states through the blocks, against the model's own forward pass."""

import copy
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from svdexp.models.path import BlockPath, Pass, block_passes, recorded_calls
from svdexp.models.structure import named_blocks
from svdexp.runtime.errors import UserError
from tests.conftest import tiny_model
from tests.support.streaming import streamed

SECOND, THIRD = "model.layers.1", "model.layers.2"


def states_of(model: PreTrainedModel, windows: torch.Tensor) -> list[list[torch.Tensor]]:
    """What enters each block, and what leaves the last one, window by window, as the model itself reports it."""
    model = copy.deepcopy(model)
    body = model.base_model
    for name, module in list(body.named_modules()):
        if type(module).__name__.endswith("Norm") and not any(part.isdigit() for part in name.split(".")):
            body.set_submodule(name, nn.Identity())  # the one behind the last block, which the report would include
    passes = [model(window[None], output_hidden_states=True, use_cache=False).hidden_states for window in windows]
    return list(map(list, zip(*passes, strict=True)))


def assert_equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    assert len(found) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_states_are_those_of_the_models_own_pass(model: PreTrainedModel, windows: torch.Tensor) -> None:
    wanted = states_of(model, windows)
    path = BlockPath(model, windows)
    assert path.waiting == list(named_blocks(model))
    for states in wanted[:-1]:
        assert_equal(path.states, states)
        path.advance()
    assert path.waiting == []
    assert_equal(path.states, wanted[-1])
    assert not torch.equal(wanted[-1][0], wanted[-2][0])


def test_states_wait_at_the_entrance_of_a_block(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    path = BlockPath(llama, windows)
    for _ in range(2):  # it may be asked for again
        path.reach(THIRD)
        assert path.waiting == [THIRD]
        assert_equal(path.states, states_of(llama, windows)[2])
    with pytest.raises(AssertionError, match=f"the path is behind {SECOND}"):
        path.reach(SECOND)


def test_states_take_every_block_as_it_is_when_they_go_through(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    path = BlockPath(llama, windows)
    path.reach(SECOND)
    dense = states_of(llama, windows)
    llama.set_submodule(f"{SECOND}.mlp.up_proj", nn.Linear(32, 48))
    llama.get_submodule(f"{SECOND}.self_attn.q_proj").weight.mul_(3)
    changed = states_of(llama, windows)
    llama.get_submodule("model.layers.0.mlp.up_proj").weight.mul_(3)  # too late: they are behind it
    path.advance()
    assert_equal(path.states, changed[2])
    assert not torch.equal(changed[2][0], dense[2][0])


def test_a_block_may_be_run_without_moving_on(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    path = BlockPath(llama, windows)
    path.reach(SECOND)
    wanted = states_of(llama, windows)
    for index in range(2):
        assert torch.equal(path.run(SECOND, path.states[index]), wanted[2][index])
    assert_equal(path.states, wanted[1])


def test_a_fork_goes_its_own_way(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    path = BlockPath(llama, windows)
    path.reach(SECOND)
    fork = path.fork(llama)
    wanted = states_of(llama, windows)
    fork.advance()
    assert_equal(fork.states, wanted[2])
    assert_equal(path.states, wanted[1])
    assert (path.waiting, fork.waiting) == ([SECOND, THIRD], [THIRD])


def test_gradients_are_up_to_the_caller_of_run(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    llama.requires_grad_(True)
    path = BlockPath(llama, windows)
    assert not any(state.requires_grad for state in path.states)
    path.advance()
    assert not any(state.requires_grad for state in path.states)
    assert path.run(SECOND, path.states[0]).requires_grad
    with torch.no_grad():
        assert not path.run(SECOND, path.states[0]).requires_grad


def test_to_set_out_takes_two_passes_and_no_block_more(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """The first and the last window's, which are compared; the others stop at the entrance."""
    passes: list[Pass] = []
    with block_passes(llama, passes.append):
        BlockPath(llama, windows)
    assert len(passes) == 2 * 3


def test_passes_are_seen_while_the_model_runs(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    passes: list[Pass] = []
    with block_passes(llama, passes.append):
        llama(windows[:1], use_cache=False)
    wanted = [states[0] for states in states_of(llama, windows[:1])]
    assert [one.block for one in passes] == list(named_blocks(llama))
    assert_equal([one.state for one in passes], wanted[:-1])
    assert_equal([one.output for one in passes], wanted[1:])
    assert all("position_embeddings" in one.arguments for one in passes)


WRAPPED: dict[str, Callable[[torch.Tensor], Any]] = {
    "tensor": lambda x: x,
    "tuple": lambda x: (0, x),
    "mapping": lambda x: {"full": [x]},
    "other mapping": lambda x: UserDict({"full": x}),
    "length": lambda x: [0] * int(x),
    "key": lambda x: {int(x): 0},
    "kind": lambda x: None if int(x) % 2 else x,
}


def given(model: PreTrainedModel, block: str, wrap: Callable[[torch.Tensor], Any], by_text: bool) -> PreTrainedModel:
    """The model, of which one block is given what `wrap` makes of the text's first token, or of a constant."""
    tokens: list[torch.Tensor] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: tokens.append(args[0]))

    def add(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"extra": wrap(tokens[-1][0, 0] if by_text else torch.tensor(3))}

    model.get_submodule(block).register_forward_pre_hook(add, with_kwargs=True)
    return model


@pytest.mark.parametrize("kind", WRAPPED)
def test_arguments_that_depend_on_the_text_are_refused(kind: str, windows: torch.Tensor) -> None:
    windows[0, 0], windows[-1, 0] = 4, 5
    model = given(tiny_model("llama_gqa"), SECOND, WRAPPED[kind], by_text=True)
    sentence = rf"^{SECOND} cannot be replayed alone: its argument extra depends on the text$"
    hooks = len(model.get_submodule(SECOND)._forward_hooks)
    with pytest.raises(UserError, match=sentence):
        BlockPath(model, windows)
    assert len(model.get_submodule(SECOND)._forward_hooks) == hooks


@pytest.mark.parametrize("kind", WRAPPED)
def test_arguments_that_do_not_are_replayed(kind: str, windows: torch.Tensor) -> None:
    model = given(tiny_model("llama_gqa"), SECOND, WRAPPED[kind], by_text=False)
    BlockPath(model, windows).reach(THIRD)


@pytest.mark.parametrize(("beside", "times"), [((), 1), ((None,), 2)])
def test_a_second_window_goes_past_blocks_that_give_nothing_else(
    beside: tuple[None, ...], times: int, llama: PreTrainedModel, windows: torch.Tensor
) -> None:
    """It is there for what they are given, and that is made around them."""
    runs: list[str] = []
    for name, block in named_blocks(llama).items():
        block.get_submodule("mlp").register_forward_pre_hook(lambda *_, name=name: runs.append(name))
        if beside:
            block.register_forward_hook(lambda module, args, output: (output, *beside))
            block.register_forward_pre_hook(
                lambda module, args: (args[0][0] if isinstance(args[0], tuple) else args[0],)
            )
    if beside:
        llama.base_model.norm.register_forward_pre_hook(lambda module, args: (args[0][0],))
    recorded_calls(llama, windows)
    assert runs == list(named_blocks(llama)) * times


def test_a_pass_that_fails_leaves_no_hook_behind(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    handle = llama.get_submodule(THIRD).register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        BlockPath(llama, windows)
    handle.remove()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in llama.modules())


def test_a_streamed_model_that_does_not_run_says_so_in_a_sentence(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    """It runs here first."""
    found = streamed(llama, tmp_path)

    def refuse(*_: object) -> None:
        raise RuntimeError("strides should be multiple of 16 bytes\nand more")

    found.get_submodule(SECOND).register_forward_pre_hook(refuse)
    with pytest.raises(UserError, match=r"^model: LlamaForCausalLM does not run on 24 tokens: strides .* bytes$"):
        BlockPath(found, windows)
