"""The card of a model: figures of what the folder holds, and no words of others that could act on the page."""

from typing import Any

import pytest

from svdexp.export.card import card
from svdexp.export.origin import Origin
from svdexp.schema import Format

RESULTS: dict[str, Any] = {
    **{"method": "svd_llm", "weighting": "input_moment", "weighting_options": {}, "allocation": "uniform"},
    **{
        "allocation_options": {"rank_align": 8},
        "update": None,
        "storage": "gptq4",
        "storage_options": {"code_bits": 4},
    },
    **{"ratio": 0.5, "achieved_ratio": 0.4987, "seed": 0, "commit": None, "versions": {"torch": "2"}, "targets": {}},
    "calibration": {"text": "files", "samples": 4, "seq_len": 32, "sampling": "first"},
    **{"command": "ratio=0.5 'a|b'", "dtype": "float32", "device": "cpu"},
    **{"ppl/files": 12.0, "ppl_dense/files": 10.0, "acc/piqa": 0.5, "acc_dense/piqa": 0.6},
    **{"acc_stderr/piqa": 0.01, "acc_stderr_dense/piqa": 0.01},
    **{"tokens_per_second/decode": 20.0, "tokens_per_second/decode_dense": 40.0},
    **{"bytes": 5_000_000, "bytes_dense": 10_000_000, "params": 5, "params_dense": 10},
    **{"flops_per_token": 6, "flops_per_token_dense": 12},
}
MEASURED = ("bytes", "params", "tokens_per_second/decode", "flops_per_token")


def written(form: Format = Format.hf, name: str = "tiny", **changes: Any) -> str:
    return card(Origin(name), {"model.layers.0.up": 2}, {"model.layers.0.up": (8, 4)}, RESULTS | changes, form)


@pytest.mark.parametrize("form", Format)
def test_figures_are_those_of_what_the_folder_holds(form: Format) -> None:
    text = written(form)
    assert "| ppl/files | 10.00 | 12.00 | 1.200 × |" in text
    assert "| acc/piqa | 0.600 ± 0.010 | 0.500 ± 0.010 | -0.100 |" in text
    for key in MEASURED:
        assert (f"| {key} |" in text) == (form is Format.hf)
    assert ("multiplied out to its own size again." in text) == (form is Format.dense)
    assert ("speed and size" in text) == (form is not Format.hf)


def test_parts_are_called_by_their_choices() -> None:
    text = written()
    for row in ("| weighting | input_moment |", "| allocation | uniform(rank_align=8) |", "| storage | gptq4 |"):
        assert row in text
    assert "| update |" not in text


def test_it_says_where_bos_stands_and_what_special_tokens_are() -> None:
    how = {"windows": 4, "seq_len": 32, "split": "test", "bos": "every", "special_tokens": "text"}
    text = written(calibration_bos="every", protocol={"ptb": how})
    assert "| BOS in its windows | every |" in text
    assert "`ppl/ptb`: 4 windows of 32 tokens, test, BOS every." in text
    parsed = written(protocol={"ptb": how | {"bos": "start", "special_tokens": "parsed"}})
    assert "`ppl/ptb`: 4 windows of 32 tokens, test, BOS start, special tokens parsed." in parsed
    assert "BOS in its windows" not in parsed


def test_a_record_of_an_older_version_is_read() -> None:
    older = {key: value for key, value in RESULTS.items() if not key.endswith("_options")}
    text = card(None, {}, {}, older | {"storage": "PivotStorage", "weighting": "Diagonal(alpha=0.5, scale=abs_max)"})
    assert "| storage | pivot |" in text
    assert "| weighting | diagonal(scale=abs_max) |" in text


def test_words_of_others_do_nothing() -> None:
    bad = "<script>x</script>\n# Title"
    text = written(
        name=bad,
        command="ratio=0.5\n```\n# Title",
        device=bad,
        calibration={"text": bad, "samples": 1, "seq_len": 1, "sampling": "first"},
    )
    assert "<script>" not in text
    titles = [line for line in text.splitlines() if line.startswith("# ")]
    assert titles == ["# &lt;script&gt;x&lt;/script&gt; # Title, compressed", "# Title"]
    assert "````\npython -m svdexp ratio=0.5\n```\n# Title\n````" in text


def test_nan_and_infinity_have_a_place() -> None:
    text = written(**{"ppl/files": float("nan"), "ppl_dense/files": float("inf"), "params_dense": 0})
    assert "| ppl/files | inf | nan | nan × |" in text
    assert "| params | 0 | 5 |  |" in text


def test_without_a_command_there_is_none() -> None:
    assert "python -m svdexp" not in written(command=None)
