"""A GGUF file is read once; what was kept is the same model, and a damaged copy is made again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from svdexp.cache import model_fingerprint
from svdexp.models.loading import load_model
from svdexp.schema import Config, ModelConfig
from svdexp.sweeps import converted
from svdexp.sweeps.converted import dense_model
from tests.conftest import tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, list[str]]:
    """A run whose "GGUF file" is a tiny model, and the paths that are read for it."""
    (tmp_path / "tiny.gguf").write_bytes(b"any")
    read: list[str] = []

    def reader(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        read.append(config.path)
        return tiny_model("llama_gqa").to(dtype) if config.path.endswith(".gguf") else load_model(config, dtype, device)

    monkeypatch.setattr(converted, "load_model", reader)
    model = ModelConfig("tiny", str(tmp_path / "tiny.gguf"))
    config = Config(model=model, storage={}, ratio=0.5, cache=str(tmp_path / "cache"))
    return config, read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_read_once(job: tuple[Config, list[str]], dtype: torch.dtype, windows: torch.Tensor) -> None:
    config, read = job
    models = [dense_model(config, dtype, CPU) for _ in range(3)]
    assert [path.endswith(".gguf") for path in read] == [True, False, False]
    assert len({model_fingerprint(model) for model in models}) == 1
    assert not any(parameter.requires_grad for parameter in models[1].parameters())
    assert models[1].dtype == dtype
    assert models[1].config.tie_word_embeddings
    if dtype == torch.float32:  # the fake reader's cast changes the angles of positions, too
        assert torch.equal(models[1](windows).logits, models[0](windows).logits)


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_a_damaged_copy_is_made_again(job: tuple[Config, list[str]], damage: str) -> None:
    config, read = job
    expected = model_fingerprint(dense_model(config, torch.float32, CPU))
    (weights,) = Path(str(config.cache)).rglob("model.safetensors")
    data = bytearray(weights.read_bytes())
    if damage == "cut":
        weights.write_bytes(data[:-100])
    elif damage == "other":
        data[-1] ^= 1
        weights.write_bytes(data)
    else:
        weights.unlink()
    for _ in range(2):
        assert model_fingerprint(dense_model(config, torch.float32, CPU)) == expected
    assert [path.endswith(".gguf") for path in read] == [True, False, True, False]


def test_without_a_place_to_keep_it(job: tuple[Config, list[str]], caplog: pytest.LogCaptureFixture) -> None:
    config, read = job
    dense_model(replace(config, cache=None), torch.float32, CPU)
    Path(str(config.cache)).mkdir()
    (Path(str(config.cache)) / "converted").write_text("a file where the folder should be")
    dense_model(config, torch.float32, CPU)
    assert "cannot be kept" in caplog.text
    assert read == [config.model.path] * 2
