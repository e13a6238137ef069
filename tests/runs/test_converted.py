"""A GGUF file is read once; what was kept is the same model and tokenizer, and a damaged copy is made again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import PreTrainedModel

from svdexp.checkpoints import loading
from svdexp.checkpoints.loading import load_model, load_tokenizer
from svdexp.models.fingerprint import model_fingerprint
from svdexp.runs import converted
from svdexp.runs.converted import dense_model, tokenizer_of
from svdexp.schema import Config, ModelConfig
from tests.checkpoints.gguf_files import learnt_tokenizer, write_header, write_llama
from tests.conftest import tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, list[str]]:
    """A run whose "GGUF file" is a tiny model, and the paths that are read for it."""
    write_llama(tmp_path / "tiny.gguf", tiny_model("llama"))
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
    models = [dense_model(config, dtype, CPU).model for _ in range(3)]
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
    expected = model_fingerprint(dense_model(config, torch.float32, CPU).model)
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
        assert model_fingerprint(dense_model(config, torch.float32, CPU).model) == expected
    assert [path.endswith(".gguf") for path in read] == [True, False, True, False]


def test_without_a_place_to_keep_it(job: tuple[Config, list[str]], caplog: pytest.LogCaptureFixture) -> None:
    config, read = job
    dense_model(replace(config, cache=None), torch.float32, CPU)
    Path(str(config.cache)).mkdir()
    (Path(str(config.cache)) / "converted").write_text("a file where the folder should be")
    dense_model(config, torch.float32, CPU)
    assert "cannot be kept" in caplog.text
    assert read == [config.model.path] * 2


def test_a_copy_without_the_files_rope_scaling_is_not_taken(
    job: tuple[Config, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: torch.Tensor
) -> None:
    """Older versions left it out of the copy, and noted what that was."""
    config, _ = job
    read: list[str] = []

    def reader(of: ModelConfig, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
        read.append(of.path)
        return load_model(of, dtype, device)

    monkeypatch.setattr(converted, "load_model", reader)
    write_llama(tmp_path / "tiny.gguf", tiny_model("llama"), **{"llama.rope.scaling.factor": 4.0})
    for module in (converted, loading):
        monkeypatch.setattr(module, "rope_scaling", lambda config: {})
    old = dense_model(config, torch.float32, CPU).model(windows).logits
    monkeypatch.undo()
    monkeypatch.setattr(converted, "load_model", reader)
    found = [dense_model(config, torch.float32, CPU).model(windows).logits for _ in range(2)]
    assert not torch.allclose(found[0], old, atol=1e-6)
    assert torch.equal(found[0], found[1])
    assert [path.endswith(".gguf") for path in read] == [True, True, False]


def closed(name: str) -> Any:
    """A `Path.open` that opens no file of this name."""
    plain = Path.open

    def attempt(path: Path, *words: Any, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return plain(path, *words, **options)

    return attempt


def test_a_copy_that_cannot_be_read_is_left_alone(
    job: tuple[Config, list[str]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, read = job
    expected = model_fingerprint(dense_model(config, torch.float32, CPU).model)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", closed("model.safetensors"))
        assert model_fingerprint(dense_model(config, torch.float32, CPU).model) == expected
    assert "cannot be read, and is done without: Permission denied" in caplog.text
    dense_model(config, torch.float32, CPU)
    assert [path.endswith(".gguf") for path in read] == [True, True, False]


TEXT = "rank 12 of  34\n  <|end|>  5"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModelConfig, list[str]]:
    """A GGUF file whose tokenizer begins texts with BOS, and the paths that tokenizers are converted from."""
    tokenizer = learnt_tokenizer(Sequence([Digits(individual_digits=True), ByteLevel(False)]), [TEXT] * 9)
    file = write_header(tmp_path / "tiny.gguf", tokenizer, "smollm", **{"tokenizer.ggml.add_bos_token": True})
    converted_from: list[str] = []

    def converter(config: ModelConfig) -> Any:
        converted_from.append(config.path)
        return load_tokenizer(config)

    monkeypatch.setattr(converted, "load_tokenizer", converter)
    return ModelConfig("tiny", str(file)), converted_from


def test_the_tokenizer_is_converted_once(words: tuple[ModelConfig, list[str]], tmp_path: Path) -> None:
    config, converted_from = words
    cache = str(tmp_path / "cache")
    first, second, third = (tokenizer_of(config, cache) for _ in range(3))
    assert converted_from == [config.path]
    for kept in (second, third):
        assert kept(TEXT)["input_ids"] == first(TEXT)["input_ids"]
        assert kept(TEXT)["input_ids"][0] == kept.bos_token_id == first.bos_token_id
        assert kept.eos_token_id == first.eos_token_id
    tokenizer_of(config, None)
    assert len(converted_from) == 2


@pytest.mark.parametrize("damaged", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_is_converted_again(
    words: tuple[ModelConfig, list[str]], tmp_path: Path, damaged: str
) -> None:
    config, converted_from = words
    cache = str(tmp_path / "cache")
    expected = tokenizer_of(config, cache)
    (kept,) = Path(cache).rglob(damaged)
    kept.unlink()
    for _ in range(2):
        found = tokenizer_of(config, cache)
        assert found(TEXT)["input_ids"] == expected(TEXT)["input_ids"]
        assert found.bos_token_id == expected.bos_token_id
    assert len(converted_from) == 2


def test_a_tokenizer_that_cannot_be_read_is_left_alone(
    words: tuple[ModelConfig, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, converted_from = words
    cache = str(tmp_path / "cache")
    expected = tokenizer_of(config, cache)
    (kept,) = Path(cache).rglob("tokenizer.json")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", closed("tokenizer.json"))
        assert tokenizer_of(config, cache)(TEXT)["input_ids"] == expected(TEXT)["input_ids"]
    assert kept.is_file()
    tokenizer_of(config, cache)
    assert len(converted_from) == 2


def test_another_way_of_amending_converts_again(
    words: tuple[ModelConfig, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, converted_from = words
    cache = str(tmp_path / "cache")
    tokenizer_of(config, cache)
    (tmp_path / "newer.py").write_text("# another version")
    monkeypatch.setattr(converted.gguf_tokenizer, "__file__", str(tmp_path / "newer.py"))
    tokenizer_of(config, cache)
    assert len(converted_from) == 2


def test_a_kept_tokenizer_is_warned_of_too(
    words: tuple[ModelConfig, list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, _ = words
    tokenizer = learnt_tokenizer(ByteLevel(False), [TEXT] * 9)
    write_header(Path(config.path), tokenizer, "someone-elses")
    for _ in range(2):
        caplog.clear()
        tokenizer_of(config, str(tmp_path / "cache"))
        assert "names the pre-tokenizer someone-elses, which is unknown here" in caplog.text
