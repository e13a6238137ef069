"""The dashboard's specification, built without a network."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("wandb_workspaces", reason="the extra `dashboard` is not installed")
PATH = Path(__file__).parents[2] / "launch" / "wandb_dashboard.py"


@pytest.fixture(scope="module")
def module() -> Any:
    found = importlib.util.spec_from_file_location("wandb_dashboard", PATH)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_panels_name_the_fields_of_results_json(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["team/svdexp", "--texts", "wikitext2", "--tasks", "piqa", "--print"]) == 0
    text = capsys.readouterr().out
    sections = json.loads(text)["section"]["panelBankConfig"]["sections"]
    names = [section["name"] for section in sections if section["panels"]]
    assert names == ["Perplexity", "Accuracy", "Throughput", "Layers", "Learned ranks", "Cost"]
    scatter = sections[0]["panels"][0]["config"]
    assert scatter["xAxis"] == "summary:achieved_ratio"
    assert scatter["yAxis"] == "summary:ppl/wikitext2"
    assert scatter["yAxisLogScale"] is True
    for key in ("acc/piqa", "tokens_per_second/decode", "rank_map", "learned_ranks/ratio", "seconds/calibration"):
        assert key in text


def test_a_project_has_an_entity(module: Any) -> None:
    with pytest.raises(SystemExit):
        module.main(["svdexp", "--print"])
