"""Whether a run streams its model, and the sentences where it cannot."""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore

from svdexp.cells.guard import config_dir
from svdexp.checkpoints import dobi
from svdexp.evaluation import Exam
from svdexp.method import build_method
from svdexp.runs import residency
from svdexp.runs.inputs import size_of
from svdexp.runs.residency import evaluation_streams, require_likelihoods, room_for_blocks, skeleton_to_stream
from svdexp.runtime.errors import UserError
from svdexp.schema import Config, EvaluateConfig, ModelConfig, Residency, validate

CPU = torch.device("cpu")
PLAIN = ["method=svd_llm", "calibration.samples=2", "calibration.seq_len=16"]


@pytest.fixture(autouse=True, scope="module")
def _hydra() -> Iterator[None]:
    ConfigStore.instance().store(name="schema", node=Config)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        yield


def streams(folder: Path, *words: str) -> bool:
    """Whether a run of these words does; its speed is measured where they choose an evaluation."""
    quiet = [] if any(word.startswith("eval=") for word in words) else ["eval.efficiency=null"]
    config = validate(compose("config", [f"model.path={folder}", *PLAIN, *quiet, *words]))
    return skeleton_to_stream(config, build_method(config), size_of(config), CPU) is not None


OBSTACLES = {
    "cache=null": "its statistics wait on disk: set cache=FOLDER",
    "method=mixed": "storage=forms needs the whole model; choose another method, or another storage and method/alloc",
    "cache=": "its statistics wait on disk: set cache=FOLDER",  # as an empty SVDEXP_CACHE says
    "device=balanced": "device=balanced spreads the whole model over several GPUs",
    "method/training=distill": r"method.training needs .* leave it out, or take method/training=block_refine",
    "method/training=block_refine method.training.block_refine.stored=true": (
        r"method.training.block_refine.stored=true needs the whole model; leave it out"
    ),
    "method=svd_llm_update": r"method.update=RefitOutput needs the whole model; use method.update=null",
    "method/allocation=sensitivity": r"method.allocation=Sensitivity needs the whole model",
    "method/allocation=learned": r"method.allocation=Learned needs the whole model",
    "method.traversal=blockwise": r"method.traversal=blockwise changes blocks on the way; use method.traversal=dense",
    "storage=gptq4": r"storage=\w+ needs the whole model; use one that looks at no inputs",
    "save=elastic": "save=elastic gathers what was truncated in memory; use save=checkpoint",
    "eval=quick": "generation speed needs the whole model; set eval.efficiency=null",
    "eval.prompts=[a]": "eval.prompts needs the whole model; leave it out",
}


@pytest.mark.parametrize("word", OBSTACLES)
def test_what_needs_the_whole_model_is_refused_by_its_knob(word: str, model_folder: Path) -> None:
    words = [*word.split(), "storage=factors"] if "elastic" in word else word.split()
    sentence = rf"^residency=streamed has one block in memory at a time, but {OBSTACLES[word]}"
    with pytest.raises(UserError, match=sentence):
        streams(model_folder, "residency=streamed", *words)


def test_what_a_run_keeps_is_judged_by_the_size_that_it_is_given(model_folder: Path) -> None:
    """Layers with fixed ranks keep 0.87, which `bytes` has room for, and the default of `ratio` has not."""
    words = ["residency=streamed", "storage=factors", "+targets.ranks={*.mlp.*:null,*.q_proj:null,*.o_proj:null}"]
    assert streams(model_folder, *words, "bytes=0.98")
    with pytest.raises(UserError, match=r"^targets.ranks alone keep 0.8667, which leaves nothing of ratio=0.8$"):
        streams(model_folder, *words)


def test_a_file_that_was_cut_short_is_named(model_folder: Path, tmp_path: Path) -> None:
    """Headers are looked at before there is a skeleton."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    sentence = rf"^model.path={folder}: checkpoint {folder}: model.safetensors is damaged or cut short: "
    with pytest.raises(UserError, match=sentence):
        streams(folder, "residency=streamed")


def test_tasks_whose_answers_are_written_are_refused(tmp_path: Path) -> None:
    exam = Exam("gsm8k", {"gsm8k": SimpleNamespace(OUTPUT_TYPE="generate_until")}, {"gsm8k": [0]}, 1, 0, 0, "hub")
    with pytest.raises(UserError, match=r"^eval.tasks: answers to gsm8k are written, .* leave it out, or set resid"):
        require_likelihoods([exam])
    require_likelihoods([replace(exam, parts={"it": SimpleNamespace(OUTPUT_TYPE="multiple_choice")})])


def evaluation_of(folder: Path | str, **options: Any) -> EvaluateConfig:
    return EvaluateConfig(str(folder), ModelConfig("it", str(folder)), cache=None, **options)


def test_evaluation_is_streamed_where_the_files_do_not_fit(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    asked = evaluation_of(model_folder)
    assert not evaluation_streams(asked, asked.model, CPU)
    monkeypatch.setattr(residency, "room", lambda device: 1000)
    assert not evaluation_streams(evaluation_of(model_folder, residency=Residency.whole), asked.model, CPU)
    assert not caplog.records
    assert evaluation_streams(asked, asked.model, CPU)
    assert "the model is streamed, because the model's files take" in caplog.records[-1].getMessage()
    asked.eval.prompts = ["a"]
    assert not evaluation_streams(asked, asked.model, CPU)
    assert "the model cannot be streamed, for eval.prompts needs" in caplog.records[-1].getMessage()


def test_what_is_converted_while_it_is_read_is_not_streamed(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "other")
    (tmp_path / "other" / dobi.REMAPPED).touch()
    for path, sentence in ((tmp_path / "other", "was compressed by others"), ("owner/name", "is no local folder")):
        asked = evaluation_of(path, residency=Residency.streamed)
        with pytest.raises(UserError, match=f"^residency=streamed has one block in memory at a time, but .*{sentence}"):
            evaluation_streams(asked, asked.model, CPU)


def test_the_estimate_chooses(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert streams(model_folder, "residency=streamed")
    assert not streams(model_folder)
    monkeypatch.setattr(residency, "room", lambda device: 1000)
    assert not streams(model_folder, "residency=whole")
    assert not caplog.records
    assert streams(model_folder)
    assert "the model is streamed, because the whole run's tensors are estimated" in caplog.records[-1].getMessage()
    assert not streams(model_folder, "eval.prompts=[a]")
    assert "the model cannot be streamed, for eval.prompts needs" in caplog.records[-1].getMessage()


def test_files_that_are_small_need_no_estimate(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "load_skeleton", lambda *_: pytest.fail("a model was made"))
    assert not streams(model_folder)


def test_blocks_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".blocks").mkdir()
    (tmp_path / ".blocks" / "a").touch()
    with room_for_blocks(tmp_path) as folder:
        assert not folder.exists()
        folder.mkdir()
    assert not folder.exists()
