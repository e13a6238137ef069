"""What `import svdexp` does for a script or a notebook."""

import copy
import json
import logging
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.version import VersionBase
from transformers import AutoModelForCausalLM, AutoProcessor, PreTrainedModel

import svdexp
from svdexp.allocation import FromFile, Uniform
from svdexp.calibration.statistics import Statistics
from svdexp.cells.choices import config_dir, names_of
from svdexp.factorisation import InputMoment, Metric
from svdexp.method import Method
from svdexp.models.modes import at_rest
from svdexp.runs.compression import run
from svdexp.schema import Config, validate
from svdexp.storage import FactorStorage, PivotStorage
from svdexp.tracking.provenance import command
from svdexp.training import Distill
from tests.conftest import tiny_model
from tests.evaluation.task_rows import write_local
from tests.support.vision import tiny_llava

WHITENED = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())


@dataclass(frozen=True)
class Doubled:
    """A part of a user's own."""

    factor: float = 2.0
    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def __call__(self, statistics: Statistics) -> Metric:
        return Metric(right=self.factor * statistics["gram"])


@pytest.fixture
def text(text_file: Path) -> str:
    return text_file.read_text()


@pytest.fixture
def other(other_text_file: Path) -> str:
    return other_text_file.read_text()


def same_weights(one: PreTrainedModel, two: PreTrainedModel) -> bool:
    mine, theirs = one.state_dict(), two.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


# --- what is compressed, with what ------------------------------------------------------------------------------------


def test_a_folder_by_names_is_what_the_command_makes(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """The same defaults, the same draws, the same checks: the last bit agrees."""
    words = [f"model.path={model_folder}", "method=kron", "ratio=0.6", "calibration=files", "precision=float32"]
    words += [f"calibration.files=[{text_file}]", "calibration.samples=6", "calibration.seq_len=32", "seed=3"]
    words += ["calibration.sampling=random", "eval.texts=[]", "eval.efficiency=null", "tracker=none", "cache=null"]
    ConfigStore.instance().store(name="schema", node=Config)
    with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
        run(validate(hydra.compose("config", words)), tmp_path / "run")
    theirs, _ = svdexp.load(tmp_path / "run")
    result = svdexp.compress(
        model_folder,
        {"name": "files", "files": [text_file], "sampling": "random"},
        method="kron",
        ratio=0.6,
        samples=6,
        seq_len=32,
        seed=3,
        precision="float32",
    )
    assert same_weights(result.model, theirs)
    assert (
        result.ranks
        == svdexp.compress(  # and what nobody says is what conf/ says
            model_folder, text_file, ratio=0.6, samples=6, seq_len=32, precision="float32"
        ).ranks
        | result.ranks
    )


def test_what_is_not_said_is_what_conf_says(model_folder: Path, text: str) -> None:
    result = svdexp.compress(model_folder, [text])
    assert (result.config.method.name, result.config.ratio, result.config.seed) == ("kron", 0.8, 0)
    assert result.method.storage == PivotStorage()
    assert result.config.calibration.text == "given"


def test_the_old_form_holds_a_method_and_tokens_in_order(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    result = svdexp.compress(llama, windows, WHITENED, 0.5)
    assert result.model is llama
    assert result.achieved_ratio <= 0.5
    assert result.method is WHITENED
    assert result.summary().record["storage"] == "factors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_plain_model_in_any_format_with_gradients_and_dropout(
    windows: torch.Tensor, tmp_path: Path, dtype: torch.dtype
) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=dtype).train().requires_grad_(True)
    before = copy.deepcopy(model)
    result = svdexp.compress(model, windows, "svd_llm", 0.6)
    assert result.model is model
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert result.achieved_ratio <= 0.6
    model.save_pretrained(tmp_path / "saved")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True, dtype=dtype)
    ours, tokenizer = svdexp.load(tmp_path / "saved")
    assert tokenizer is None  # there is none in the folder
    model.eval()
    for loaded in (theirs, ours):
        torch.testing.assert_close(loaded(windows).logits, model(windows).logits)
    assert not torch.equal(before.eval()(windows).logits, model(windows).logits)


def test_parts_are_names_options_or_objects(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    def method(**options: Any) -> Method:
        return svdexp.compress(copy.deepcopy(llama), windows, "svd_llm", 0.6, **options).method

    assert method(storage="factors").storage == FactorStorage()
    assert method(storage=FactorStorage()).storage == FactorStorage()
    assert method(storage={"name": "rtn_int8", "group_size": 8}).storage.group_size == 8
    assert method(weighting="diagonal", overrides=["method.weighting.alpha=0.25"]).weighting.alpha == 0.25
    assert method(weighting={"name": "diagonal", "alpha": 0.25}).weighting.alpha == 0.25
    assert method(allocation={"rank_align": 4}).allocation.rank_align == 4
    assert method(weighting=Doubled(3.0)).weighting == Doubled(3.0)
    assert method(update="refit_output").update is not None
    assert method(overrides=["method.sigma_fuse=V"]).sigma_fuse == "V"
    quick = {"steps": 1, "seq_len": 16}
    by_name = method(training={"distill": quick}, storage="factors").training
    assert method(training=Distill(**quick), storage="factors").training.keys() == by_name.keys() == {"distill"}
    assert by_name["distill"].steps == 1


def test_a_training_by_name_with_options(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    options = {"steps": 2, "seq_len": 8}
    for asked in ({"name": "distill", **options}, {"distill": options}):
        result = svdexp.compress(copy.deepcopy(llama), windows, "svd_llm", 0.5, training=asked)
        assert [(type(part), part.steps) for part in result.method.training.values()] == [(Distill, 2)]


def test_options_that_are_objects_are_saved_in_words(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path
) -> None:
    ranks = tmp_path / "ranks.json"
    ranks.write_text(json.dumps(svdexp.compress(copy.deepcopy(llama), windows, WHITENED, 0.5).ranks))
    loosely: Any = FromFile
    result = svdexp.compress(llama, windows, "svd_llm", 0.5, allocation=loosely(path=ranks))
    result.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "results.json").read_text())["allocation_options"]["path"] == str(ranks)


def test_a_part_of_ones_own_is_in_the_record(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    record = svdexp.compress(llama, windows, weighting=Doubled(3.0), allocation="uniform").summary().record
    assert record["weighting"] == "Doubled"
    assert record["weighting_options"] == {"factor": 3.0}


def test_calibration_is_a_name_files_documents_or_tokens(
    model_folder: Path, text_file: Path, text: str, windows: torch.Tensor
) -> None:
    def calibration(given: Any, **options: Any) -> Any:
        return svdexp.compress(model_folder, given, "svd_llm", 0.6, **options).config.calibration

    quick: dict[str, Any] = {"samples": 2, "seq_len": 16}
    assert calibration("pydoc", **quick).text == "pydoc"
    assert calibration(text_file, **quick).files == [str(text_file)]
    assert calibration([text_file, str(text_file)][:1], **quick).files == [str(text_file)]
    assert calibration([text], **quick).samples == 2
    assert calibration([text]).samples == len(text.split()) // 1024
    few = calibration(["the rank of a matrix", "its rows and columns"])
    assert (few.samples, few.seq_len) == (1, 9)
    assert calibration(windows % 15).samples == len(windows)


def test_overrides_say_how_documents_are_cut(llama: PreTrainedModel, tokenizer: Any, text: str) -> None:
    how = ["calibration.samples=2", "calibration.seq_len=16"]
    part = svdexp.compress(llama, [text], WHITENED, 0.5, tokenizer=tokenizer, overrides=how).config.calibration
    assert (part.samples, part.seq_len) == (2, 16)
    for options in ({"overrides": ["eval.windows=2", "eval.seq_len=16"]}, {"eval": {"windows": 2, "seq_len": 16}}):
        assert svdexp.evaluate(llama, [text], tokenizer=tokenizer, **options)["ppl_tokens/given"] == 2 * 15


def test_a_model_without_a_name_calibrates_on_a_text_by_name(llama: PreTrainedModel, tokenizer: Any) -> None:
    assert not llama.name_or_path
    result = svdexp.compress(llama, "pydoc", WHITENED, 0.5, tokenizer=tokenizer, samples=2, seq_len=16)
    assert result.config.calibration.text == "pydoc"


def test_targets_and_seed_and_elastic(llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path) -> None:
    result = svdexp.compress(
        llama, windows, "svd_llm", targets={"include": ["*.mlp.*"]}, storage="factors", elastic=True
    )
    assert set(result.layers["projection"]) == {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    result.save(tmp_path / "elastic")
    smaller, _ = svdexp.load(tmp_path / "elastic", ratio=0.5)
    assert smaller.num_parameters() < llama.num_parameters()


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 0.5, "bytes": "50kB"}, "^ratio, bytes and ppl say how small the model shall be"),
        ({"ratio": 0.5, "overrides": ["bytes=50kB"]}, "^ratio, bytes and ppl say how small the model shall be"),
        ({"ratio": 1.5}, r"^ratio is the kept fraction .* not 1\.5$"),
        ({"method": "nothing"}, "^method has no choice nothing, only .*svd_llm"),
        ({"storage": "gptq9"}, "^storage has no choice gptq9, only .*gptq4"),
        ({"weighting": {"alpa": 1}}, r"^method\.weighting\.alpa: Key 'alpa' not in 'TwoSided'$"),
        ({"targets": {"inclde": ["*"]}}, r"^targets\.inclde: Key 'inclde' not in 'TargetsConfig'$"),
        ({"weighting": 3}, "^method.weighting=3 is no weighting: it has no needs"),
        ({"weighting": InputMoment}, "is a class: give an object of it"),
        ({"overrides": ["eval.texts=[pydoc]"]}, r"eval\.texts has no effect here; ask the result: \.evaluate"),
        ({"overrides": ["save=elastic"]}, "save has no effect here.*elastic=True"),
        ({"device": "cpu"}, "device has no effect on a model that is given"),
        ({"samples": 3}, "samples and seq_len have no effect on token ids"),
        ({"method": WHITENED, "storage": "pivot"}, "storage: no effect|storage has no effect"),
        ({"experiment": "quick"}, "is a sweep; give one value for each of method, ratio"),
        ({"training": ["distill", Distill()]}, "names or objects, not both"),
        (
            {"overrides": ["calibration.sampling=random"]},
            r"^overrides: calibration\.sampling: no effect on documents or",
        ),
        ({"overrides": ["calibration.samples=2"]}, "samples and seq_len have no effect on token ids"),
        ({"training": {"steps": 2}}, "^training: steps=2 is an option of which"),
        (
            {"method": "svd_llm", "update": {"solver": 2}},
            r"^method\.update is null here, so method\.update\.solver is an",
        ),
        (
            {"method": "svd_llm", "overrides": ["method.update.solver=2"]},
            r"^overrides: method\.update\.solver is below a",
        ),
        (
            {"allocation": Uniform(), "overrides": ["method/allocation=dynamic"]},
            "^overrides: method/allocation has no eff",
        ),
        (
            {"training": Distill(), "overrides": ["method.training.distill.steps=2"]},
            "because training is given as an obj",
        ),
        ({"elastic": True}, "save=elastic keeps components of plain factors"),
        ({"calibration": torch.zeros(3, 4)}, r"token ids are integers \(N, L\)"),
        ({"calibration": ["the rank of a matrix"]}, "calibration given as text needs a tokenizer"),
        ({"calibration": None}, "calibration given as text needs a tokenizer"),
    ],
)
def test_a_mistake_is_one_sentence(
    llama: PreTrainedModel, windows: torch.Tensor, options: dict[str, Any], words: str
) -> None:
    before = copy.deepcopy(llama)
    with pytest.raises(svdexp.UserError, match=words) as caught:
        svdexp.compress(llama, **{"calibration": windows, **options})
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is caught.value.__context__ is None  # a traceback would hold on to the model
    assert same_weights(llama, before)


def test_a_misspelt_argument_is_told_what_may_have_been_meant(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    loosely: Any = svdexp
    with pytest.raises(TypeError, match=r"^compress\(\) has no argument metod; did you mean method\?$"):
        loosely.compress(llama, windows, metod="svd")
    with pytest.raises(TypeError, match=r"^compress\(\) has no argument alpha; keys of conf/ .* overrides="):
        loosely.compress(llama, windows, alpha=1)
    with pytest.raises(TypeError, match=r"^evaluate\(\) has no argument task; did you mean tasks\?$"):
        loosely.evaluate(llama, task="piqa")
    result = svdexp.compress(llama, windows, WHITENED)
    with pytest.raises(TypeError, match=r"^evaluate\(\) has no argument limt; did you mean limit\?"):
        result.evaluate(windows, limt=3)
    with pytest.raises(TypeError, match=r"^save\(\) has no argument foldr; did you mean folder\?"):
        loosely.Result.save(result, foldr="x")


def test_a_long_sentence_is_a_text_and_no_file(llama: PreTrainedModel, tokenizer: Any) -> None:
    sentence = "the rank of a matrix is the number of its independent rows and columns " * 8
    assert svdexp.evaluate(llama, sentence, tokenizer=tokenizer)["ppl/given"] > 1


def test_the_processor_of_a_model_that_sees_brings_its_tokenizer(tmp_path: Path) -> None:
    model, text = tiny_llava(tmp_path), ["the rank of a matrix is its number of rows " * 20]
    processor = AutoProcessor.from_pretrained(tmp_path)
    given = svdexp.evaluate(model, text, tokenizer=processor, seq_len=16)
    assert given["ppl/given"] == svdexp.evaluate(model, text, tokenizer=processor.tokenizer, seq_len=16)["ppl/given"]
    result = svdexp.compress(model, text, "svd", 0.8, tokenizer=processor, samples=2, seq_len=16)
    assert result.tokenizer is processor.tokenizer


def test_a_model_that_is_none_is_one_sentence(model_folder: Path) -> None:
    for model, words in ((torch.nn.Linear(2, 2), "not Linear"), ("./nowhere", "is not a folder")):
        with pytest.raises(svdexp.UserError, match=words):
            svdexp.compress(model, ["the rank of a matrix"])  # type: ignore[arg-type]
        with pytest.raises(svdexp.UserError, match=words if isinstance(model, str) else "not Linear"):
            svdexp.evaluate(model, "pydoc")  # type: ignore[arg-type]


def test_the_traceback_is_there_for_who_wants_it(
    llama: PreTrainedModel, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVDEXP_DEBUG", "1")
    with pytest.raises(hydra.errors.MissingConfigException):
        svdexp.compress(llama, windows, "nothing")


# --- what stays as it was ---------------------------------------------------------------------------------------------


def test_the_process_is_left_as_it_was_found(model_folder: Path, text: str) -> None:
    root, ours = logging.getLogger(), logging.getLogger("svdexp")
    torch.manual_seed(11), random.seed(11), np.random.seed(11)
    torch.set_default_dtype(torch.float64)

    def state() -> list[Any]:
        return [
            torch.random.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            (root.level, list(root.handlers), ours.level, list(ours.handlers), logging.raiseExceptions),
            {key: value for key, value in os.environ.items() if "PYTEST" not in key},
        ]

    try:
        with torch.no_grad():
            before = state()
            result = svdexp.compress(model_folder, [text], samples=2, seq_len=16)
            result.evaluate([text], seq_len=16, windows=2)
            assert state() == before
    finally:
        torch.set_default_dtype(torch.float32)


def test_inside_of_an_application_of_hydras_it_stays_that_application(model_folder: Path, text: str) -> None:
    with hydra.initialize(config_path=None, version_base="1.2"):
        ConfigStore.instance().store(name="schema", node={"mine": 1})
        kept = {kind: Singleton._instances[kind] for kind in (GlobalHydra, VersionBase, ConfigStore)}
        svdexp.compress(model_folder, [text], samples=2, seq_len=16)
        assert {kind: Singleton._instances[kind] for kind in kept} == kept
        assert hydra.compose("schema") == {"mine": 1}
        assert hydra.version.base_at_least("1.2")
        assert not hydra.version.base_at_least("1.3")


def test_the_cache_is_a_folder_that_is_asked_for_or_named_by_the_environment(
    llama: PreTrainedModel, windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    svdexp.compress(copy.deepcopy(llama), windows, "svd_llm")
    assert not list(tmp_path.iterdir())
    svdexp.compress(copy.deepcopy(llama), windows, "svd_llm", cache="asked")
    monkeypatch.setenv("SVDEXP_CACHE", str(tmp_path / "named"))
    svdexp.compress(llama, windows, "svd_llm")
    assert all((tmp_path / name / "decompositions").is_dir() for name in ("asked", "named"))


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_result_shows_saves_and_exports_itself(model_folder: Path, text: str, tmp_path: Path) -> None:
    result = svdexp.compress(model_folder, [text], "svd_llm", 0.6, samples=4, seq_len=32, precision="float32")
    assert len(result.layers) == len(result.ranks) == 21
    assert result.layers.loc["model.layers.0.mlp.up_proj", "rank"] == result.ranks["model.layers.0.mlp.up_proj"]
    figures = result.evaluate([text], seq_len=32, windows=3)
    assert (
        figures.loc["ppl/given", "factor"] == figures.loc["ppl/given", "compressed"] / figures.loc["ppl/given", "dense"]
    )
    shown, page = str(result.summary()), result._repr_html_()
    for words in ("svd_llm", "mlp.down_proj", "ppl/given", "input_moment"):
        assert words in shown
        assert words in page
    assert page == result.summary()._repr_html_()

    assert result.save(tmp_path / "saved") == tmp_path / "saved"
    model, tokenizer = svdexp.load(tmp_path / "saved")
    assert same_weights(model, result.model)
    assert tokenizer("the rank")["input_ids"] == result.tokenizer("the rank")["input_ids"]
    record = svdexp.read(tmp_path / "saved").iloc[0]
    assert record["ppl/given"] == figures.loc["ppl/given", "compressed"]
    assert record["ppl_dense/given"] == figures.loc["ppl/given", "dense"]
    assert record["series"] == "svd_llm"
    result.save(tmp_path / "saved")  # a model gives way to a model
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(svdexp.UserError, match="holds no model"):
        result.save(tmp_path / "other")
    with pytest.raises(svdexp.UserError, match="is the dense model's own, which would be lost: name another"):
        result.save(f"{model_folder}/")

    ids = torch.tensor([tokenizer("the rank of a matrix")["input_ids"]])
    for form in ("hf", "dense"):
        assert result.export(tmp_path / form, form) == tmp_path / form
        assert "svd_llm" in (tmp_path / form / "README.md").read_text()
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / form, trust_remote_code=form == "hf")
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-3)
    for form, words in (("onnx", "^format: "), ("hf", "is there already")):
        with pytest.raises(svdexp.UserError, match=words):
            result.export(tmp_path / ("new" if form == "onnx" else "hf"), form)
    assert not list(tmp_path.glob(".svdexp-*"))


def test_the_dense_model_is_where_it_can_be_had(
    llama: PreTrainedModel, windows: torch.Tensor, tokenizer: Any, text: str
) -> None:
    dense = copy.deepcopy(llama)
    before = svdexp.evaluate(llama, [text], tokenizer=tokenizer, seq_len=32)
    result = svdexp.compress(llama, windows, "svd_llm", 0.5, tokenizer=tokenizer)
    assert "dense" not in result.evaluate([text], seq_len=32)
    for given in (before, dense):
        table = result.evaluate([text], seq_len=32, dense=given)
        assert table.loc["ppl/given", "dense"] == before["ppl/given"]
    with pytest.raises(svdexp.UserError, match="dense=MODEL"):
        result.evaluate([text], seq_len=32, dense=True)


def test_a_model_without_a_tokenizer_is_measured_on_tokens(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    """It may have no name either: nothing is looked for on a hub."""
    result = svdexp.compress(llama, windows, WHITENED, 0.5)
    assert result.evaluate(windows).loc["ppl/given", "compressed"] == svdexp.evaluate(llama, windows)["ppl/given"]
    with pytest.raises(svdexp.UserError, match="texts given as text needs a tokenizer"):
        result.evaluate(["the rank of a matrix"])
    with pytest.raises(svdexp.UserError, match=r"^residency has no effect on a model that is given"):
        result.evaluate(windows, residency="streamed")


def test_another_applications_command_is_not_the_runs(llama: PreTrainedModel, windows: torch.Tensor) -> None:
    with hydra.initialize_config_dir(config_dir(), version_base="1.3"):
        HydraConfig.instance().set_config(hydra.compose("evaluate", ["seed=7"], return_hydra_config=True))
        assert command() == "seed=7"
        result = svdexp.compress(llama, windows, WHITENED, 0.5)
        assert result.summary().record["command"] is None
    Singleton._instances.pop(HydraConfig, None)


def test_a_file_that_calibrated_measures_no_result(model_folder: Path, text_file: Path, other_text_file: Path) -> None:
    result = svdexp.compress(model_folder, text_file, samples=2, seq_len=16)
    with pytest.raises(svdexp.UserError, match=r"^calibration\.files and eval\.files share"):
        result.evaluate(text_file, windows=2, seq_len=16)
    assert "ppl/files" in result.evaluate(other_text_file, windows=2, seq_len=16).index


def test_evaluate_takes_models_folders_and_texts_of_any_kind(
    llama: PreTrainedModel, model_folder: Path, text_file: Path, text: str, tokenizer: Any, windows: torch.Tensor
) -> None:
    llama.train()
    tokens = windows % 15
    by_tokens = svdexp.evaluate(llama, {"mine": tokens, "yours": tokens[:2]})
    assert {"ppl/mine", "ppl/yours", "params", "bytes"} <= set(by_tokens.index)
    assert llama.training
    with at_rest(llama), torch.no_grad():
        loss = llama(tokens, labels=tokens).loss
    assert by_tokens["ppl/mine"] == pytest.approx(float(loss.exp()), rel=1e-4)
    sizes: dict[str, Any] = {"seq_len": 32, "windows": 2, "precision": "float32"}
    of_file = svdexp.evaluate(model_folder, text_file, **sizes)["ppl/files"]
    assert of_file == svdexp.evaluate(model_folder, text, **sizes)["ppl/given"]
    assert svdexp.evaluate(str(model_folder), "pydoc", **sizes)["ppl/pydoc"] > 1
    assert "tokens_per_second/prefill" not in by_tokens
    shape = {"efficiency": {"prompt": 8, "generate": 2, "repeats": 1}}
    timed = svdexp.evaluate(llama, eval=shape | {"texts": []})
    assert timed["tokens_per_second/prefill"] > 0
    for options, words in (
        ({"texts": "wikitxt"}, r"eval\.texts: no text is called 'wikitxt'; choose from pydoc"),
        ({"texts": [3]}, "documents are strings of several words"),
        ({"tasks": "arc"}, "arc"),
        ({"texts": [text], "tokenizer": None}, "texts given as text needs a tokenizer"),
        ({"texts": "pydoc", "overrides": ["path=x"]}, "path has no effect here"),
    ):
        with pytest.raises(svdexp.UserError, match=words):
            svdexp.evaluate(llama, **{"tokenizer": tokenizer, **options})


def test_tasks_are_asked(model_folder: Path, tmp_path: Path) -> None:
    write_local(tmp_path, ["arc_easy"], count=5)
    figures = svdexp.evaluate(model_folder, tasks="arc_easy", limit=3, overrides=[f"eval.tasks_dir={tmp_path}"])
    assert 0 <= figures["acc/arc_easy"] <= 1
    assert figures["acc_rows/arc_easy"] == 3


# --- tables -----------------------------------------------------------------------------------------------------------


def test_methods_are_listed_with_what_their_files_say() -> None:
    table = svdexp.methods()
    assert isinstance(table, pd.DataFrame)
    assert list(table.index) == names_of("method")
    assert dict(table.loc["kron"]) | {"about": ""} == {
        "weighting": "two_sided",
        "allocation": "global_loss",
        "update": "",
        "traversal": "dense",
        "storage": "",
        "about": "",
    }
    assert table.loc["dobi", "storage"] == "remap"
    assert table.loc["svd", "about"].startswith("Plain truncated SVD")
    assert all(table["about"])


def test_read_takes_runs_and_says_what_is_missing(
    tmp_path: Path, llama: PreTrainedModel, windows: torch.Tensor
) -> None:
    with pytest.raises(svdexp.UserError, match=r"no results\.json"):
        svdexp.read(tmp_path)
    for ratio in (0.5, 0.7):
        svdexp.compress(copy.deepcopy(llama), windows, "svd_llm", ratio).save(tmp_path / f"{ratio}")
    (tmp_path / "failed" / ".hydra").mkdir(parents=True)
    (tmp_path / "failed" / ".hydra" / "config.yaml").touch()
    table = svdexp.read([tmp_path / "0.5", str(tmp_path / "0.7"), tmp_path / "failed"])
    assert sorted(table["ratio"]) == [0.5, 0.7]
    assert table.attrs["missing"][str(tmp_path / "failed")].startswith("unfinished")
