"""Folder names: a cell's configuration, and nothing else, decides."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from svdexp.cells.guard import config_dir
from svdexp.cells.naming import cell_name, differences, folder_for, register_names
from svdexp.schema import Config


def name(*overrides: str) -> str:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose("config", [*overrides])
    return cell_name(cfg.model.name, cfg.method.name, cfg.ratio, _root_=cfg)


def test_a_name_is_readable() -> None:
    assert name("ratio=0.6").startswith("smollm2-135m_kron_0.6_")
    assert name("model.name=owner/some model").startswith("owner-some-model_kron_0.8_")


@pytest.mark.parametrize(
    "overrides",
    [
        ["ratio=0.80"],
        ["save=none"],
        ["cache=elsewhere"],
        ["dry_run=true"],
        ["eval.batch_size=3"],
        ["device=auto"],
    ],
)
def test_what_changes_no_figure_changes_no_name(overrides: list[str]) -> None:
    assert name(*overrides) == name()


def test_numbers_of_devices_do_not_count() -> None:
    assert name("device=cuda:1") == name("device=cuda") != name("device=cpu")


@pytest.mark.parametrize(
    "override",
    [
        "ratio=0.7",
        "seed=1",
        "precision=float32",
        "method/allocation=uniform",
        "storage=factors",
        "calibration.samples=3",
        "eval.windows=3",
        "eval.efficiency.batch_size=2",
        "+targets.ranks={*_proj:3}",
        "model.revision=abc",
        # of keys that came later, values that are not what was done before
        "ppl=1.05x",
        "calibration.split=test",
        "eval.efficiency.cache=latent",
        "method.allocation.depth=3",
    ],
)
def test_what_changes_a_figure_changes_the_name(override: str) -> None:
    assert name(override).rpartition("_")[2] != name().rpartition("_")[2]


def test_the_models_own_name_said_aloud_changes_nothing() -> None:
    assert name("model.name=smollm2-135m") == name()


def test_another_path_brings_its_own_name() -> None:
    assert name("model.path=/some/where/my-model").startswith("my-model_kron_0.8_")
    assert name("model.path=/some/where/my-model") != name("model.path=/else/where/my-model")


def test_long_names_fit_a_file_system() -> None:
    long = name(f"model.path=/some/{'x' * 250}")
    assert len(long) < 255
    assert long != name(f"model.path=/some/{'x' * 251}")
    assert len(name(f"model.name='{'模' * 200}'").encode()) < 255


def test_hydra_knows_the_resolver() -> None:
    register_names()
    cfg = OmegaConf.create({"device": "cpu", "eval": {}, "x": "a b", "folder": "${cell:${x},1}"})
    assert cfg.folder.startswith("a-b_1_")


def test_cells_differ_in_the_shortest_words_that_are_clear() -> None:
    cells = [
        ["method=svd", "+method/weighting=diagonal", "calibration.seq_len=8", "eval.seq_len=8", "seed=0", "hydra.x=1"],
        ["method=svd", "+method/weighting=identity", "calibration.seq_len=9", "eval.seq_len=9", "seed=0", "hydra.x=2"],
    ]
    assert differences(cells) == [
        {"weighting": "diagonal", "calibration.seq_len": "8", "eval.seq_len": "8"},
        {"weighting": "identity", "calibration.seq_len": "9", "eval.seq_len": "9"},
    ]
    assert differences([["model.path=/a/b/one", "ratio=0.5"], ["model.path='/a/b/two'", "ratio=0.5"]]) == [
        {"model": "one"},
        {"model": "two"},
    ]
    assert differences([["ratio=0.5"], []]) == [{"ratio": "0.5"}, {}]
    assert differences([["ratio=0.5"]]) == [{}]


def test_a_folder_says_what_differs_unless_the_cell_has_one(tmp_path: Path) -> None:
    apart = {"method": "svd", "files": "[a b/c,d]"}
    assert folder_for(apart, "1a2b3c4d", tmp_path) == "method-svd_files--a-b-c-d_1a2b3c4d"
    assert len(folder_for({"method": "x" * 300, "seed": "模" * 300}, "1a2b3c4d", tmp_path).encode()) < 255
    (tmp_path / "model_svd_0.8_1a2b3c4d").mkdir()
    assert folder_for(apart, "1a2b3c4d", tmp_path) == "model_svd_0.8_1a2b3c4d"
