"""Where a model comes from; a run's folder may be anyone's, and is data."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from svdexp.checkpoints import checkpoint
from svdexp.export import origin, publish
from svdexp.export.origin import Origin, licence_texts, recorded_origin
from svdexp.runtime.errors import UserError
from svdexp.runtime.reading import read_plain_yaml
from svdexp.schema import ExportConfig, ModelConfig
from svdexp.storage import FactorStorage
from tests.support.shrunk import shrunk


@pytest.fixture
def run_dir(tmp_path: Path, tokenizer: Any) -> Path:
    """A run's folder as anyone may have sent it."""
    model, ranks = shrunk("llama_gqa", FactorStorage())
    checkpoint.save(model, tokenizer, tmp_path / "run" / "checkpoint", ranks)
    (tmp_path / "run" / "ranks.json").write_text(json.dumps(ranks))
    return tmp_path / "run"


def configure(run_dir: Path, text: str) -> None:
    (run_dir / ".hydra").mkdir()
    (run_dir / ".hydra" / "config.yaml").write_text(text)


def export(run_dir: Path) -> Path:
    publish.publish(ExportConfig(path=str(run_dir), to=str(run_dir.parent / "out")))
    return run_dir.parent / "out"


def test_no_interpolation_of_a_runs_configuration_is_resolved(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDEXP_TEST_WORD", "from-the-environment")
    configure(run_dir, "model:\n  name: ${oc.env:SVDEXP_TEST_WORD}\n  path: owner/${oc.env:SVDEXP_TEST_WORD}\n")
    written = export(run_dir)
    for path in written.iterdir():
        assert b"from-the-environment" not in path.read_bytes(), path


def test_no_package_is_imported_for_a_runs_configuration(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = run_dir.parent / "svdexp_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(run_dir.parent)
    configure(run_dir, "model: {name: tiny, path: pkg://svdexp_test_package.part/file.gguf}")
    assert "# tiny, compressed" in (export(run_dir) / "README.md").read_text()
    assert "svdexp_test_package" not in sys.modules


def test_no_file_of_a_folder_that_a_run_names_is_copied(run_dir: Path) -> None:
    other = run_dir.parent / "other"
    other.mkdir()
    for name, text in {"config.json": "{}", "LICENSE": "private", "README.md": "---\nlicense: private\n---\n"}.items():
        (other / name).write_text(text)
    (run_dir / "checkpoint" / "NOTICE").write_text("what the run left")
    configure(run_dir, yaml.safe_dump({"model": {"name": "tiny", "path": str(other)}}))
    written = export(run_dir)
    assert not (written / "LICENSE").exists()
    assert (written / "NOTICE").read_text() == "what the run left"
    assert "private" not in (written / "README.md").read_text()


@pytest.mark.parametrize(
    "name", ["checkpoint/LICENSE", "checkpoint/chat_template.jinja", "results.json", ".hydra/config.yaml"]
)
def test_a_link_out_of_a_run_is_refused_before_anything_is_loaded(
    run_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "load", None)
    (run_dir.parent / "private.txt").write_text("private")
    (run_dir / name).parent.mkdir(exist_ok=True)
    (run_dir / name).symlink_to(run_dir.parent / "private.txt")
    with pytest.raises(UserError, match=rf"{name} is a link out of .*: put the file itself there$"):
        export(run_dir)
    assert not (run_dir.parent / "out").exists()


def test_a_checkpoint_that_is_a_link_is_refused(run_dir: Path) -> None:
    (run_dir / "checkpoint").rename(run_dir.parent / "elsewhere")
    (run_dir / "checkpoint").symlink_to(run_dir.parent / "elsewhere")
    with pytest.raises(UserError, match="checkpoint is a link out of"):
        export(run_dir)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: &a [1, 2]\nb: *a\n", "alias"),
        ("!!python/object/apply:str [x]", "could not determine a constructor"),
        ("model: [", "cannot be read"),
        ("- 1", "is not a table"),
        ("[" * 3000, "nested too deeply"),
    ],
)
def test_only_plain_yaml_is_read(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        read_plain_yaml(tmp_path / "config.yaml")


def test_interpolations_stay_words(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: ${b}\nb: 1\n")
    assert read_plain_yaml(tmp_path / "config.yaml") == {"a": "${b}", "b": 1}


def test_what_a_run_noted_of_its_model_comes_back(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(origin, "_hub_licence", lambda name: asked.append(name) or "mit")
    (run_dir / "checkpoint" / "LICENSE").write_text("the terms")
    texts = (run_dir / "checkpoint" / "LICENSE",)

    def found(noted: object, configured: str = "{}") -> Origin | None:
        (run_dir / ".hydra").mkdir(exist_ok=True)
        (run_dir / ".hydra" / "config.yaml").write_text(configured)
        return recorded_origin(run_dir, {"model": "tiny", "origin": noted}, run_dir / "checkpoint")

    assert found(Origin("", None, "apache-2.0").noted()) == Origin("tiny", None, "apache-2.0", texts)
    assert found({"repository": "owner/tiny", "licence": "x"}) == Origin("tiny", "owner/tiny", "x", texts)
    assert not asked
    assert found(Origin("", "tiny").noted()) == Origin("tiny", "tiny", "mit", texts)
    for nothing in ({"repository": "../tiny", "licence": 3}, {"repository": "a/b/c", "licence": "a\nb"}, {}):
        assert found(nothing) == Origin("tiny", None, None, texts)
    assert found(None, "model: {path: owner/older}") == Origin("tiny", "owner/older", "mit", texts)
    for path in ("folder", "/a/b", "pkg://a/b.gguf", "~/a"):
        assert found(None, f"model: {{path: {path}}}") == Origin("tiny", None, None, texts)
    assert recorded_origin(run_dir.parent, None, run_dir / "checkpoint") is None


def test_licence_texts_are_the_models_own_files(tmp_path: Path) -> None:
    """Also where the hub's client keeps them: links from snapshots/ into blobs/."""
    folder = tmp_path / "models--a--b" / "snapshots" / "1234"
    folder.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "5678").write_text("the terms")
    (tmp_path / "private.txt").write_text("private")
    (folder / "LICENSE").symlink_to("../../blobs/5678")
    (folder / "NOTICE").symlink_to(tmp_path / "private.txt")
    assert licence_texts(folder) == (folder / "LICENSE",)
    (folder / "config.json").write_text("{}")
    assert origin.origin(ModelConfig("tiny", str(folder))).texts == (folder / "LICENSE",)
