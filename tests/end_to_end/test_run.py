"""Whole runs from the command line: a tiny model in every mode."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import svdexp
from svdexp.checkpoints.loading import load_model
from svdexp.models.fingerprint import model_fingerprint
from svdexp.schema import ModelConfig
from tests.end_to_end.conftest import Svdexp, read

STABLE_KEYS = {
    "model",
    "method",
    "ratio",
    "achieved_ratio",
    "params",
    "params_dense",
    "bytes",
    "bytes_dense",
    "seed",
    "commit",
    "versions",
    "tokens_per_second/prefill",
    "tokens_per_second/prefill_dense",
    "tokens_per_second/decode",
    "tokens_per_second/decode_dense",
    "seconds/load",
    "seconds/calibration",
    "seconds/factorisation",
    "peak_rss_bytes",
}


def test_a_run_leaves_everything_that_explains_it(
    svdexp_command: Svdexp, tiny_job: list[str], model_folder: Path, tmp_path: Path
) -> None:
    done = svdexp_command(*tiny_job, "hydra.run.dir=here", "ratio=0.5")
    assert done.returncode == 0, done.stderr
    run_dir = tmp_path / "here"
    assert {path.name for path in run_dir.iterdir()} == {
        ".hydra",
        ".lock",
        "checkpoint",
        "layers.json",
        "ranks.json",
        "results.json",
        "svdexp.log",
    }
    results = read(run_dir)
    kept = yaml.safe_load((run_dir / ".hydra" / "config.yaml").read_text())["model"]
    assert results["model"] == kept["name"] == model_folder.name
    assert (results["model_path"], results["model_revision"]) == (str(model_folder), None)
    dense = load_model(ModelConfig(path=str(model_folder)), getattr(torch, results["dtype"]), torch.device("cpu"))
    assert results["model_fingerprint"] == model_fingerprint(dense)
    assert STABLE_KEYS | {"ppl/files", "ppl_dense/files"} <= results.keys()
    assert results["ratio"] == 0.5
    assert 0.45 < results["achieved_ratio"] <= 0.5
    assert results["params"] < results["params_dense"]
    assert results["reload_max_logit_difference"] == 0
    assert yaml.safe_load((run_dir / ".hydra" / "config.yaml").read_text())["ratio"] == 0.5
    for key in ("ppl/files", "bytes", "params", "tokens_per_second/decode", "achieved_ratio"):
        assert key in done.stdout
    model, tokenizer = svdexp.load(run_dir)
    assert sum(p.numel() for p in model.parameters()) == results["params"]
    ranks = json.loads((run_dir / "ranks.json").read_text())
    assert {name for name, rank in ranks.items() if rank is not None} == model.config.svdexp["layers"].keys()
    prompt = torch.tensor([tokenizer("the rank of")["input_ids"]])
    assert model.generate(prompt, max_new_tokens=3).shape[1] > 3


def test_saved_ranks_replay_to_the_same_figures(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    first = svdexp_command(*tiny_job, "hydra.run.dir=first", "ratio=0.5", "cache=null", "method=svd")
    replay = ["method/allocation=from_file", f"method.allocation.path={tmp_path}/first/ranks.json"]
    second = svdexp_command(*tiny_job, "hydra.run.dir=second", "ratio=0.5", "save=none", "method=svd", *replay)
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    one, two = read(tmp_path / "first"), read(tmp_path / "second")
    assert one["ppl/files"] == two["ppl/files"]
    assert one["target_bits"] == two["target_bits"]
    assert not (tmp_path / "second" / "checkpoint").exists()


def test_ranks_are_fixed_by_pattern_on_the_command_line(
    svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path
) -> None:
    done = svdexp_command(*tiny_job, "+targets.ranks={model.layers.0.*:null,*.down_proj:7}", "hydra.run.dir=here")
    assert done.returncode == 0, done.stderr
    ranks = json.loads((tmp_path / "here" / "ranks.json").read_text())
    assert [ranks[f"model.layers.{i}.mlp.down_proj"] for i in range(3)] == [None, 7, 7]
    results = read(tmp_path / "here")
    assert results["targets"]["ranks"] == {"model.layers.0.*": None, "*.down_proj": 7}
    assert 0.79 < results["achieved_ratio"] <= 0.8
    svdexp.load(tmp_path / "here")


def test_a_sweep_goes_on_after_a_failing_cell(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    done = svdexp_command("-m", *tiny_job, "method=svd,svd_llm", "ratio=0.5,0.001", "hydra.sweep.dir=sweep")
    assert done.returncode == 1
    assert "ratio=0.001 leaves model.layers.0" in done.stderr
    found = sorted(read(path.parent)["method"] for path in tmp_path.glob("sweep/*/results.json"))
    assert found == ["svd", "svd_llm"]


@pytest.mark.any_format
def test_blockwise_runs(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    done = svdexp_command(
        *tiny_job, "method=svd_llm", "method.traversal=blockwise", "hydra.run.dir=here", "precision=bfloat16"
    )
    assert done.returncode == 0, done.stderr
    assert read(tmp_path / "here")["dtype"] == "bfloat16"


@pytest.mark.any_format
def test_help_and_cfg_answer_quickly(fresh_command: Svdexp) -> None:
    shown = fresh_command("--help")
    assert shown.returncode == 0
    assert "svd_llm" in shown.stdout
    listed = fresh_command("--list", "calibration")
    assert "wikitext2_local" in listed.stdout
    job = fresh_command("--cfg", "job")
    assert yaml.safe_load(job.stdout)["ratio"] == 0.8
