"""Where BOS stands follows the tokenizer: in windows that calibrate and train, before prompts and in the speed's."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedModel

from svdexp.data import resolve_bos, tokenize, warn_without_bos
from svdexp.data.bos import put_before
from svdexp.evaluation import continuations, evaluate, measure_efficiency
from svdexp.method import Method
from svdexp.runs.inputs import calibration_windows, evaluation_windows, training_windows
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import (
    Bos,
    CalibrationConfig,
    Config,
    EfficiencyConfig,
    EvalConfig,
    EvaluateConfig,
    MethodConfig,
    ModelConfig,
    Sampling,
)
from svdexp.training import SequentialLora

BOS = 1


@pytest.fixture
def adding(tokenizer: Any) -> Any:
    """The tokenizer, adding <s> of its own accord."""
    own = copy.deepcopy(tokenizer)
    own.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", BOS)])
    assert put_before(own) == [BOS]
    assert put_before(tokenizer) == []
    return own


def templated(tokenizer: Any, template: str) -> Any:
    """The tokenizer, adding what the template has."""
    own, words = copy.deepcopy(tokenizer), ["<s>", "</s>"]
    own.backend_tokenizer.post_processor = processors.TemplateProcessing(
        template, special_tokens=[(word, own.convert_tokens_to_ids(word)) for word in words]
    )
    return own


@pytest.mark.parametrize("bos", ["<s>", "</s>", None])
@pytest.mark.parametrize(
    ("template", "before"),
    [("$A", []), ("<s> $A", ["<s>"]), ("$A </s>", []), ("<s> $A </s>", ["<s>"]), ("</s> $A", ["</s>"])],
)
def test_what_stands_before_a_text_is_told_from_what_stands_behind_it(
    tokenizer: Any, bos: str | None, template: str, before: list[str]
) -> None:
    own = templated(tokenizer, template)
    own.bos_token = bos
    ids = own.convert_tokens_to_ids(before)
    assert put_before(own) == ids
    begins = resolve_bos(Bos.tokenizer, own)
    assert (begins.mode, begins.token) == ((Bos.every, ids[0]) if before else (Bos.none, None))


def test_of_several_tokens_before_a_text_the_last_is_taken_and_the_others_are_warned_of(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    own = templated(tokenizer, "</s> <s> $A")
    assert resolve_bos(Bos.tokenizer, own).token == BOS
    warn_without_bos(Bos.every, own, "eval.bos")
    assert not caplog.text
    warn_without_bos(Bos.tokenizer, own, "eval.bos")
    assert "begins texts with </s><s>, of which eval.bos gives <s> alone" in caplog.text


def config_of(path: Path, **options: Any) -> Config:
    part = CalibrationConfig(text="files", files=[str(path)], **{"samples": 5, "seq_len": 8, **options})
    part_of_eval = EvalConfig(name="tiny", texts=["files"], files=[str(path)], seq_len=8)
    return Config(ModelConfig(), method=MethodConfig(), calibration=part, eval=part_of_eval, ratio=0.8)


@pytest.mark.parametrize("sampling", Sampling)
def test_every_window_that_calibrates_begins_with_bos(adding: Any, text_file: Path, sampling: Sampling) -> None:
    windows = calibration_windows(config_of(text_file, sampling=sampling), adding)
    assert windows.shape == (5, 8)
    assert windows[:, 0].tolist() == [BOS] * 5
    assert not (windows[:, 1:] == BOS).any()


def test_none_does_where_the_tokenizer_adds_none(tokenizer: Any, text_file: Path) -> None:
    stream = tokenize(text_file.read_text(), tokenizer)
    assert torch.equal(calibration_windows(config_of(text_file), tokenizer), stream[:40].view(5, 8))


@pytest.mark.parametrize(
    ("mode", "begins"),
    [
        (Bos.none, [False] * 5),
        (Bos.start, [True] + [False] * 4),
        (Bos.tokenizer_start, [True] + [False] * 4),
        (Bos.every, [True] * 5),
    ],
)
def test_calibration_knows_the_places_that_evaluation_does(
    adding: Any, text_file: Path, mode: Bos, begins: list[bool]
) -> None:
    windows = calibration_windows(config_of(text_file, bos=mode), adding)
    assert (windows[:, 0] == BOS).tolist() == begins
    assert windows.shape == (5, 8)


def test_a_tokenizer_without_bos_is_no_place_for_one(tokenizer: Any, text_file: Path) -> None:
    without = copy.deepcopy(tokenizer)
    without.bos_token = None
    with pytest.raises(UserError, match=r"calibration\.bos=every, but the model's tokenizer has no beginning"):
        calibration_windows(config_of(text_file, bos=Bos.every), without)


@pytest.mark.parametrize("mode", [Bos.tokenizer, Bos.none])
def test_windows_that_train_begin_as_those_that_calibrate(adding: Any, text_file: Path, mode: Bos) -> None:
    part = SequentialLora(text="files", files=[str(text_file)], samples=4, seq_len=8)
    method = Method.__new__(Method)
    object.__setattr__(method, "training", {"lora": part})
    windows = training_windows(config_of(text_file, bos=mode), method, adding)["lora"]
    assert windows.shape == (4, 8)
    assert (windows[:, 0] == BOS).tolist() == [mode is Bos.tokenizer] * 4


def test_a_conversation_that_begins_with_bos_gets_no_second_one(adding: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "the rank", "output": "of a matrix"}\n' * 9)
    adding.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }} {% endfor %}"
    windows = calibration_windows(config_of(path, chat=True, samples=2, seq_len=6), adding)
    words = [adding.convert_ids_to_tokens(window) for window in windows]
    assert words[0] == ["<s>", "the", "rank", "of", "a", "matrix"]
    assert words[1][0] == "<s>"


@pytest.mark.parametrize("knob", ["calibration.bos", "eval.bos"])
def test_switching_it_off_is_warned_of(
    adding: Any, tokenizer: Any, caplog: pytest.LogCaptureFixture, knob: str
) -> None:
    warn_without_bos(Bos.none, tokenizer, knob)
    for mode in Bos:
        if mode is not Bos.none:
            warn_without_bos(mode, adding, knob)
    assert not caplog.text
    warn_without_bos(Bos.none, adding, knob)
    assert f"{knob}=none, but the model's tokenizer begins texts with <s>" in caplog.text


def test_an_evaluation_without_it_is_warned_of(adding: Any, text_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(text_file)
    evaluation_windows(config, adding)
    assert not caplog.text
    evaluation_windows(replace(config, eval=replace(config.eval, bos=Bos.none)), adding)
    assert caplog.text.count("eval.bos=none") == 1


def test_so_is_a_calibration(adding: Any, text_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    calibration_windows(config_of(text_file), adding)
    assert not caplog.text
    calibration_windows(config_of(text_file, bos=Bos.none), adding)
    assert caplog.text.count("calibration.bos=none") == 1


@pytest.mark.parametrize("mode", [Bos.tokenizer, Bos.none])
def test_an_evaluation_times_such_prompts(
    llama: PreTrainedModel, adding: Any, monkeypatch: pytest.MonkeyPatch, mode: Bos
) -> None:
    inputs = seen(llama, monkeypatch)
    part = EvalConfig(name="tiny", bos=mode, efficiency=EfficiencyConfig(prompt=8, generate=1, repeats=1))
    evaluate(llama, {}, EvaluateConfig(eval=part), Cache(None), "tiny", tokenizer=adding)
    assert {tokens[0] == BOS for tokens in inputs if len(tokens) == 8} == {mode is Bos.tokenizer}


def seen(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of every forward pass to come."""
    inputs: list[list[int]] = []
    forward = model.forward

    def spy(input_ids: torch.Tensor, **options: Any) -> Any:
        inputs.append(input_ids[0].tolist())
        return forward(input_ids, **options)

    monkeypatch.setattr(model, "forward", spy)
    return inputs


@pytest.mark.parametrize("mode", [Bos.tokenizer, Bos.none, Bos.start])
def test_prompts_begin_with_it(llama: PreTrainedModel, adding: Any, monkeypatch: pytest.MonkeyPatch, mode: Bos) -> None:
    inputs = seen(llama, monkeypatch)
    continuations(llama, adding, ["the rank", "<s> the rank </s>"], mode)
    prompts = [adding.convert_ids_to_tokens(tokens) for tokens in inputs if len(tokens) > 1]
    begun = [] if mode is Bos.none else ["<s>"]
    assert prompts == [[*begun, "the", "rank"], ["<s>", "the", "rank", "</s>"]]


def test_so_do_the_prompts_of_the_speed(llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = seen(llama, monkeypatch)
    shape = EfficiencyConfig(batch_size=2, prompt=8, generate=1, repeats=1)
    measure_efficiency(llama, shape, "tiny", first=BOS)
    prompts = [tokens for tokens in inputs if len(tokens) == 8]
    assert len(prompts) == 3  # warm-up, one repeat, and one that counts operations
    assert all(tokens[0] == BOS for tokens in prompts)


@pytest.mark.parametrize("mode", Bos)
def test_what_each_mode_comes_to(adding: Any, tokenizer: Any, mode: Bos) -> None:
    come = {Bos.tokenizer: Bos.every, Bos.tokenizer_start: Bos.start}
    assert resolve_bos(mode, adding).mode is come.get(mode, mode)
    assert resolve_bos(mode, tokenizer).mode is (Bos.none if mode in come else mode)
