"""What is evaluated: BOS, stride, splits, separators and draws, and the protocol that says so."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from svdexp.evaluation import check_texts, evaluate, passage
from svdexp.runs.inputs import evaluation_windows
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import Bos, Config, Cut, EvalConfig, MethodConfig, ModelConfig, SpecialTokens
from tests.conftest import WORDS

BOS = 1
SPLITS = ("train", "validation", "test")


def part_of(path: Path | None = None, **options: Any) -> EvalConfig:
    texts = {"texts": ["files"], "files": [str(path)]} if path else {}
    return EvalConfig(**{"name": "tiny", "seq_len": 16, **texts, **options})


@pytest.fixture
def adding(tokenizer: Any, tmp_path: Path) -> Any:
    """The tokenizer, adding <s> of its own accord, as Llama's does."""
    tokenizer.save_pretrained(tmp_path / "adding")
    own = type(tokenizer).from_pretrained(tmp_path / "adding")
    own.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    assert own("the rank")["input_ids"][0] == BOS
    return own


@pytest.fixture
def stream(tokenizer: Any, text_file: Path) -> torch.Tensor:
    return torch.tensor(tokenizer(text_file.read_text())["input_ids"])


def test_without_bos_even_a_tokenizer_that_adds_one_adds_none(
    adding: Any, stream: torch.Tensor, text_file: Path
) -> None:
    found = passage("files", part_of(text_file, bos=Bos.none), adding)
    assert torch.equal(found.windows, stream.view(250, 16))
    assert found.scored.sum() == found.protocol.tokens == 250 * 15


@pytest.mark.parametrize("mode", [Bos.start, Bos.tokenizer_start])
def test_one_bos_at_the_start_is_the_tokenizers_plain_call(adding: Any, text_file: Path, mode: Bos) -> None:
    plain = torch.tensor(adding(text_file.read_text())["input_ids"])
    found = passage("files", part_of(text_file, bos=mode), adding)
    assert torch.equal(found.windows, plain[:4000].view(250, 16))
    assert (found.windows == BOS).sum() == 1
    assert found.protocol.bos == "start"


@pytest.mark.parametrize("mode", [Bos.tokenizer, Bos.tokenizer_start])
def test_the_tokenizers_own_choice_may_be_none(
    tokenizer: Any, stream: torch.Tensor, text_file: Path, mode: Bos
) -> None:
    found = passage("files", part_of(text_file, bos=mode), tokenizer)
    assert torch.equal(found.windows, stream.view(250, 16))
    assert found.protocol.bos == "none"


@pytest.mark.parametrize("options", [{"bos": Bos.every}, {"bos": Bos.tokenizer}, {}], ids=str)
def test_bos_in_every_window_makes_all_text_count(
    adding: Any, stream: torch.Tensor, text_file: Path, options: dict[str, Any]
) -> None:
    """Also by default, where the tokenizer adds it."""
    found = passage("files", part_of(text_file, **options), adding)
    assert found.protocol.bos == "every"
    assert torch.equal(found.windows[:, 1:], stream[: 266 * 15].view(266, 15))
    assert found.windows[:, 0].tolist() == [BOS] * 266
    assert found.scored[:, 1:].all()
    assert (found.protocol.stride, found.protocol.tokens) == (15, 266 * 15)


@pytest.mark.parametrize("mode", [Bos.every, Bos.start])
def test_bos_that_is_not_there_is_one_sentence(tokenizer: Any, text_file: Path, mode: Bos, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    without = type(tokenizer).from_pretrained(tmp_path)
    without.bos_token = None
    with pytest.raises(UserError, match=f"eval.bos={mode.value}, but the model's tokenizer has no"):
        passage("files", part_of(text_file, bos=mode), without)
    assert passage("files", part_of(text_file, bos=Bos.tokenizer), without).protocol.bos == "none"


@pytest.mark.parametrize("bos", [Bos.none, Bos.every, Bos.start])
def test_overlapping_windows_count_every_token_once(
    tokenizer: Any, stream: torch.Tensor, text_file: Path, bos: Bos
) -> None:
    found = passage("files", part_of(text_file, bos=bos, stride=4, windows=9), tokenizer)
    body = 15 if bos is Bos.every else 16
    text = torch.cat([torch.tensor([BOS]), stream]) if bos is Bos.start else stream
    assert torch.equal(found.windows[:, -body:], text[torch.arange(9)[:, None] * 4 + torch.arange(body)])
    first = 0 if bos is Bos.every else 1
    assert torch.equal(found.windows[found.scored], text[first : body + 8 * 4])
    assert (found.protocol.stride, found.protocol.windows) == (4, 9)


def test_the_protocol_says_everything(tokenizer: Any, text_file: Path) -> None:
    part = part_of(text_file, windows=5, stride=8, separator=" ")
    assert vars(passage("files", part, tokenizer).protocol) == {
        "preset": "tiny",
        "dataset": str(text_file),
        "split": "all",
        "rows": 1,
        "separator": " ",
        "cut": "contiguous",
        "seq_len": 16,
        "stride": 8,
        "bos": "none",
        "special_tokens": "text",
        "windows": 5,
        "tokens": 15 + 4 * 8,
    }


def test_the_cache_knows_all_that_changes_the_value_and_nothing_else(
    llama: Any, tokenizer: Any, text_file: Path, tmp_path: Path
) -> None:
    cache = Cache(tmp_path)

    def figures(**options: Any) -> float:
        config = Config(ModelConfig(), method=MethodConfig(), eval=part_of(text_file, windows=4, **options), ratio=0.8)
        found: float = evaluate(llama, evaluation_windows(config, tokenizer), config, cache, "dense")["ppl/files"]
        return found

    values = {figures(**options) for options in ({}, {"stride": 8}, {"bos": Bos.every}, {"bos": Bos.start})}
    assert len(values) == 4
    assert len(list((tmp_path / "perplexity").iterdir())) == 4
    assert figures(batch_size=3) in values
    assert len(list((tmp_path / "perplexity").iterdir())) == 4
    llama.set_attn_implementation("eager")
    figures()
    assert len(list((tmp_path / "perplexity").iterdir())) == 5
    llama.model.norm.weight.mul_(2)
    assert figures() not in values


# -- the hub's data sets, from local folders in the hub's layout


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders OWNER/NAME that the data sets' own library reads instead of the hub."""
    import datasets

    load = datasets.load_dataset

    def local(path: str, name: str | None, split: str, revision: str | None = None, **options: Any) -> Any:
        assert revision == ("refs/convert/parquet" if "ptb" in path else None)
        return load(str(tmp_path / path), name, split=split, cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", local)
    for split in SPLITS:
        write_parquet(tmp_path / f"Salesforce/wikitext/wikitext-2-raw-v1/{split}-00000-of-00001.parquet", "text", split)
        write_parquet(tmp_path / f"ptb-text-only/ptb_text_only/penn_treebank/{split}/0000.parquet", "sentence", split)
    for dataset, config, files in (
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "{}-*"),
        ("ptb-text-only/ptb_text_only", "penn_treebank", "{}/*"),
    ):
        parts = "".join(
            f"  - split: {split}\n    path: {config}/{files.format(split)}\n"
            for split in ("train", "validation", "test")
        )
        readme = f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{parts}---\n"
        (tmp_path / dataset / "README.md").write_text(readme)
    for split, shards in (("train", "01024"), ("validation", "00008")):
        path = tmp_path / f"allenai/c4/en/c4-{split}.00000-of-{shards}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        pages = [{"text": row, "url": "u", "timestamp": "t"} for row in rows_of(split)]
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, pages)).encode()))
    return tmp_path


def rows_of(split: str) -> list[str]:
    """200 rows; every tenth has thirty words, the others one, which tells splits apart."""
    word = {"train": "the", "validation": "rank", "test": "matrix"}[split]
    return [" ".join(WORDS[i % 12 :] + [word] * 30) if i % 10 == 0 else word for i in range(200)]


def write_parquet(path: Path, column: str, split: str) -> None:
    from datasets import Dataset

    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({column: rows_of(split)}).to_parquet(path)


@pytest.mark.parametrize(
    ("name", "split", "default"),
    [("wikitext2", None, "test"), ("ptb", "validation", "test"), ("c4", None, "validation")],
)
def test_hub_texts_are_read_by_split_separator_and_rows(
    hub: Path, tokenizer: Any, name: str, split: str | None, default: str
) -> None:
    options = {"split_by_text": {name: split}} if split else {}
    expected = split or default
    found = passage(name, part_of(texts=[name], **options), tokenizer)
    assert found.protocol.split == expected
    stream = torch.tensor(tokenizer(" ".join(rows_of(expected)))["input_ids"])
    assert torch.equal(found.windows.flatten(), stream[: found.windows.numel()])  # words do not see the separator

    class Characters:
        bos_token_id = None

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            return {"input_ids": [ord(character) for character in text]}

    fewer = part_of(texts=[name], rows_by_text={name: 5}, separator_by_text={name: "\n"}, **options)
    found = passage(name, fewer, Characters())
    text = "\n".join(rows_of(expected)[:5])
    assert "".join(map(chr, found.windows.flatten().tolist())) == text[: len(text) // 16 * 16]
    assert (found.protocol.rows, found.protocol.separator) == (5, "\n")
    with pytest.raises(UserError, match=rf"eval\.rows_by_text\.{name}=999, but the text has 200 rows"):
        passage(name, part_of(texts=[name], rows_by_text={name: 999}), tokenizer)


def test_pieces_are_drawn_from_anywhere_and_again_the_same(hub: Path, adding: Any) -> None:
    part = part_of(texts=["ptb"], windows=20, cut_by_text={"ptb": Cut.pieces}, bos=Bos.tokenizer_start)
    found, again = passage("ptb", part, adding), passage("ptb", part, adding)
    assert torch.equal(found.windows, again.windows)
    assert found.windows.shape == (20, 16)
    assert len({tuple(row) for row in found.windows.tolist()}) > 10
    assert found.scored[:, 1:].all()
    assert found.protocol.stride is None
    assert (found.protocol.cut, found.protocol.tokens) == ("pieces", 20 * 15)


def test_rows_are_drawn_among_those_that_are_long_enough(hub: Path, adding: Any) -> None:
    part = part_of(texts=["c4"], windows=20, cut_by_text={"c4": Cut.rows}, bos=Bos.tokenizer_start)
    long = {" ".join(row.split()) for row in rows_of("validation") if len(row.split()) > 16}
    for window in passage("c4", part, adding).windows:
        words = [token for token in adding.convert_ids_to_tokens(window) if token != "<s>"]
        assert any(" ".join(words) in row for row in long)
    with pytest.raises(UserError, match=r"no row of the text has 59 tokens"):
        passage("c4", part_of(texts=["c4"], windows=2, cut_by_text={"c4": Cut.rows}, seq_len=60), adding)


@pytest.mark.parametrize("cut", [Cut.pieces, Cut.rows])
def test_drawn_windows_begin_with_bos_as_others_do(hub: Path, adding: Any, cut: Cut) -> None:
    found = passage("ptb", part_of(texts=["ptb"], windows=20, cut_by_text={"ptb": cut}, seq_len=8), adding)
    assert found.windows.shape == (20, 8)
    assert found.windows[:, 0].tolist() == [BOS] * 20
    assert not (found.windows[:, 1:] == BOS).any()
    assert (found.protocol.bos, found.protocol.tokens) == ("every", 20 * 7)


def test_a_stride_that_leaves_no_room_for_bos_is_refused(adding: Any, tokenizer: Any, text_file: Path) -> None:
    part = part_of(text_file, stride=16)
    assert passage("files", part, tokenizer).protocol.stride == 16
    with pytest.raises(UserError, match=r"eval\.stride=16 would leave out tokens between windows of 15"):
        passage("files", part, adding)


def test_special_tokens_that_are_written_out_are_text_unless_parsed(adding: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("the </s> rank " * 40)
    end = adding.eos_token_id
    text = passage("files", part_of(tmp_path / "text"), adding)
    parsed = passage("files", part_of(tmp_path / "text", special_tokens=SpecialTokens.parsed), adding)
    assert not (text.windows == end).any()
    assert (parsed.windows == end).sum() == parsed.windows[:, 1:].numel() // 3
    assert (text.protocol.special_tokens, parsed.protocol.special_tokens) == ("text", "parsed")
    assert adding("the </s>")["input_ids"] == [BOS, *adding.convert_tokens_to_ids(["the", "</s>"])]  # as before


def test_pieces_that_are_too_short_are_refused(adding: Any, text_file: Path, tmp_path: Path) -> None:
    cut = {"cut_by_text": {"files": Cut.pieces}, "windows": 3}
    with pytest.raises(UserError, match=r"characters, too few for pieces of 99998 tokens"):
        passage("files", part_of(text_file, seq_len=99999, **cut), adding)
    (tmp_path / "wide").write_text("independent" * 100)
    with pytest.raises(UserError, match=r"none of 3 pieces of the text has 15 tokens"):
        passage("files", part_of(tmp_path / "wide", **cut), adding)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split_by_text": {"ptb": "train"}}, r"eval\.split_by_text\.ptb: train is no split that evaluates; .* test"),
        ({"split_by_text": {"ptbb": "test"}}, r"eval\.split_by_text: no text is called 'ptbb'"),
        ({"separator_by_text": {"c5": " "}}, r"eval\.separator_by_text: no text is called 'c5'"),
    ],
)
def test_mistakes_are_found_before_anything_is_read(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_texts(part_of(texts=["ptb"], **options))
