"""A streamed model: its blocks have weights for their turn alone, and are otherwise the same."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.models import residency as residency_module
from svdexp.models.factors import Factors, low_rank_layer
from svdexp.models.fingerprint import model_fingerprint
from svdexp.models.matrices import found_in
from svdexp.models.path import BlockPath, Replay
from svdexp.models.prefetch import Ahead
from svdexp.models.residency import Place, at_hand, blocks_of, put_tensor, residency_of, running, stream
from svdexp.models.structure import named_blocks
from svdexp.runtime.errors import UserError
from tests.conftest import tiny_model
from tests.support.streaming import streamed

FIRST = "model.layers.0"


def there(model: PreTrainedModel) -> list[str]:
    """The blocks that have weights, some or all."""
    return [name for name, block in blocks_of(model).items() if not all(x.is_meta for x in block.parameters())]


def test_it_is_the_model_block_by_block(model: PreTrainedModel, windows: torch.Tensor, tmp_path: Path) -> None:
    found = streamed(model, tmp_path)
    assert model_fingerprint(found) == model_fingerprint(model)
    with torch.no_grad(), running(found):
        assert torch.equal(found(windows).logits, model(windows).logits)
    assert there(found) == []
    assert found.get_input_embeddings().weight.device.type == "cpu"


def test_a_block_has_its_weights_for_its_turn(llama: PreTrainedModel, tmp_path: Path) -> None:
    found = streamed(llama, tmp_path)
    with at_hand(found, FIRST):
        assert there(found) == [FIRST]
        assert torch.equal(found.get_submodule(FIRST).mlp.up_proj.weight, llama.get_submodule(FIRST).mlp.up_proj.weight)
        with at_hand(found, FIRST):
            pass
        assert there(found) == [FIRST]  # it is in use yet
    with pytest.raises(ZeroDivisionError), at_hand(found, FIRST):
        raise ZeroDivisionError
    assert there(found) == []


def test_what_a_block_took_goes_back_to_the_system(
    llama: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, times = streamed(llama, tmp_path), []
    monkeypatch.setattr(residency_module, "return_freed", lambda: times.append(there(found)))
    with at_hand(found, FIRST), at_hand(found, FIRST):
        assert times == []
    assert times == [[]]


def test_a_whole_model_is_left_as_it_is(llama: PreTrainedModel) -> None:
    before = {name: id(parameter) for name, parameter in llama.named_parameters()}
    with at_hand(llama, FIRST, changes=True), running(llama):
        pass
    assert {name: id(parameter) for name, parameter in llama.named_parameters()} == before
    assert residency_of(llama) is None


def test_one_block_at_a_time_is_at_hand_on_a_path(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    found, seen = streamed(llama, tmp_path), []
    path = BlockPath(found, windows)
    for block in path.blocks.values():
        block.register_forward_pre_hook(lambda *_: seen.append(there(found)))
    while path.waiting:
        path.advance()
    assert seen == [[name] for name in path.blocks for _ in windows]
    with torch.no_grad():
        wanted = llama(windows).logits
        for window, state, logits in zip(windows, path.states, wanted, strict=True):
            assert torch.equal(path.leave(window[None], state).logits[0], logits)


def test_its_blocks_are_asked_for_what_those_of_a_whole_one_are(
    model: PreTrainedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    """Also for what GPT-2 gives its blocks by position."""
    found, wanted = (Replay(one, windows, {3})._calls[3] for one in (streamed(model, tmp_path), model))
    assert {name: [*call.arguments] for name, call in found.items()} == {
        name: [*call.arguments] for name, call in wanted.items()
    }


def test_a_changed_block_waits_as_it_is(llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path) -> None:
    found = streamed(llama, tmp_path)
    for model in (llama, found):
        with torch.no_grad(), at_hand(model, FIRST, changes=True):
            for matrix in [x.handle(FIRST) for x in found_in(model.get_submodule(FIRST), FIRST)]:
                W = matrix.weight(model)
                matrix.put(model, low_rank_layer(Factors(W[:, :4].clone(), W[:4].clone()), matrix.bias(model), W))
    assert there(found) == []
    assert model_fingerprint(found) == model_fingerprint(llama)
    with torch.no_grad(), running(found):
        assert torch.equal(found(windows).logits, llama(windows).logits)


def test_a_block_that_was_not_finished_is_as_before(llama: PreTrainedModel, tmp_path: Path) -> None:
    found = streamed(llama, tmp_path)

    def fail() -> None:
        found.get_submodule(FIRST).mlp.up_proj.weight.mul_(2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), at_hand(found, FIRST, changes=True):
        fail()
    assert model_fingerprint(found) == model_fingerprint(llama)


def test_the_next_block_is_read_meanwhile(llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path) -> None:
    found = streamed(llama, tmp_path)
    residency = residency_of(found)
    assert residency is not None
    assert residency.ahead is None  # on a CPU files are mapped
    residency.ahead = Ahead(torch.device("cpu"))
    blocks, seen = list(residency.blocks), []
    path = BlockPath(found, windows)
    for block in path.blocks.values():
        block.register_forward_pre_hook(lambda *_: seen.append(residency.ahead.group))
    read, times = Place.read, Counter[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Place, "read", lambda self: (times.update([self.name]), read(self))[1])
        while path.waiting:
            path.advance()
    assert list(dict.fromkeys(seen)) == [*blocks[1:], ""]
    assert set(times.values()) == {1}  # what was read ahead is what is used
    assert there(found) == []
    with torch.no_grad():
        for window, state, logits in zip(windows, path.states, llama(windows).logits, strict=True):
            assert torch.equal(path.leave(window[None], state).logits[0], logits)


def test_what_is_changed_is_never_there_as_it_was_read_ahead(llama: PreTrainedModel, tmp_path: Path) -> None:
    found = streamed(llama, tmp_path)
    residency = residency_of(found)
    assert residency is not None
    residency.ahead, second = Ahead(torch.device("cpu")), residency.blocks[1]
    weight = found.get_submodule(second).mlp.up_proj.weight.shape
    with at_hand(found, FIRST, then=second):
        with at_hand(found, second, changes=True):
            residency.look_ahead(found, second)  # which is at hand
            put_tensor(found, f"{second}.mlp.up_proj.weight", torch.zeros(weight))
        assert residency.ahead.group == ""
    with at_hand(found, second):
        assert not found.get_submodule(second).mlp.up_proj.weight.any()


def test_weights_shared_between_blocks_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama_gqa").to("meta")
    model.all_tied_weights_keys = {f"{FIRST}.mlp.up_proj.weight": "model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(UserError, match="is shared between parts of the model; use residency=whole"):
        stream(model, named_blocks(model), {}, tmp_path)


def test_damage_is_found_while_the_weights_are_read(llama: PreTrainedModel, tmp_path: Path) -> None:
    llama.get_submodule(FIRST).mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(UserError, match=rf"^model: {FIRST}.mlp.up_proj.weight holds NaN or infinity"):
        model_fingerprint(streamed(llama, tmp_path))
