"""Families that must work, and the table that says which do."""

from pathlib import Path

import pytest

from svdexp.bench.families import MARKS, WORKS, known, outcome, table

# Attention of several kinds, fused and transposed projections, experts of each kind, and blocks without attention.
MUST = ["llama", "gpt2", "gemma3_text", "falcon", "mamba", "recurrent_gemma", "gpt_oss", "deepseek_v3", "llama4_text"]
MUST += ["llava", "idefics3", "smolvlm", "qwen2_5_vl", "qwen3_vl", "internvl"]
DOCS = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("family", MUST)
def test_a_family_works(family: str) -> None:
    assert outcome(family) == WORKS


def test_what_cannot_work_is_refused_before_there_are_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", None)
    assert outcome("bart") == "model: bart is an encoder-decoder; svdexp compresses causal language models"


def test_the_table_has_every_family_once() -> None:
    lines = DOCS.read_text().split(MARKS[0])[1].split(MARKS[1])[0].splitlines()
    cells = [line.strip("| ").split(" | ", 1) for line in lines if line.startswith("| ") and "model_type" not in line]
    rows = dict(cells)
    assert list(rows) == known()
    assert {family: rows[family] for family in MUST} == dict.fromkeys(MUST, WORKS)
    counts = [line for line in table(rows).splitlines() if line.startswith("Of the ")]
    assert len(counts) == 2
    assert set(counts) <= set(lines)
