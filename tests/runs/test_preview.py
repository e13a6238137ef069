"""Estimates without weights, without a hub and without the device."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from svdexp.cells.guard import config_dir
from svdexp.runs import preview
from svdexp.runs.preview import known_config, window_counts
from svdexp.runtime.errors import UserError
from svdexp.schema import CalibrationConfig, Config, EvalConfig, ModelConfig

PRESETS = sorted((Path(config_dir()) / "model").glob("*.yaml"))
# As published: parameters, tied ones once.
PARAMETERS = {
    "gemma-2b": 2_506_172_416,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "mistral-7b": 7_241_732_096,
    "opt-125m": 125_239_296,
    "opt-1.3b": 1_315_758_080,
    "opt-6.7b": 6_658_473_984,
    "qwen2.5-7b": 7_615_616_512,
    "smollm2-135m": 134_515_008,
    "vicuna-7b": 6_738_415_616,
}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_ships_its_published_shape(preset: Path) -> None:
    fields = json.loads(preset.with_suffix(".json").read_text())
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[preset.stem]


def test_the_published_shape_serves_only_where_nothing_else_can_be_had(model_folder: Path) -> None:
    own = known_config(ModelConfig("llama2-7b", str(model_folder)))
    assert (own.config.hidden_size, own.note) == (32, "")
    published = known_config(ModelConfig("mine", "meta-llama/Llama-2-7b-hf"))
    assert published.config.hidden_size == 4096
    assert published.note.startswith("meta-llama/Llama-2-7b-hf cannot be had here; the estimate is of its published")
    with pytest.raises(UserError, match="cannot be loaded"):
        known_config(ModelConfig("llama2-7b", "somebody/else"))


def counts(model_folder: Path, offline: bool = False, **part: object) -> tuple[list[int], list[str]]:
    evaluation = EvalConfig(seq_len=100, **part)  # type: ignore[arg-type]
    config = Config(
        model=ModelConfig("tiny", str(model_folder)),
        calibration=CalibrationConfig("pydoc"),
        eval=evaluation,
        ratio=0.5,
        cache=None,
    )
    return window_counts(config, offline)


def test_windows_are_counted_where_the_text_is_and_guessed_where_it_is_not(model_folder: Path, text_file: Path) -> None:
    local = {"texts": ["files"], "files": [str(text_file)], "stride": None}
    assert counts(model_folder, **local) == ([4000 // 100], [])
    size = len(text_file.read_text())
    assert counts(model_folder, offline=True, **local)[0] == [size // 4 // 100]
    found, notes = counts(model_folder, texts=["wikitext2", "pydoc"], windows_by_text={"pydoc": 3})
    assert (found, notes) == (
        [1_300_000 // 4 // 100, 3],
        ["windows of wikitext2 are guessed from its size: at 4 characters a token"],
    )
    assert counts(model_folder, texts=["c4"], rows_by_text={"c4": 2000})[0] == [
        100_000_000 * 2000 // 45_576 // 4 // 100
    ]
