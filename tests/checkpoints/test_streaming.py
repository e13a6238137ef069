"""Models whose blocks stay in their files: which tensor is which, and what is refused before anything is computed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig

from svdexp.allocation import Uniform
from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.loading import load_model
from svdexp.checkpoints.loading_streamed import load_streamed
from svdexp.engine.compress import compress
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.fingerprint import model_fingerprint
from svdexp.models.portable.svdexp_factors import LowRankLinear
from svdexp.models.portable.svdexp_products import weight_of
from svdexp.models.residency import running
from svdexp.models.spreading import is_spread
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage
from tests.conftest import LLAMA_LIKE, tiny_model
from tests.support.streaming import config_of, streamed

CPU = torch.device("cpu")
GATE = "model.layers.1.mlp.gate_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in several files."""
    tiny_model("llama_gqa").save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 3
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_has_the_weights_of_the_whole_model(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    found = load_streamed(config_of(folder), dtype, CPU, tmp_path / "blocks")
    assert model_fingerprint(found) == model_fingerprint(load_model(config_of(folder), dtype, CPU))
    assert not is_spread(found)
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert not list((tmp_path / "blocks").rglob("*"))  # the files of the model are enough


def test_tensors_that_are_made_of_several_are_put_aside(tmp_path: Path, windows: torch.Tensor) -> None:
    """Files have each expert's matrices, the model all experts' in one tensor."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        MixtralConfig(**LLAMA_LIKE, num_key_value_heads=2, num_local_experts=3)
    ).eval()
    found = streamed(model, tmp_path)
    assert model_fingerprint(found) == model_fingerprint(model)
    with torch.no_grad(), running(found):
        assert torch.equal(found(windows).logits, model(windows).logits)
    assert list((tmp_path / "blocks").glob("*experts*"))


def test_a_compressed_model_is_streamed_from_its_checkpoint(
    llama: torch.nn.Module, tokenizer: object, windows: torch.Tensor, tmp_path: Path
) -> None:
    method = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
    done = compress(llama, windows, method, 0.6)
    checkpoint.save(llama, tokenizer, tmp_path / "saved", done.ranks)
    found, _ = checkpoint.load_as(tmp_path / "saved", "auto", "cpu", None, False, tmp_path / "blocks")
    with torch.no_grad(), running(found):
        assert torch.equal(found(windows).logits, llama(windows).logits)
    assert all(parameter.is_meta for parameter in found.model.layers.parameters())
    pairs = [part for part in found.modules() if isinstance(part, LowRankLinear)]
    assert pairs  # which multiply by the same routes as those in memory
    assert all(weight_of(child) is not None for part in pairs for child in (part.rank_in, part.rank_out))


def cut(folder: Path) -> None:
    path = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])


def without_a_shard(folder: Path) -> None:
    (folder / shard_of(folder, GATE)).unlink()


def twice(folder: Path) -> None:
    tensors = load_file(folder / shard_of(folder, GATE))
    other = next(path for path in sorted(folder.glob("*.safetensors")) if path.name != shard_of(folder, GATE))
    save_file(load_file(other) | {GATE: tensors[GATE]}, other, metadata={"format": "pt"})


def named_twice(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    entry = f'"{GATE}": "{shard_of(folder, GATE)}"'
    path.write_text(path.read_text().replace(entry, f"{entry}, {entry}"))


def lacking(folder: Path) -> None:
    change(folder, lambda tensors: tensors.pop(GATE))


def misshapen(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({GATE: tensors[GATE][1:].clone()}))


def without_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()


def change(folder: Path, how: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Write the file that has GATE again; the index stays."""
    path = folder / shard_of(folder, GATE)
    tensors = load_file(path)
    how(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def shard_of(folder: Path, name: str) -> str:
    found: str = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    return found


SENTENCES = {
    cut: r"^model.path=.*: checkpoint .* is damaged or cut short",
    without_a_shard: r"^model.path=.*: checkpoint .*: model.safetensors.index.json names .*, which is not there",
    named_twice: rf"^model.path=.*: checkpoint .*: model.safetensors.index.json names \['{GATE}'\] twice",
    twice: rf"^model.path=.*: {GATE} is in two files, ",
    lacking: rf"^model.path=.*: model.safetensors.index.json names 1 tensors that no file holds, first \['{GATE}'\]",
    misshapen: rf"^model: {GATE} has shape \(47, 32\), but the model of config.json \(48, 32\)",
    without_weights: r"^model.path=.* has no weights: neither model.safetensors nor",
}


@pytest.mark.parametrize("damage", SENTENCES, ids=lambda damage: damage.__name__)
def test_damaged_files_are_refused(folder: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(UserError, match=SENTENCES[damage]):
        load_streamed(config_of(folder), torch.float32, CPU, tmp_path / "blocks")


@pytest.mark.parametrize("damage", [cut, without_a_shard, named_twice, twice], ids=lambda damage: damage.__name__)
def test_a_whole_model_refuses_the_same_files(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(UserError, match=SENTENCES[damage]):
        load_model(config_of(folder), torch.float32, CPU)


def test_a_single_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    tiny_model("llama_gqa").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[GATE]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=rf"the weights lack 1 of the model's tensors, {GATE} is missing"):
        load_streamed(config_of(tmp_path), torch.float32, CPU, tmp_path / "blocks")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^model.path=owner/name is no local folder of safetensors files"):
        load_streamed(config_of(Path("owner/name")), torch.float32, CPU, tmp_path)
