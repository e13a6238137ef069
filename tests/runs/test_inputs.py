"""Where a run learns which token stands for an image."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from svdexp.runs.inputs import image_token, viewer_of
from svdexp.runtime.errors import UserError
from svdexp.schema import ModelConfig
from tests.support.vision import tiny_llava


def test_config_and_processor_are_asked_in_turn(tokenizer: Any) -> None:
    word = tokenizer.convert_ids_to_tokens(7)
    config, processor = SimpleNamespace(image_token_id=5, image_token_index=6), SimpleNamespace(image_token_id=8)
    assert image_token(config, processor, tokenizer) == 5
    assert image_token(SimpleNamespace(image_token_index=6), processor, tokenizer) == 6
    assert image_token(SimpleNamespace(image_token_index=-200), processor, tokenizer) == 8
    assert image_token(SimpleNamespace(), SimpleNamespace(image_token=word), tokenizer) == 7
    assert image_token(SimpleNamespace(), SimpleNamespace(image_token="no such token"), tokenizer) is None


def test_a_config_that_names_none_is_helped_by_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_llava(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path)
    monkeypatch.setattr("svdexp.runs.inputs.load_config", lambda model: SimpleNamespace())
    viewer = viewer_of(ModelConfig(path=str(tmp_path)), tokenizer)
    assert viewer._token == tokenizer.convert_tokens_to_ids("<image>")
    monkeypatch.setattr("svdexp.runs.inputs.image_token", lambda *args: None)
    with pytest.raises(UserError, match=r"neither config\.json nor processor says"):
        viewer_of(ModelConfig(path=str(tmp_path)), tokenizer)
