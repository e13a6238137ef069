"""What commands leave, sent through the report: a run, and the model that it compressed, measured as it is."""

import json
from pathlib import Path

import pytest

from tests.end_to_end import forked
from tests.end_to_end.conftest import Svdexp, read


def test_a_model_measured_as_it_is_stands_beside_the_runs(
    svdexp_command: Svdexp, tiny_job: list[str], model_folder: Path, tmp_path: Path
) -> None:
    words = [*tiny_job, "method=svd", "ratio=0.5", "storage=factors", "save=elastic", "hydra.run.dir=all/run"]
    run = svdexp_command(*words)
    assert run.returncode == 0, run.stderr
    measured = [word for word in tiny_job if word.startswith("eval.")]
    words = [f"path={model_folder}", *measured, "hydra.run.dir=all/rival"]
    rival = forked.run(tmp_path, words, program="svdexp.evaluate")
    assert rival.returncode == 0, rival.stderr
    weights = sum(path.stat().st_size for path in model_folder.glob("*.safetensors"))
    assert read(tmp_path / "all" / "rival")["file_bytes"] == weights

    done = forked.run(tmp_path, ["all", "--to", "to"], program="svdexp.report")
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "all" / "run")
    (table,) = (tmp_path / "to" / "tables").glob("perplexity-*.csv")
    heading, dense, svd, last = [line.split(",") for line in table.read_text().splitlines()]
    assert heading == ["method", "0.5", "at its own size"]
    assert last[0] == f"{model_folder.name} (as it is)"
    assert last[2].partition(" at ")[0] == dense[1]
    assert float(svd[1].partition(" ")[0]) == pytest.approx(record["ppl/files"], rel=0.01)
    page = (tmp_path / "to" / "report.html").read_text()
    assert record["command"].replace("'", "&#39;") in page
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    layers = json.loads((tmp_path / "all" / "run" / "layers.json").read_text())
    assert [layer["rank"] for layer in data["runs"][0]["layers"]] == [layer["rank"] for layer in layers]
    assert all(layer["spectrum"][0] == [1, 1.0] for layer in data["runs"][0]["layers"] if layer["rank"])
