"""Every format on a hub: what huggingface_hub uploads to a server that speaks as a hub does is the folder, whole."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, snapshot_download
from transformers import AutoModelForCausalLM

from svdexp.checkpoints import checkpoint
from svdexp.export import publish
from svdexp.runtime.errors import UserError
from svdexp.schema import ExportConfig, Format
from svdexp.storage import FactorStorage, ResidualStorage, RTNStorage, Storage
from svdexp.storage.residual import Rounding
from tests.checkpoints.gguf_files import write_llama
from tests.export.test_llama_cpp import in_codes, wide_model
from tests.support.hub_server import TOKEN, Hub, running_hub

STORAGES: dict[Format, Storage] = {
    Format.hf: FactorStorage(),
    Format.dense: FactorStorage(),
    Format.gptq: RTNStorage(4, 32),
    Format.vllm: FactorStorage(),
    Format.peft: ResidualStorage(4, 32, rounding=Rounding.nearest),
    Format.gguf: ResidualStorage(4, 32, rounding=Rounding.nearest),
    Format.compressed_tensors: RTNStorage(4, 32),
}
NAMED = {Format.hf: "svdexp", Format.gptq: "gptq", Format.compressed_tensors: "compressed-tensors"}
WEIGHTS = {
    Format.peft: {"model.safetensors", "adapter/adapter_model.safetensors"},
    Format.gguf: {"model.gguf", "lora.gguf"},
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub where this process takes the hub to be, and an account on it."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # a protocol of its own, which no server here speaks
    with running_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.address)
        place = f"{running.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
        yield running


def pushed(form: Format, folder: Path) -> Any:
    """A model in memory, which was exported to `folder`/out and uploaded as me/tiny."""
    model = wide_model()
    write_llama(folder / "dense.gguf", model)
    checkpoint.save(model, None, folder / "run", in_codes(model, [STORAGES[form]], 8))
    donor = str(folder / "dense.gguf") if form is Format.gguf else None
    to = str(folder / "out")
    publish.publish(ExportConfig(str(folder / "run"), to, form, gguf=donor, push_to_hub="me/tiny"))
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_format_is_tried() -> None:
    assert STORAGES.keys() == set(Format)


@pytest.mark.parametrize("form", STORAGES)
def test_the_hub_has_the_folder(form: Format, hub: Hub, tmp_path: Path) -> None:
    pushed(form, tmp_path)
    repository, written = hub.repositories["me/tiny"], contents(tmp_path / "out")
    assert repository.private
    assert repository.commits == 1
    assert {name: data for name, data in repository.files.items() if name != ".gitattributes"} == written
    if "config.json" in written:  # what vLLM reads may not ask for a quantiser that it does not have
        asks = json.loads(written["config.json"]).get("quantization_config", {}).get("quant_method")
        assert asks == NAMED.get(form)
    assert written.keys() >= {"README.md"} | WEIGHTS.get(form, {"model.safetensors", "config.json"})


@torch.no_grad()
def test_what_comes_back_from_the_hub_is_our_model(hub: Hub, windows: torch.Tensor, tmp_path: Path) -> None:
    model = pushed(Format.hf, tmp_path)
    fetched = snapshot_download("me/tiny", local_dir=tmp_path / "fetched")
    loaded = AutoModelForCausalLM.from_pretrained(fetched, trust_remote_code=True)
    assert torch.equal(loaded(windows).logits, model(windows).logits)


def test_a_full_hub_is_told_in_one_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.full = True
    with pytest.raises(
        UserError, match=r"^push_to_hub=me/tiny: .*out is written but not uploaded: .*storage limit reached"
    ):
        pushed(Format.hf, tmp_path)
    assert (tmp_path / "out" / "README.md").is_file()


def test_without_an_account_nothing_is_written(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "of_somebody_else")
    with pytest.raises(UserError, match=r"^push_to_hub=me/tiny needs an account: hf auth login"):
        pushed(Format.hf, tmp_path)
    assert not (tmp_path / "out").exists()
    assert not hub.repositories
