"""The quickstart notebook runs from its first cell to its last, on a tiny model in place of the demo's."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.any_format

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "quickstart.ipynb"
MODEL = 'MODEL = "smollm2-135m"'


def test_every_cell_runs(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{NOTEBOOK.parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells)  # none are kept
    assert MODEL in cells[0].source
    cells[0].source = cells[0].source.replace(MODEL, f"MODEL = {str(model_folder)!r}")
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}).get("text/html", "") for cell in cells for output in cell.outputs]
    assert any("svdexp-summary" in page and "mlp.down_proj" in page for page in shown)
    assert any("ratio is the kept fraction" in output.get("text", "") for output in cells[-1].outputs)
    assert (tmp_path / "smaller" / "results.json").is_file()
