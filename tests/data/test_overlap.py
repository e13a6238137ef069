"""What calibrates or trains does not evaluate: equal files are refused, shared passages are warned of."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from svdexp.allocation import Uniform
from svdexp.data.overlap import PASSAGE, refuse_equal_files, same, windows_that_share
from svdexp.factorisation import Identity
from svdexp.method import Method
from svdexp.runs.checks import check_inputs, warn_of_shared_passages
from svdexp.runs.inputs import read
from svdexp.runtime.errors import UserError
from svdexp.schema import CalibrationConfig, Config, EvalConfig, MethodConfig, ModelConfig
from svdexp.storage import FactorStorage
from svdexp.training import SequentialLora


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name, content in {"a": "one text", "copy": "one text", "alike": "two text", "empty": "", "void": ""}.items():
        (tmp_path / f"{name}.txt").write_text(content)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    return tmp_path


@pytest.mark.parametrize(
    ("other", "equal"), [("a", True), ("copy", True), ("link", True), ("alike", False), ("empty", False)]
)
def test_equal_is_one_file_or_equal_contents(files: Path, other: str, equal: bool) -> None:
    assert same(files / "a.txt", files / f"{other}.txt") == equal


def test_empty_files_are_told_apart_by_their_place(files: Path) -> None:
    assert not same(files / "empty.txt", files / "void.txt")


def test_the_sentence_names_both_keys(files: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^calibration\.files has {files}/a\.txt, {files}/copy\.txt under eval\.files: "
    ):
        refuse_equal_files({"calibration.files": [files / "a.txt"]}, {"eval.files": [files / "copy.txt"]})
    with pytest.raises(UserError, match=rf"^calibration\.files and eval\.files share {files}/a\.txt: "):
        refuse_equal_files({"calibration.files": [files / "a.txt"]}, {"eval.files": [files / "a.txt"]})


def config_of(model: Path, calibration: list[str], evaluation: list[str], texts: list[str] | None = None) -> Config:
    part = EvalConfig(name="tiny", texts=texts or ["files"], files=evaluation, seq_len=8)
    own = CalibrationConfig(text="files", files=calibration)
    return Config(ModelConfig("tiny", str(model)), method=MethodConfig(), calibration=own, eval=part, ratio=0.8)


def method_with(**training: Any) -> Method:
    return Method("svd", Identity(), Uniform(), FactorStorage(), training=training)


def test_a_run_refuses_it_before_anything_is_loaded(files: Path, model_folder: Path) -> None:
    config = config_of(model_folder, [str(files / "alike.txt"), str(files / "a.txt")], [str(files / "link.txt")])
    with pytest.raises(UserError, match=r"calibration\.files has .*a\.txt, .*link\.txt under eval\.files"):
        check_inputs(config, method_with())
    check_inputs(config_of(model_folder, [str(files / "alike.txt")], [str(files / "a.txt")]), method_with())


def test_so_it_does_for_what_trains(files: Path, model_folder: Path) -> None:
    config = config_of(model_folder, [str(files / "alike.txt")], [str(files / "copy.txt")])
    lora = SequentialLora(text="files", files=[str(files / "a.txt")])
    with pytest.raises(UserError, match=r"method\.training\.lora\.files has .*a\.txt, .*copy\.txt under eval\.files"):
        check_inputs(config, method_with(lora=lora))


def test_a_local_text_is_a_file_too(files: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVDEXP_DATA", str(files))
    (files / "ptb.test.txt").write_text("one text")
    config = config_of(model_folder, [str(files / "a.txt")], [], ["ptb_local"])
    with pytest.raises(
        UserError, match=r"calibration\.files has .*a\.txt, .*ptb\.test\.txt under eval\.texts \(ptb_local\)"
    ):
        check_inputs(config, method_with())


def test_texts_with_splits_of_their_own_may_do_both(model_folder: Path) -> None:
    own = CalibrationConfig(text="pydoc")
    part = EvalConfig(name="tiny", texts=["pydoc"], seq_len=8)
    config = Config(
        ModelConfig("tiny", str(model_folder)), method=MethodConfig(), calibration=own, eval=part, ratio=0.8
    )
    check_inputs(config, method_with())


def test_a_run_warns_of_files_that_are_equal_in_part(
    text_file: Path, model_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "longer.txt").write_text(text_file.read_text() + " the end")
    part = EvalConfig(name="tiny", texts=["files"], files=[str(tmp_path / "longer.txt")], windows=3, seq_len=64)
    own = CalibrationConfig(text="files", files=[str(text_file)], samples=2, seq_len=64)
    model = ModelConfig("tiny", str(model_folder))
    config = Config(model, method=MethodConfig(), calibration=own, eval=part, ratio=0.8, cache=None)
    check_inputs(config, method_with())
    read(config, method_with(), torch.device("cpu"))
    assert "eval.texts, files: 2 of 3 windows hold passages of 64 or more tokens that calibration holds" in caplog.text


def windows_of(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(1000, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("length", "expected"), [(PASSAGE, 1), (PASSAGE - 1, 0)])
@pytest.mark.parametrize(("mine", "theirs"), [(0, 0), (17, 3), (36, 64)])
def test_a_shared_passage_is_found_wherever_it_stands(length: int, expected: int, mine: int, theirs: int) -> None:
    asked, learnt = windows_of(1, 5, 100), windows_of(2, 7, 128)
    assert windows_that_share(asked, learnt) == 0
    learnt[4, theirs : theirs + length] = asked[2, mine : mine + length]
    assert windows_that_share(asked, learnt) == expected


def test_every_window_that_shares_counts_once() -> None:
    asked, learnt = windows_of(1, 5, 100), windows_of(2, 7, 128)
    learnt[0, :100] = asked[1]
    learnt[3, 28:] = asked[1]
    learnt[5, 10:90] = asked[4, 20:]
    assert windows_that_share(asked, learnt) == 2


def test_windows_shorter_than_a_passage_share_none() -> None:
    assert windows_that_share(windows_of(1, 2, 32), windows_of(1, 2, 32)) == 0


def test_shared_passages_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    asked = {"files": windows_of(1, 5, 100), "pydoc": windows_of(3, 5, 100)}
    learnt = {"calibration": windows_of(2, 7, 128), "method.training.lora": windows_of(4, 7, 128)}
    warn_of_shared_passages(asked, learnt)
    assert not caplog.text
    learnt["calibration"][0, :100] = asked["files"][1]
    warn_of_shared_passages(asked, learnt)
    (line,) = caplog.messages
    assert re.match(
        r"eval\.texts, files: 1 of 5 windows hold passages of 64 or more tokens that calibration holds", line
    )


def test_one_split_does_not_calibrate_and_evaluate(model_folder: Path, files: Path) -> None:
    def config(dataset: str, *splits: str) -> Config:
        own = CalibrationConfig("hub", dataset=dataset, split=splits[0])
        part = EvalConfig("tiny", texts=["hub"], dataset=dataset, split=splits[1], seq_len=8)
        return Config(ModelConfig("t", str(model_folder)), method=MethodConfig(), calibration=own, eval=part, ratio=0.8)

    with pytest.raises(UserError, match=r"calibration\.split and eval\.split are both train"):
        check_inputs(config(str(files), "train", "train"), method_with())
    by_text = config(str(files), "train", "test")
    by_text.eval.split_by_text["hub"] = "train"
    with pytest.raises(UserError, match=r"calibration\.split and eval\.split_by_text\.hub are both train of"):
        check_inputs(by_text, method_with())
    check_inputs(config(str(files), "train", "test"), method_with())
    with pytest.raises(UserError, match=r"calibration\.text=hub and eval\.texts \(hub\) share"):
        check_inputs(config(str(files / "a.txt"), "train", "test"), method_with())
    check_inputs(config(str(files / "a.txt"), "train[:1]", "train[1:]"), method_with())
