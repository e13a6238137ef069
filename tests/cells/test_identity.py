"""The identity of a cell: configuration and contents, wherever it runs."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from svdexp.cells.guard import config_dir
from svdexp.cells.identity import files_behind, identity_of
from svdexp.cells.naming import plain, relevant
from svdexp.factorisation.weighting import Metric
from svdexp.runtime.errors import UserError
from svdexp.schema import (
    CalibrationConfig,
    Config,
    EvalConfig,
    EvaluateConfig,
    MethodConfig,
    ModelConfig,
    Save,
    validate,
)

IDENTITY = {"_target_": "svdexp.factorisation.Identity"}
# What cells were called before: a change here loses every finished cell of that kind.
RECORDED = {
    "5a9f83ad5c0ff4d09d19": ["method=kron"],
    "39235a61bc60dcfaa549": ["method=svd_llm_update"],
    "9a753fb24a8daafc08a3": ["method=dobi"],
    "64c293f97140863b9e12": ["method=quantise", "storage=rtn_int4"],
    "064e96aa0118ff4969c8": ["method=svd_llm", "storage=gptq4"],
    "b9f62135b3c355be4b80": ["method=svd", "method/allocation=from_file", "method.allocation.path=ranks.json"],
    "d8f928ffc00c79f79d5f": ["method=svd", "method/allocation=from_gamma", "method.allocation.path=ranks.json"],
    "4dc22211aff4522895b1": ["method=svd", "method/allocation=from_file", "method.allocation.path=none.json"],
    "5e794075af70ee4a9576": ["method=svd_llm", "method/training=sequential_lora"],
    "c09a7ac14de4867e0952": [
        "method=svd_llm",
        "method/training=sequential_lora",
        "method.training.sequential_lora.text=files",
        "method.training.sequential_lora.files=[ranks.json,a.txt]",
    ],
    "98b63aed37825e69704a": ["method=svd_llm", "method/training=refine_distill"],
}
COMMON = [
    *("model.path=owner/name", "model.name=n", "calibration=files", "calibration.files=[a.txt]", "eval.texts=[files]"),
    *("eval.files=[b.txt]", "cache=null", "precision=float32", "device=cpu"),
]


@dataclass(frozen=True)
class Tabulated:
    """A weighting of a user's own, whose table lies in a file."""

    table: str
    needs: ClassVar[tuple[str, ...]] = ()

    def files_read(self) -> Sequence[Path]:
        return [Path(self.table)]

    def __call__(self, statistics: Any) -> Metric:
        return Metric()


@pytest.fixture
def config(model_folder: Path, text_file: Path, tmp_path: Path) -> Config:
    shutil.copytree(model_folder, tmp_path / "model")
    shutil.copy(text_file, tmp_path / "words.txt")
    (tmp_path / "ranks.json").write_text("{}")
    text = str(tmp_path / "words.txt")
    return Config(
        model=ModelConfig(name="tiny", path=str(tmp_path / "model")),
        method=MethodConfig(
            name="svd",
            weighting=IDENTITY,
            allocation={"_target_": "svdexp.allocation.FromFile", "path": str(tmp_path / "ranks.json")},
        ),
        storage={"_target_": "svdexp.storage.FactorStorage"},
        calibration=CalibrationConfig(text="files", files=[text]),
        eval=EvalConfig(name="quick", texts=["files", "pydoc"], files=[text]),
        ratio=0.5,
        cache=None,
    )


def test_incidental_keys_do_not_count(config: Config) -> None:
    before = identity_of(config)
    config.save, config.cache, config.eval.batch_size = Save.none, "elsewhere", 3
    assert identity_of(config) == before
    config.seed = 1
    assert identity_of(config) != before


@pytest.mark.parametrize("file", ["model/config.json", "model/model.safetensors", "words.txt", "ranks.json"])
def test_contents_count_and_times_do_not(config: Config, tmp_path: Path, file: str) -> None:
    before = identity_of(config)
    (tmp_path / file).touch()
    assert identity_of(config) == before
    data = bytearray((tmp_path / file).read_bytes())
    data[-1] ^= 1
    (tmp_path / file).write_bytes(bytes(data))
    assert identity_of(config) != before


@pytest.mark.parametrize(
    ("group", "options"),
    [
        ("weighting", {"_target_": f"{__name__}.Tabulated", "table": "table"}),
        ("allocation", {"_target_": "svdexp.allocation.FromFile", "path": "table"}),
        ("allocation", {"_target_": "svdexp.allocation.FromGamma", "path": "table"}),
        ("training", {"own": {"_target_": "svdexp.training.SequentialLora", "text": "files", "files": ["table"]}}),
        ("training", {"own": {"_target_": "svdexp.training.Distill", "text": "files", "files": ["table"]}}),
    ],
    ids=["a class of one's own, an option of any name", "from_file", "from_gamma", "sequential_lora", "distill"],
)
def test_what_a_part_reads_counts(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    setattr(config.method, group, options)
    seen = set()
    for text in ("one", "two"):
        Path("table").write_text(text)
        seen.add(identity_of(config))
    assert len(seen) == 2


@pytest.mark.parametrize("known", RECORDED)
def test_cells_of_earlier_versions_are_found_again(known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"a.txt": "a.txt", "b.txt": "b.txt", "ranks.json": "{}"}.items():
        Path(name).write_text(text)
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        assert identity_of(validate(compose("config", [*COMMON, *RECORDED[known]]))) == known


def test_every_file_is_named(config: Config) -> None:
    names = {name for name in files_behind(config) if not name.startswith("model/")}
    assert names == {"calibration/0", "allocation/0", "files/0", "pydoc/0"}


def test_files_of_tasks_and_images_of_prompts_are_named_too(config: Config, tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "test.jsonl").touch()
    config.eval.tasks, config.eval.tasks_dir = ["piqa"], str(tmp_path)
    config.eval.prompts = ["of text", f"<image:{tmp_path / 'a.png'}> seen"]
    found = files_behind(config)
    assert found["piqa/0"] == tmp_path / "piqa" / "test.jsonl"
    assert found["prompts/0"] == tmp_path / "a.png"


@pytest.mark.parametrize("storage", ["rtn_int4", "gptq4", "residual"])
def test_storages_of_before_their_steps_were_fitted_are_found_again(storage: str) -> None:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        before, fitted = (
            relevant(plain(compose("config", [f"storage={storage}", f"storage.fit={fit}"])))["storage"]
            for fit in ("false", "true")
        )
    assert "fit" not in before
    assert fitted == before | {"fit": True}


def test_what_is_missing_is_named(config: Config) -> None:
    config.eval.files = ["nowhere.txt"]
    with pytest.raises(UserError, match=r"eval\.files: nowhere\.txt"):
        identity_of(config)


def test_a_model_of_the_hub_has_no_files() -> None:
    config = EvaluateConfig(path="owner/name", model=ModelConfig(name="n", path="owner/name"), cache=None)
    assert files_behind(config) == {}


def test_of_a_run_its_checkpoint_counts(tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "run" / "checkpoint")
    config = EvaluateConfig(path=str(tmp_path), model=ModelConfig(name="n", path=str(tmp_path / "run")), cache=None)
    assert "model/model.safetensors" in files_behind(config)
