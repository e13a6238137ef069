"""Texts and windows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_python import PythonBackend

from svdexp.data import TEXTS, Split, check_text, cut_windows, read_text, tokenize
from svdexp.runtime.errors import UserError


def test_pydoc_splits_do_not_overlap_and_are_most_of_the_text() -> None:
    calibration, evaluation = read_text("pydoc", Split.calibration), read_text("pydoc", Split.evaluation)
    assert len(calibration) > 300_000
    assert len(calibration) == pytest.approx(4 * len(evaluation), rel=0.01)
    assert evaluation[:2000] not in calibration


def test_local_texts_calibrate_on_valid_and_evaluate_on_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stem in ("wikitext2", "ptb"):
        for split in ("valid", "test"):
            (tmp_path / f"{stem}.{split}.txt").write_text(f"{stem} {split}")
    monkeypatch.setenv("SVDEXP_DATA", str(tmp_path))
    assert read_text("wikitext2_local", Split.calibration) == "wikitext2 valid"
    assert read_text("ptb_local", Split.evaluation) == "ptb test"
    (tmp_path / "ptb.test.txt").unlink()
    with pytest.raises(UserError, match=r"ptb\.test\.txt"):
        check_text("ptb_local", Split.evaluation)
    monkeypatch.delenv("SVDEXP_DATA")
    with pytest.raises(UserError, match=r"\$SVDEXP_DATA"):
        check_text("wikitext2_local", Split.calibration)


def test_files_are_joined_and_bad_ones_named(tmp_path: Path) -> None:
    one, two, empty, binary = (tmp_path / name for name in ("one", "two", "empty", "binary"))
    one.write_text("first")
    two.write_text("second")
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe\x00\x80")
    assert read_text("files", Split.calibration, [str(one), str(two)]) == "first\n\nsecond"
    with pytest.raises(UserError, match="text files is empty"):
        read_text("files", Split.evaluation, [str(empty)])
    with pytest.raises(UserError, match=r"calibration\.files: .*binary cannot be read"):
        read_text("files", Split.calibration, [str(binary)])


def test_an_unknown_text_lists_the_choices() -> None:
    with pytest.raises(UserError, match=r"eval\.texts: no text is called 'wikitxt'") as refusal:
        check_text("wikitxt", Split.evaluation)
    assert all(name in str(refusal.value) for name in TEXTS)


@pytest.mark.parametrize("name", ["wikitext2", "ptb", "c4", "alpaca"])
def test_an_unreachable_hub_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be loaded from the hub"):
        read_text(name, Split.calibration)


def test_windows_are_contiguous_slices() -> None:
    stream = torch.arange(23)
    windows = cut_windows(stream, 5, None, knob="eval.windows")
    assert windows.tolist() == torch.arange(20).view(4, 5).tolist()
    assert torch.equal(cut_windows(stream, 5, 2, knob="eval.windows"), windows[:2])


def test_bos_begins_every_window() -> None:
    windows = cut_windows(torch.arange(10, 22), 4, 3, knob="eval.windows", bos=1)
    assert windows.tolist() == [[1, 10, 11, 12], [1, 13, 14, 15], [1, 16, 17, 18]]


def test_random_windows_are_slices_and_follow_the_seed() -> None:
    stream = torch.arange(100)
    draws = [
        cut_windows(stream, 7, 5, knob="calibration.samples", generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert all(torch.equal(w, torch.arange(7) + w[0]) for w in draws[0])


def test_too_little_text_says_which_knob() -> None:
    with pytest.raises(UserError, match=r"calibration: .* 9 tokens, too few for calibration\.samples=3 × .*seq_len=4"):
        cut_windows(torch.arange(9), 4, 3, knob="calibration.samples")
    with pytest.raises(UserError, match=r"one window of eval\.seq_len=10"):
        cut_windows(torch.arange(9), 10, None, knob="eval.windows_by_text.ptb")


VOCABULARY = {token: index for index, token in enumerate(["<unk>", *"abc<>unk"])}


class SlowCharacters(PythonBackend):
    """One token a character, in Python."""

    vocab_size = len(VOCABULARY)

    def __init__(self) -> None:
        super().__init__(unk_token="<unk>")

    def get_vocab(self) -> dict[str, int]:
        return VOCABULARY

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return VOCABULARY.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return list(VOCABULARY)[index]


def fast_characters() -> PreTrainedTokenizerFast:
    own = Tokenizer(models.BPE(VOCABULARY, [], unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>")


def test_special_tokens_in_a_text_are_text_for_fast_and_slow_tokenizers() -> None:
    for own in (fast_characters(), SlowCharacters()):
        end = own.convert_tokens_to_ids("<unk>")
        assert own("ab<unk>c", add_special_tokens=False)["input_ids"].count(end) == 1
        found = tokenize("ab<unk>c", own)
        assert own.convert_ids_to_tokens(found) == list("ab<unk>c")
        parsed = tokenize("ab<unk>c", own, parse_special=True)
        assert own.convert_ids_to_tokens(parsed) == ["a", "b", "<unk>", "c"]


def unigram(words: PreTokenizer | None) -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "<s>", *"▁abc<>unks/", "ab", "▁ab"]
    own = Tokenizer(models.Unigram([(piece, -float(index)) for index, piece in enumerate(pieces)], unk_id=0))
    own.pre_tokenizer = words
    own.add_tokens([AddedToken("cc", special=False, normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", bos_token="<s>", pad_token="<pad>")


def word_level() -> PreTrainedTokenizerFast:
    own = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "a": 2}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", bos_token="<s>")


@pytest.mark.parametrize("words", [None, pre_tokenizers.Metaspace()], ids=["bare", "words"])
def test_special_tokens_are_text_for_models_that_have_them_as_words(words: PreTokenizer | None) -> None:
    own = unigram(words)
    tokens = own.convert_ids_to_tokens(tokenize("ab<unk>cc<s>c x", own))
    found = [token for token in tokens if token != "▁"]
    assert found[found.index("<") :][:7] == [*"<unk>", "cc", "<"]  # other added tokens are what they were
    assert found.count("<unk>") == 1  # of the unknown letter
    assert "<s>" not in found
    plain = "ab c a cc b"
    assert tokenize(plain, own).tolist() == own(plain, add_special_tokens=False)["input_ids"]
    assert "<s>" in own.convert_ids_to_tokens(tokenize("ab<s>", own, parse_special=True))


def test_a_word_that_is_a_special_token_is_an_unknown_one() -> None:
    own = word_level()
    assert tokenize("a <s> a x", own).tolist() == [2, 0, 2, 0]
    assert tokenize("a <s> a x", own, parse_special=True).tolist() == [2, 1, 2, 0]
