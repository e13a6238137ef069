"""Data sets as datasets.load_dataset takes them, from folders and files: no hub is asked."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from svdexp.data import Beginning, Collection, Excerpt, Reading, Split, dataset_of, files_of, read_text, split_of
from svdexp.data.mixture import apportioned, interleaved
from svdexp.evaluation import passage
from svdexp.runtime.errors import UserError
from svdexp.schema import Bos, CalibrationConfig, EvalConfig
from tests.conftest import WORDS

ROWS = ["the rank of a matrix", "is the number", "of its independent rows"]
NO_BOS = Beginning(Bos.none, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One split of two rows and one of three, as a data set has them on disk."""
    data = tmp_path / "set"
    data.mkdir()
    (data / "train.jsonl").write_text("\n".join(json.dumps({"text": row, "body": row.upper()}) for row in ROWS[:2]))
    (data / "test.jsonl").write_text("\n".join(json.dumps({"text": row, "body": row.upper()}) for row in ROWS))
    return data


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_folder_has_splits_and_columns(folder: Path) -> None:
    assert Collection(str(folder), None, "train", "text").rows("calibration") == ROWS[:2]
    assert Collection(str(folder), None, "test[1:]", "body").rows("eval") == [row.upper() for row in ROWS[1:]]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv", "txt"])
def test_one_file_is_one_split(ending: str, tmp_path: Path) -> None:
    file, table = tmp_path / f"rows.{ending}", pd.DataFrame({"text": ROWS})
    match ending:
        case "jsonl":
            table.to_json(file, orient="records", lines=True)
        case "json":
            file.write_text(json.dumps([{"text": row} for row in ROWS]))
        case "parquet":
            table.to_parquet(file)
        case "csv":
            table.to_csv(file, index=False)
        case "txt":
            file.write_text("\n".join(ROWS))
    assert Collection(str(file), None, "test", "text").rows("eval") == ROWS
    assert Collection(str(file), None, "test", "text").files == [file]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"column": "body2"}, r"calibration\.column=body2 is no column of .*, which has text, body$"),
        ({"split": "validation"}, r"calibration\.dataset=.* cannot be loaded: .*validation"),
        ({"path": "somebody/nothing"}, r"calibration\.dataset=somebody/nothing cannot be loaded"),
    ],
)
def test_mistakes_are_sentences(wrong: dict[str, str], sentence: str, folder: Path) -> None:
    asked = {"path": str(folder), "subset": None, "split": "train", "column": "text"} | wrong
    with pytest.raises(UserError, match=sentence):
        Collection(**asked).rows("calibration")  # type: ignore[arg-type]


def test_columns_of_numbers_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "n.jsonl").write_text('{"text": 1}\n')
    with pytest.raises(UserError, match=r"eval\.column=text of .* holds other things than text"):
        Collection(str(tmp_path / "n.jsonl"), None, "train", "text").rows("eval")


def test_what_can_be_known_is_known_before_reading(tmp_path: Path) -> None:
    (tmp_path / "a.doc").write_text("x")
    for path, sentence in (("./nowhere", "is no file and no folder"), (str(tmp_path / "a.doc"), "ends in none of")):
        with pytest.raises(UserError, match=rf"calibration\.dataset=.*{sentence}"):
            Excerpt.of(CalibrationConfig("hub", dataset=path)).check()
    Excerpt.of(CalibrationConfig("hub", dataset="OWNER/NAME")).check()


def test_calibration_and_evaluation_read_their_splits(folder: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    part = CalibrationConfig("hub", dataset=str(folder), samples=2, seq_len=4)
    excerpt = Excerpt.of(part)
    expected = tokenizer(" ".join(ROWS[:2]), add_special_tokens=False)["input_ids"][:8]
    assert excerpt.windows(tokenizer, NO_BOS).flatten().tolist() == expected
    assert excerpt.read_from() == sorted(folder.iterdir())
    assert excerpt.whole_files() == {"calibration.text=hub": []}
    (folder / ".git").mkdir()
    (folder / ".git" / "index").touch()  # which changes where no row does
    assert excerpt.read_from() == sorted(path for path in folder.iterdir() if path.name != ".git")
    asked = EvalConfig("mine", texts=["hub"], dataset=str(folder), seq_len=4, bos=Bos.none)
    found = passage("hub", asked, tokenizer)
    assert (found.protocol.dataset, found.protocol.split, found.protocol.rows) == (str(folder), "test", 3)
    other = EvalConfig("mine", texts=["hub"], dataset=str(folder), split_by_text={"hub": "train"}, seq_len=4)
    assert passage("hub", other, tokenizer).protocol.rows == 2


def test_the_hub_has_no_local_files() -> None:
    reading = Reading(collection=Collection("OWNER/NAME", "one", "train", "text"))
    assert files_of("hub", Split.evaluation, (), reading) == []
    assert dataset_of("hub", (), reading) == "OWNER/NAME one"
    assert split_of("hub", Split.calibration, reading) == "train"
    with pytest.raises(UserError, match=r"eval\.texts=\[hub\] needs eval\.dataset"):
        read_text("hub", Split.evaluation)


def test_shares_become_whole_windows() -> None:
    assert apportioned([1, 1], 5) == [3, 2]
    assert apportioned([0.5, 0.3, 0.2], 10) == [5, 3, 2]
    assert apportioned([5, 1, 1], 3) == [2, 1, 0]


def test_windows_of_a_mixture_come_in_turn() -> None:
    parts = [torch.zeros(4, 1), torch.ones(2, 1)]
    assert interleaved(parts).flatten().tolist() == [0, 1, 0, 0, 1, 0]


def test_a_mixture_reads_its_parts(folder: Path, text_file: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    part = CalibrationConfig(
        "mixture",
        files=[str(text_file)],
        dataset=str(folder),
        parts=["files", "hub"],
        shares=[3, 1],
        samples=4,
        seq_len=8,
    )
    excerpt = Excerpt.of(part)
    excerpt.check()
    windows = excerpt.windows(tokenizer, NO_BOS)
    alone = [Excerpt.of(CalibrationConfig("files", files=[str(text_file)], samples=3, seq_len=8))]
    alone.append(Excerpt.of(CalibrationConfig("hub", dataset=str(folder), samples=1, seq_len=8)))
    assert torch.equal(windows, interleaved([one.windows(tokenizer, NO_BOS) for one in alone]))
    assert excerpt.whole_files() == {"calibration.files": [text_file], "calibration.text=hub": []}
    assert excerpt.read_from() == [text_file, *sorted(folder.iterdir())]
    assert len(WORDS) > 8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"text": "mixture"}, "calibration=mixture and calibration.parts"),
        ({"text": "pydoc", "parts": ["c4"]}, "calibration=mixture and calibration.parts"),
        ({"text": "mixture", "parts": ["mixture"]}, "a mixture is no part of one"),
        ({"text": "mixture", "parts": ["c4", "c4"]}, "names a text twice"),
        ({"text": "mixture", "parts": ["c4"], "shares": [0]}, r"calibration\.shares must be above 0"),
        ({"text": "mixture", "parts": ["c4"], "shares": [1, 2]}, "has 2 numbers for the 1 texts"),
        ({"text": "mixture", "parts": ["files"]}, "calibration=files and calibration.files"),
        ({"text": "hub"}, "calibration=hub and calibration.dataset"),
        ({"text": "c4", "dataset": "a/b"}, "calibration=hub and calibration.dataset"),
    ],
)
def test_what_belongs_together(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        CalibrationConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"eval\.texts=\[hub\] and eval\.dataset"):
        EvalConfig("mine", texts=["hub"])
