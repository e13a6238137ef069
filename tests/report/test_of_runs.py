"""What a run leaves, sent through the report: published figures stand beside it."""

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from svdexp.cells.guard import config_dir
from svdexp.data import TEXTS
from svdexp.report.__main__ import main
from svdexp.runs import compression as experiment
from svdexp.schema import Config, validate

HEADINGS = "Published figures of the same cells:", "Published figures of the same cells, measured otherwise here:"


@pytest.fixture
def runs(model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run as AA-SVD's authors measured SVD-LLM on Llama-2-7B, but of a tiny model, and one of fewer windows."""
    words = text_file.read_text()
    monkeypatch.setitem(TEXTS, "wikitext2", replace(TEXTS["wikitext2"], read=lambda split: [words]))
    ConfigStore.instance().store(name="schema", node=Config)
    common = [f"model.path={model_folder}", "model.name=llama2-7b", "method=svd_llm", "storage=factors", "ratio=0.6"]
    common += ["calibration=files", f"calibration.files=[{text_file}]", "calibration.samples=2", "tracker=none"]
    common += ["calibration.seq_len=64", "eval=svd_llm", "eval.texts=[wikitext2]", "save=none", "cache=null"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        for name, more in {"as there": [], "otherwise": ["eval.seq_len=64", "eval.windows=3"]}.items():
            experiment.run(validate(compose("config", [*common, *more])), tmp_path / name)
    return tmp_path


def test_a_runs_own_record_meets_published_figures(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([str(runs)]) == 0
    _, _, beside = capsys.readouterr().out.partition(HEADINGS[0])
    alike, _, otherwise = beside.partition(HEADINGS[1])
    for part, windows in ((alike, "1 × 2048"), (otherwise, "3 × 64")):
        (row,) = [line for line in part.splitlines() if line.startswith("| llama2-7b |")]
        assert row.startswith(
            "| llama2-7b | svd_llm | uniform | factors | 0.6 | wikitext2 | svd_llm: test, contiguous, "
        )
        assert windows in row
        assert " | 16.47 | arXiv 2604.02119, table 7 |" in row
    assert "| windows 3, there all; seq_len 64, there 2048; stride 64, there 2048 |" in otherwise
