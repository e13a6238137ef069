"""launch/wandb_sweep.yaml, expanded by the code of W&B's own agent."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from svdexp.cells.guard import config_dir
from svdexp.schema import Config, validate

SWEEP: dict[str, Any] = yaml.safe_load((Path(__file__).parents[2] / "launch" / "wandb_sweep.yaml").read_text())


def words_of(chosen: dict[str, Any]) -> list[str]:
    """What `${args_no_hyphens}` becomes where the server chose these values."""
    found: list[str] = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})[
        "args_no_hyphens"
    ]
    return found


def config_of(words: list[str]) -> Config:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return validate(compose("config", words))


def test_every_cell_of_the_example_is_a_command_of_ours() -> None:
    parameters = {key: part.get("values", [part.get("value")]) for key, part in SWEEP["parameters"].items()}
    cells = [dict(zip(parameters, values, strict=True)) for values in itertools.product(*parameters.values())]
    assert len(cells) == 6
    for cell in cells:
        config = config_of(words_of(cell))
        assert (config.method.name, config.ratio, config.save) == (cell["method"], cell["ratio"], "none")
        assert config.eval.efficiency is None


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("targets.lm_head", True, True),
        ("ratio", 1e-05, 1e-05),
        ("calibration.samples", 16, 16),
        ("eval.texts", ["pydoc", "files"], ["pydoc", "files"]),
        ("objective", "null", None),
        ("method/allocation", "uniform", "svdexp.allocation.Uniform"),
    ],
)
def test_values_reach_us_as_they_were_meant(key: str, value: Any, expected: Any) -> None:
    files = ["eval.files=[a.txt]"] if key == "eval.texts" else []
    config = config_of([*words_of({key: value}), *files])
    if "/" in key:
        assert config.method.allocation["_target_"] == expected
    else:
        assert OmegaConf.select(OmegaConf.structured(config), key) == expected


def test_the_command_keeps_its_other_words() -> None:
    command = create_sweep_command(list(SWEEP["command"]))
    assert command[:4] == ["${env}", "${interpreter}", "-m", "svdexp"]
    assert command[-1] == "${args_no_hyphens}"
    assert "hydra.run.dir=outputs/wandb_sweeps/${oc.env:WANDB_SWEEP_ID}/${oc.env:WANDB_RUN_ID}" in command
