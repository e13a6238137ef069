"""Parts of a run by their names in conf/, as composed now and as older records spelt them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from svdexp.cells.choices import GROUPS, Part, modern, part_in_words, part_of, spoken
from svdexp.cells.guard import config_dir
from svdexp.schema import Config, validate
from svdexp.tracking.provenance import words
from svdexp.tracking.record import parts


def composed(*overrides: str, hydra: bool = False) -> Any:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("config", [*overrides], return_hydra_config=hydra)


@pytest.fixture
def job() -> Iterator[None]:
    yield
    HydraConfig.instance().cfg = None


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in Path(config_dir(), group).glob("*.yaml"))


@pytest.mark.parametrize("key", GROUPS)
def test_every_choice_knows_its_name(key: str) -> None:
    for name in choices(GROUPS[key]):
        with initialize_config_dir(config_dir(), version_base="1.3"):
            alone = compose(f"{GROUPS[key]}/{name}")
        plain: Any = OmegaConf.to_container(OmegaConf.select(alone, GROUPS[key].replace("/", ".")))
        assert part_of(GROUPS[key], plain).name == name
        options = {option: value for option, value in plain.items() if option != "_target_"}
        said = ", ".join(f"{option}={value}" for option, value in options.items())
        kind = plain["_target_"].rpartition(".")[2]
        older = modern({key: kind + (f"({said})" if said else "")})
        assert (older[key], older[f"{key}_options"]) == (name, options)
        assert spoken(older, key) == name


def test_a_run_says_choices_and_options() -> None:
    config = validate(composed("method=asvd", "storage=rtn_int4", "method.weighting.alpha=1", "ratio=0.5"))
    said = parts(config)
    assert (said["weighting"], said["allocation"], said["update"], said["storage"]) == (
        *("diagonal", "sensitivity", None),
        "rtn_int4",
    )
    assert said["storage_options"] == {"code_bits": 4, "group_size": 32, "zero_points": False, "fit": False}
    assert said["update_options"] is None
    assert spoken(said, "weighting") == "diagonal(alpha=1)"
    assert spoken(said, "update") is None


def test_a_changed_option_changes_no_name(job: None) -> None:
    changed = {
        "_target_": "svdexp.storage.GPTQStorage",
        "code_bits": 4,
        "group_size": 32,
        "zero_points": False,
        "fit": False,
        "samples": 3,
        "solver": "own",
    }
    assert part_of("storage", changed).name == "gptq4"
    cfg = composed("storage=gptq4", "storage.code_bits=5", hydra=True)
    HydraConfig.instance().set_config(cfg)
    values: Any = OmegaConf.to_container(cfg.storage)
    assert part_of("storage", values).name == "gptq4"  # as Hydra was told, though gptq3 is as near
    assert part_of("storage", {"_target_": "svdexp.storage.FactorStorage"}).name == "factors"  # whatever Hydra was told


def test_a_class_of_ones_own_keeps_its_name() -> None:
    assert part_of("storage", {"_target_": "mine.FactorStorage", "x": 1}) == Part("FactorStorage", {"x": 1})
    assert part_in_words("storage", "Mine(x=1, y=[a, b])") == Part("Mine", {"x": 1, "y": "[a, b]"})
    assert spoken({"storage": "Mine", "storage_options": {"x": 1}}, "storage") == "Mine(x=1)"


@pytest.mark.parametrize("words", ["GlobalLoss", "GlobalLoss(rank_align=8)"])
def test_what_is_not_said_is_not_a_derived_choices(words: str) -> None:
    """`lems` builds on `global_loss`, has a shorter name, and says rank_align=8, among others."""
    assert part_in_words("method/allocation", words).name == "global_loss"
    whole = {"_target_": "svdexp.allocation.GlobalLoss", "measured": 0.1, "depth": 5, "rank_align": 8}
    assert part_of("method/allocation", whole).name == "lems"


def test_records_of_now_are_left_alone() -> None:
    record = {"storage": "factors", "storage_options": {}, "training": {"distill": {"name": "distill", "options": {}}}}
    assert modern(record) == record


def test_a_choice_that_is_gone_keeps_its_name() -> None:
    assert part_in_words("storage", "ElasticStorage()") == Part("elastic", {})
    assert spoken({"storage": "elastic", "storage_options": {}}, "storage") == "elastic"


def test_older_trainings_are_read() -> None:
    older = {"training": {"mine": {"options": "Distill(steps=3, lr=0.1)", "tokens": 5, "curve": []}}}
    assert modern(older)["training"]["mine"] == {
        **{"name": "distill", "options": {"steps": 3, "lr": 0.1}},
        **{"tokens": 5, "curve": []},
    }


def test_the_command_is_what_changes_a_result(job: None) -> None:
    HydraConfig.instance().set_config(composed("ratio=0.5", "+targets.ranks={a b:3}", hydra=True))
    settings = HydraConfig.get()
    OmegaConf.set_readonly(settings, False)
    settings.overrides.hydra = [
        *("hydra.mode=MULTIRUN", "hydra.sweep.dir=x", "hydra.run.dir=y", "hydra/launcher=slurm"),
        *("hydra.launcher.partition=gpu", "+hydra.job.env_set.X=1", "hydra.job.chdir=true"),
    ]
    assert words() == ["ratio=0.5", "+targets.ranks={a b:3}", "+hydra.job.env_set.X=***", "hydra.job.chdir=true"]
