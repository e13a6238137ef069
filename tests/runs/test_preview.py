"""Estimates without weights, without a hub and without the device."""

import json
import shutil
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.config_store import ConfigStore
from transformers import AutoConfig

from svdexp.cells.guard import config_dir
from svdexp.checkpoints.architectures import auto_class
from svdexp.runs.compression import run
from svdexp.runs.preview import known_config, preview, window_counts
from svdexp.runtime.errors import UserError
from svdexp.schema import CalibrationConfig, Config, EvalConfig, ModelConfig, validate
from tests.support.vision import two_images

PRESETS = sorted((Path(config_dir()) / "model").glob("*.yaml"))
# As published: parameters, tied ones once.
PARAMETERS = {
    "gemma-2b": 2_506_172_416,
    "gemma3-1b": 999_885_952,
    "gemma3-270m": 268_098_176,
    "gemma3-4b": 4_300_079_472,
    "gpt-oss-20b": 20_914_757_184,
    "llama-13b": 13_015_864_320,
    "llama-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama2-7b": 6_738_415_616,
    "llama3-70b": 70_553_706_496,
    "llama3-8b": 8_030_261_248,
    "llama3.1-8b": 8_030_261_248,
    "llama3.2-1b": 1_235_814_400,
    "llava-1.5-7b": 7_063_427_072,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "olmo2-1b": 1_484_916_736,
    "opt-1.3b": 1_315_758_080,
    "opt-125m": 125_239_296,
    "opt-6.7b": 6_658_473_984,
    "phi-4-mini": 3_836_021_760,
    "pythia-160m": 162_322_944,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "smollm2-1.7b": 1_711_376_384,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm3-3b": 3_075_098_624,
    "smolvlm-500m": 507_482_304,
    "vicuna-7b": 6_738_415_616,
}


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_ships_its_published_shape(preset: Path) -> None:
    fields = json.loads(preset.with_suffix(".json").read_text())
    config = AutoConfig.for_model(**fields)
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
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


def test_every_image_is_a_window(model_folder: Path, tmp_path: Path) -> None:
    images = two_images(tmp_path / "images")
    asked = {"texts": ["images"], "dataset": str(images), "split": "train"}
    assert counts(model_folder, **asked) == ([2], [])
    assert counts(model_folder, windows=1, **asked) == ([1], [])


def test_a_disk_too_small_is_said_first(
    model_folder: Path,
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a dry run, and by a run, which goes on: earlier ones may have left most of it in the cache."""
    words = [f"model.path={model_folder}", "calibration=files", f"calibration.files=[{text_file}]", "tracker=none"]
    words += ["calibration.samples=4", "calibration.seq_len=16", "eval.texts=[]", "eval.efficiency=null"]
    words += [f"cache={tmp_path / 'cache'}", "method=svd_llm", "ratio=0.6"]
    usage = shutil.disk_usage(tmp_path)
    said = f"cache: the disk of {tmp_path / 'cache'} has < 0.01 GB left, of which the run is estimated to take"
    ConfigStore.instance().store(name="schema", node=Config)
    with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
        config = validate(hydra.compose("config", words))
    preview(config, tmp_path / "run")
    assert said not in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda folder: usage._replace(free=1000))
        preview(config, tmp_path / "run")
        assert said in capsys.readouterr().out
        with caplog.at_level("WARNING"):
            run(config, tmp_path / "run")
    assert said in caplog.text
    assert (tmp_path / "run" / "results.json").is_file()
