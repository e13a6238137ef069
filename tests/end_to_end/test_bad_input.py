"""Every mistake gets one sentence that names the knob, a non-zero exit code, and no traceback."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig, Wav2Vec2Config, WhisperConfig

from tests.conftest import tiny_model
from tests.end_to_end import forked
from tests.end_to_end.conftest import Svdexp


def assert_one_sentence(result: Any, *fragments: str) -> None:
    assert result.returncode == 1, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.strip() and "%|" not in line]  # progress bars
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("svdexp: ")
    for fragment in fragments:
        assert fragment in lines[0]


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["ratio=0"], ["ratio", "kept fraction", "not 0"]),
        (["ratio=1.5"], ["ratio", "kept fraction", "not 1.5"]),
        (["ratio=abc"], ["ratio", "abc"]),
        (["method=nonsense"], ["method", "nonsense", "svd_llm"]),
        (["calibration.sample=3"], ["sample"]),
        (["model.path=/nowhere/at/all"], ["model.path", "/nowhere/at/all"]),
        (["model.path=nobody/no-such-model"], ["model.path", "nobody/no-such-model"]),
        (["device=cuda:77"], ["device=cuda:77"]),
        (["eval.texts=[pydok]"], ["eval.texts", "pydok", "pydoc"]),
        (["calibration=files", "calibration.files=[missing.txt]"], ["calibration.files", "missing.txt"]),
        (["eval.efficiency.generate=0"], ["eval.efficiency.generate", "not 0"]),
        (["storage=elastic"], ["storage=elastic is save=elastic storage=factors now"]),
        (["-m", "storage=factors,elastic", "dry_run=true"], ["storage=elastic is save=elastic storage=factors now"]),
        (
            ["eval=ppl", "eval.efficiency.prompt=8"],
            ["eval.efficiency is null here, so there is no eval.efficiency.prompt"],
        ),
        (["objective=ppl/pydok"], ["objective=ppl/pydok: eval.texts has no pydok, only pydoc"]),
        (["calibration.chat=true"], ["calibration.chat=true", "pydoc", "alpaca"]),
    ],
)
def test_wrong_words(svdexp_command: Svdexp, words: list[str], fragments: list[str]) -> None:
    assert_one_sentence(svdexp_command(*words), *fragments)


def test_a_folder_that_is_not_there_is_no_hub_id(svdexp_command: Svdexp, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert_one_sentence(svdexp_command("model.path=models/mine"), "model.path=models/mine is not a folder")


@pytest.mark.parametrize(
    ("program", "words", "key"), [("evaluate", [], "path"), ("export", [], "path"), ("export", ["path=x"], "to")]
)
def test_what_must_be_said_is_asked_for(program: str, words: list[str], key: str, tmp_path: Path) -> None:
    done = forked.run(tmp_path, words, program=f"svdexp.{program}")
    assert_one_sentence(done, f"svdexp: {key} is missing: say {key}=…; --help says what it takes")


def test_a_prompt_beyond_the_context(svdexp_command: Svdexp, tiny_job: list[str]) -> None:
    words = ["eval=speed", "eval.efficiency.prompt=64"]
    assert_one_sentence(svdexp_command(*tiny_job, *words), "eval.efficiency", "prompt=64", "64 positions")


def test_fixed_ranks_that_leave_nothing(svdexp_command: Svdexp, tiny_job: list[str]) -> None:
    result = svdexp_command(*tiny_job, "+targets.ranks={*_proj:null}")
    assert_one_sentence(result, "targets.ranks alone keep 1.0000", "ratio=0.8")


def test_an_empty_text(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    assert_one_sentence(svdexp_command(*tiny_job, "calibration.files=[empty.txt]"), "calibration", "empty")


def test_a_text_shorter_than_one_window(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("the rank of a matrix")
    result = svdexp_command(*tiny_job, "eval.files=[short.txt]")
    assert_one_sentence(result, "eval", "5 tokens", "eval.seq_len=32")


def test_nan_in_a_weight(svdexp_command: Svdexp, tiny_job: list[str], tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_model("llama_gqa")
    model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "damaged")
    tokenizer.save_pretrained(tmp_path / "damaged")
    result = svdexp_command(*tiny_job, "model.path=damaged", "eval.texts=[]", "eval.files=[]")
    assert_one_sentence(result, "model.layers.1.mlp.up_proj", "NaN")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (WhisperConfig(), "whisper is an encoder-decoder; svdexp compresses causal language models"),
        (Wav2Vec2Config(), "wav2vec2 is no language model of transformers'"),
        (LlamaConfig(quantization_config={"quant_method": "gptq", "bits": 4}), "is quantised already (gptq)"),
    ],
    ids=["speech to text", "speech", "quantised"],
)
def test_what_cannot_be_compressed_is_known_by_its_config(
    svdexp_command: Svdexp, config: PretrainedConfig, sentence: str, tmp_path: Path
) -> None:
    """No weights are there to be read."""
    config.save_pretrained(tmp_path / "model")
    assert_one_sentence(svdexp_command(f"model.path={tmp_path / 'model'}", "eval.efficiency=null"), sentence)


def test_a_folder_that_is_no_model(svdexp_command: Svdexp, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert_one_sentence(svdexp_command("model.path=./folder"), "model.path=./folder", "config.json")
    (tmp_path / "folder" / "config.json").write_text("{")
    assert_one_sentence(svdexp_command("model.path=./folder"), "model.path=./folder", "cannot be loaded")


@pytest.mark.any_format
def test_a_debugging_developer_gets_the_traceback(fresh_command: Svdexp) -> None:
    result = fresh_command("ratio=0", SVDEXP_DEBUG="1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
