"""A cell is composed once: what the sweeper looked at is what its launcher gets."""

from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.svdexp_sweeps import once
from hydra_plugins.svdexp_sweeps.once import OnceComposed
from svdexp.cells.guard import config_dir
from svdexp.cells.naming import register_names
from svdexp.schema import Config


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every configuration that is composed."""
    counted: list[str] = []
    original = ConfigLoaderImpl.load_configuration

    def counting(self: Any, *args: Any, **how: Any) -> DictConfig:
        counted.append("one")
        return original(self, *args, **how)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counting)
    return counted


@pytest.mark.parametrize("kept", [500, 1])
def test_a_launcher_gets_what_the_sweeper_looked_at(
    kept: int, composed: list[str], tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal to what Hydra composes of the same words, tokens of the environment included."""
    monkeypatch.setattr(once, "KEPT", kept)
    monkeypatch.setenv("A_TOKEN", "secret")
    register_names()
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        words = [f"hydra.sweep.dir={tmp_path}", "hydra.job.env_copy=[A_TOKEN]", "tracker=none", "calibration=files"]
        words += [f"calibration.files=[{text_file}]"]
        master = loader.load_configuration("config", [*words, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
        OmegaConf.update(master, "hydra.job.config_name", "config")
        context = HydraContext(loader, Any)  # type: ignore[arg-type]
        setup: Any = {"hydra_context": context, "task_function": lambda _: None, "config": master}
        grid: Any = Plugins.instance().instantiate_sweeper(**setup)
        given: list[tuple[list[str], DictConfig]] = []

        def launch(overrides: Any, initial_job_idx: int) -> list[JobReturn]:
            given.extend(
                (list(cell), context.config_loader.load_sweep_config(master, list(cell))) for cell in overrides
            )
            return [JobReturn(working_dir=str(tmp_path), status=JobStatus.COMPLETED, _return_value=None)] * len(given)

        monkeypatch.setattr(grid.launcher, "launch", launch)
        monkeypatch.setattr(grid, "show", lambda *_: None)
        composed.clear()
        grid.sweep(["ratio=0.5,0.6,0.7"])
        assert len(composed) == (3 if kept > 3 else 5)
        for number, (cell, found) in enumerate(given):
            expected = loader.load_sweep_config(master, cell)
            found.hydra.job.num = found.hydra.job.id = expected.hydra.job.num = expected.hydra.job.id = number
            assert OmegaConf.to_container(found) == OmegaConf.to_container(expected)
            assert found.hydra.job.env_set.A_TOKEN == "secret"
            assert found.hydra.sweep.subdir.startswith(f"ratio-0.{number + 5}_")


def test_a_cell_is_handed_out_once(composed: list[str]) -> None:
    """A second time it may have been changed by the job that had it."""
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        loader = OnceComposed(GlobalHydra.instance().config_loader())
        master = loader.load_configuration("config", [], RunMode.RUN)
        OmegaConf.update(master, "hydra.job.config_name", "config")
        loader.keep(["ratio=0.5"], OmegaConf.create({"handed": "out"}))
        assert "handed" in loader.load_sweep_config(master, ["ratio=0.5"])
        assert loader.load_sweep_config(master, ["ratio=0.5"]).ratio == 0.5
