"""What the page tells of one run: where it comes from, figures and settings, layers and their singular values."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from svdexp.report.collect import layers, survey
from svdexp.report.details import as_data, facts
from svdexp.report.heatmap import uniform
from svdexp.report.spectra import FOLDER, POINTS, spectra
from svdexp.report.vega import library, plain
from tests.report.fake_sweeps import leave_cell


def test_facts_and_the_way_to_the_folder(tmp_path: Path) -> None:
    leave_cell(tmp_path / "a b:c", "kron", 0.8, 5.0, command="method=kron 'x y'", device="H200", dtype="bfloat16")
    (record,) = survey([tmp_path])[0]
    found = facts(record, 3, "kron", tmp_path / "to")
    assert found.command == "python -m svdexp method=kron 'x y'"
    assert found.link == "../a%20b%3Ac/kron_0.8"
    assert found.device == "H200, bfloat16"
    assert found.commit is None
    assert found.title == "kron at 0.8"


def test_the_way_to_the_tracker_is_no_program(tmp_path: Path) -> None:
    urls = {"kron": "https://wandb.ai/me/svdexp/runs/1f0c", "svd": "javascript:alert(1)", "asvd": None}
    for method, url in urls.items():
        leave_cell(tmp_path, method, 0.8, 5.0, tracker_url=url)
    records = survey([tmp_path])[0]
    found = {str(record["method"]): facts(record, 1, "", tmp_path).tracker for record in records}
    assert found == urls | {"svd": None}
    assert not any("tracker_url" in as_data(record, 1, "", [])["settings"] for record in records)


def test_figures_have_errors_and_settings_have_none_of_them(tmp_path: Path) -> None:
    calibration = {"text": "pydoc", "samples": 4, "seq_len": 32, "files": []}
    figures = {"ppl_stderr/wiki": 0.1, "seconds/evaluate": float("nan"), "calibration": calibration, "seed": 3}
    cell = leave_cell(tmp_path, "kron", 0.8, 5.0, **figures)
    (record,) = survey([tmp_path])[0]
    data = as_data(record, 1, "kron at 0.8", layers(cell))
    said = {figure["key"]: figure for figure in data["figures"]}
    assert {**said["ppl/wiki"], "value": 7.2} == {
        **{"key": "ppl/wiki", "value": 7.2, "dense": 6.0, "unit": "", "error": 0.1, "better": "lower"},
    }
    assert said["seconds/evaluate"]["value"] is None
    assert not {"ppl_stderr/wiki", "ppl_dense/wiki", "ppl_tokens/wiki", "ratio"} & said.keys()
    assert data["settings"]["ratio"] == "0.8"
    assert data["settings"]["seed"] == "3"
    assert data["settings"]["calibration.samples"] == "4"
    assert not {"folder", "written", "ppl/wiki", "calibration.files"} & data["settings"].keys()
    assert data["layers"][3] == {
        **{"name": "model.layers.1.self_attn.q_proj", "block": 1, "projection": "self_attn.q_proj"},
        **{"m": 4096, "n": 4096, "rank": 1003, "share": 0.24487, "bits": 0.5, "lost": 0.006055},
    }
    assert data["layers"][0]["share"] == 1.0
    assert json.dumps(plain(data), allow_nan=False)


def test_singular_values_of_an_elastic_checkpoint(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir(parents=True)
    values = np.linspace(4.0, 0.0, 400)
    save_file({"spectrum": values}, tmp_path / FOLDER / "a.safetensors")
    save_file({"A": values}, tmp_path / FOLDER / "b.safetensors")
    (tmp_path / FOLDER / "c.safetensors").write_bytes(b"no")
    found = spectra(tmp_path, [{"name": name} for name in ("a", "b", "c", "d", "../elastic/a")])
    assert found.keys() == {"a"}
    assert found["a"][0] == (1, 1.0)
    assert len(found["a"]) <= POINTS
    assert found["a"][5][1] == float(f"{values[found['a'][5][0] - 1] / 4:.4g}")


def test_ranks_that_are_uniform_need_no_map() -> None:
    square, wide = {"m": 8, "n": 8}, {"m": 8, "n": 32}
    assert uniform([{**square, "rank": 3}, {**square, "rank": 3}, {**wide, "rank": 5}])
    assert uniform([{**wide, "rank": 3}, {"m": 32, "n": 8, "rank": 4}])  # bits that were left over
    assert not uniform([{**wide, "rank": 3}, {"m": 32, "n": 8, "rank": 5}])
    assert not uniform([{**square, "rank": 3}, {**square, "rank": None}])
    assert not uniform([{"projection": "q", "rank": 3}, {"projection": "q", "rank": 5}])
    assert uniform([{"projection": "q", "rank": 3}, {"projection": "k", "rank": 4}])


def test_the_library_ends_no_script() -> None:
    assert "</script" not in library().lower()
    assert "vegaEmbed" in library()
