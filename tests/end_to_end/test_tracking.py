"""A sweep's runs, read back from W&B's offline files."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Svdexp, read
from tests.tracking.wandb_file import finished


def test_every_figure_is_in_the_offline_run(
    svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learned ranks under a weighting: the run has curves and spectra."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    done = svdexp_command(
        "-m",
        *(word for word in tiny_job if not word.startswith("tracker")),
        *("method=svd_llm", "method/allocation=learned_quick", "method.allocation.seq_len=32"),
        "method.allocation.epochs=4",
        *("method/training=distill", "method.training.distill.seq_len=16", "method.training.distill.steps=4"),
        "method.training.distill.check_every=2",
        *("ratio=0.5", "tracker.tags=[night]", "tracker.checkpoint=true", "hydra.sweep.dir=grid"),
        HOME=str(tmp_path / "home"),
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.output.splitlines() if "W&B" in line or "wandb" in line)
    assert "W&B: offline, because there is no login (`wandb login`); `" in line
    assert line.endswith("sync grid` sends it")
    assert not [path for path in (tmp_path / "home").rglob("*") if "wandb" in path.name]
    (run_dir,) = (path.parent for path in (tmp_path / "grid").glob("*/results.json"))
    run, results = finished(run_dir), read(run_dir)

    figures = {key: value for key, value in results.items() if isinstance(value, int | float | str)}
    assert {key: run.summary.get(key) for key in figures} == pytest.approx(figures)
    assert {
        "ppl/files",
        "tokens_per_second/decode",
        "seconds/calibration",
        "peak_rss_bytes/calibration",
    } <= figures.keys()
    assert (run.run.run_group, run.run.job_type, run.run.display_name) == ("grid", "compress", run_dir.name)
    assert list(run.run.tags) == ["svd_llm", results["model"], "night"]
    assert run.config["ratio"] == 0.5
    assert run.config["method"]["name"] == "svd_llm"
    assert run.exit_code == 0
    assert run.run.run_id == results["cell"]
    assert results["tracker_url"] is None
    stages = [key for row in run.history for key in row if key.startswith("seconds/")]
    assert set(stages) == {key for key in results if key.startswith("seconds/")}
    assert "seconds/load" in run.history[0]
    assert {"ranks", "model"} <= set(run.artifacts)

    layers = json.loads((run_dir / "layers.json").read_text())
    columns, rows = run.table("layers")
    assert [dict(zip(columns, row, strict=True)) for row in rows] == layers
    assert len(run.table("spectra")[1]) > 3 * len(layers)
    assert len(run.table("depth/rank_table")[1]) == len(layers)
    assert any("rank_map/path" in row for row in run.history)
    curve = [row for row in run.history if "learned_ranks/step" in row]
    assert [row["learned_ranks/step"] for row in curve] == list(range(len(curve)))
    assert len(curve) > 1
    assert {"learned_ranks/perplexity", "learned_ranks/ratio", "learned_ranks/gamma/mlp.up_proj"} <= curve[0].keys()
    trained = results["training"]["distill"]
    assert trained["tokens"] == 4 * 4 * 16
    looks = [row for row in run.history if "training/distill/step" in row]
    keys = ("step", "loss", "held_out")
    assert [[row.get(f"training/distill/{key}") for key in keys] for row in looks] == trained["curve"]
    assert len(looks) == 3


def test_layers_say_what_ranks_and_results_say(svdexp_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    done = svdexp_command(*tiny_job, "hydra.run.dir=here", "ratio=0.5", "save=none")
    assert done.returncode == 0, done.stderr
    layers = json.loads((tmp_path / "here" / "layers.json").read_text())
    results = read(tmp_path / "here")
    assert {row["name"]: row["rank"] for row in layers} == json.loads((tmp_path / "here" / "ranks.json").read_text())
    assert sum(row["bits"] for row in layers) == results["target_bits"]
    assert sum(row["bits_dense"] for row in layers) == results["target_bits_dense"]
    assert layers[0]["block"] == 0
    assert layers[0]["projection"] == "self_attn.q_proj"
    assert not (tmp_path / "here" / "wandb").exists()
