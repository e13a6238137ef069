"""The published figures are well formed, and a bad file says what is wrong with it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from svdexp.__main__ import config_dir
from svdexp.data import TEXTS
from svdexp.report.published import PATH, published
from svdexp.runtime.errors import UserError

TABLE: dict[str, Any] = {
    "method": "svd",
    "model": "m",
    "storage": "factors",
    "source": "a paper, table 1",
    "protocol": "known",
    "footnotes": ["note"],
    "ppl": {"ptb": {0.8: 20.0}},
}


def write(path: Path, *tables: dict[str, Any], footnotes: Any = None) -> Path:
    content = {"footnotes": {"note": "words"} if footnotes is None else footnotes, "figures": list(tables)}
    path.write_text(yaml.safe_dump(content))
    return path


def test_every_figure_is_sourced_in_range_and_of_something_that_exists() -> None:
    known = published()
    assert len(known.figures) > 150
    for figure in known.figures:
        assert "table" in figure.source
        assert figure.ratio in (0.8, 0.6, 0.4)
        assert figure.value > 1 if figure.metric == "ppl" else 0 < figure.value < 1
        assert figure.text in (TEXTS if figure.metric == "ppl" else ("zeroshot6", "zeroshot7"))
        assert (Path(config_dir()) / "model" / f"{figure.model}.yaml").is_file()
        assert (Path(config_dir()) / "storage" / f"{figure.storage}.yaml").is_file()
        assert set(figure.footnotes) <= known.footnotes.keys()


def test_the_file_is_read_once() -> None:
    assert published() is published()


def test_perplexities_grow_as_less_is_kept() -> None:
    """What a slip of the pen would break."""
    known = published()
    for figure in known.figures:
        if figure.metric == "ppl":
            cell = (figure.model, figure.method, figure.storage, figure.ratio - 0.2, "ppl", figure.text)
            assert all(less.value > figure.value for less in known.of(*cell) if less.source == figure.source) or (
                figure.method == "asvd"
            )


def test_a_cell_may_be_printed_twice() -> None:
    found = published().of("llama-7b", "svd_llm", "factors", 0.6, "ppl", "wikitext2")
    assert [figure.value for figure in found] == [13.11, 13.73]
    assert published().of("llama-7b", "svd_llm", "pivot", 0.6, "ppl", "wikitext2") == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"source": None}, "svd ppl/ptb has no source"),
        ({"source": ""}, "svd ppl/ptb has no source"),
        ({"model": None}, "has no model"),
        ({"ppl": {"ptb": {0.0: 2.0}}}, "the ratio is a kept fraction, not 0"),
        ({"ppl": {"ptb": {20.0: 2.0}}}, "the ratio is a kept fraction, not 20"),
        ({"ppl": {"ptb": {0.8: 0.0}}}, "ppl/ptb at 0.8 is 0"),
        ({"ppl": {"ptb": {0.8: float("nan")}}}, "ppl/ptb at 0.8 is nan"),
        ({"acc": {"zeroshot7": {0.8: 44.0}}}, "acc/zeroshot7 at 0.8 is 44"),
        ({"footnotes": ["note", "other"]}, r"footnotes without text or reference: \['other'\]"),
        ({"footnotes": []}, r"footnotes without text or reference: \['note'\]"),
        ({"foot_notes": []}, r"unknown keys \['foot_notes'\]"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"published figures: .*{sentence}"):
        published(write(tmp_path / "bad.yaml", TABLE | change))


def test_a_cell_given_twice_by_one_source_is_refused(tmp_path: Path) -> None:
    assert len(published(write(tmp_path / "good.yaml", TABLE, TABLE | {"source": "another, table 2"})).figures) == 2
    with pytest.raises(UserError, match=r"twice m, svd, factors, 0\.8, ppl, ptb, a paper, table 1"):
        published(write(tmp_path / "bad.yaml", TABLE, TABLE))


def test_the_file_is_beside_the_module_so_that_a_wheel_carries_it() -> None:
    assert PATH.parent.name == "report"
