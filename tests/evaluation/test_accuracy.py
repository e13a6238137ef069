"""Accuracies against lm-eval's command line, their standard errors, the cache, and a model that gives nan."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import svdexp.evaluation.accuracy as module
from svdexp.allocation import Uniform
from svdexp.checkpoints import checkpoint
from svdexp.engine.compress import compress
from svdexp.evaluation import accuracies, load_exams
from svdexp.evaluation.accuracy import average, standard_error
from svdexp.evaluation.tasks import SUITES, Exam
from svdexp.factorisation import InputMoment
from svdexp.method import Method
from svdexp.models.families import LINEAR
from svdexp.models.fingerprint import model_fingerprint
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import EvalConfig
from svdexp.storage import FactorStorage
from tests.conftest import tiny_model
from tests.end_to_end import forked
from tests.evaluation.task_rows import write_hub, write_local
from tests.support.mathematics import answered, recorded, unlike

TASKS = ["arc_easy", "winogrande", "hellaswag"]
ROWS = 25


def measured(model: PreTrainedModel, tokenizer: Any, folder: Path, cache: Path | None = None, **options: Any) -> Any:
    part = EvalConfig(**({"tasks": TASKS, "tasks_dir": str(folder)} | options))
    exams = load_exams(part, seed=0)
    weights = model_fingerprint(model)
    return accuracies(model, tokenizer, exams, batch_size=4, cache=Cache(cache), weights=weights, what="tiny")


def command_line(model: Path, tasks: Path, names: Sequence[str], out: Path) -> dict[str, dict[str, float]]:
    """What lm-eval's own command measures with its own task definitions."""
    command = ["--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--include_path", str(tasks)]
    command += ["--tasks", ",".join(f"hub_{name}" for name in names), "--output_path", str(out)]
    done = forked.run(tasks, command, program="lm_eval")
    assert done.returncode == 0, done.output
    (file,) = out.rglob("results_*.json")
    found: dict[str, dict[str, float]] = json.loads(file.read_text())["results"]
    return found


def halved(tokenizer: Any, folder: Path) -> tuple[PreTrainedModel, Path]:
    """A model compressed to half, read back from its checkpoint, and a folder with the same model in dense weights."""
    model = tiny_model("llama_gqa")
    windows = torch.randint(3, 15, (6, 24), generator=torch.Generator().manual_seed(1))
    method = Method("svd_llm", InputMoment(), Uniform(), FactorStorage())
    ranks = compress(model, windows, method, 0.5).ranks
    checkpoint.save(model, tokenizer, folder / "compressed", ranks)
    compressed, _ = checkpoint.load(folder / "compressed")
    merged = tiny_model("llama_gqa")
    for name in compressed.config.svdexp["layers"]:
        layer, dense = compressed.get_submodule(name), merged.get_submodule(name)
        identity = torch.eye(LINEAR.weight(dense).shape[1])
        dense.weight.copy_(layer(identity).T)
    merged.save_pretrained(folder / "merged")
    tokenizer.save_pretrained(folder / "merged")
    return compressed, folder / "merged"


@pytest.mark.parametrize("compressed", [False, True])
def test_figures_are_those_of_lm_evals_command_line(
    compressed: bool, model_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    local, hub = write_local(tmp_path / "local", TASKS, ROWS), write_hub(tmp_path / "hub", TASKS, ROWS)
    model, folder = halved(tokenizer, tmp_path) if compressed else (tiny_model("llama_gqa"), model_folder)
    figures = measured(model, tokenizer, local)
    theirs = command_line(folder, hub, TASKS, tmp_path / "out")
    for name in TASKS:
        assert figures[f"acc_rows/{name}"] == ROWS
        for metric in ("acc", "acc_norm"):
            expected = theirs[f"hub_{name}"].get(f"{metric},none")
            assert figures.get(f"{metric}/{name}") == expected
            if expected is not None:
                error = theirs[f"hub_{name}"][f"{metric}_stderr,none"]
                assert figures[f"{metric}_stderr/{name}"] == pytest.approx(error)
    assert 0 < figures["acc/arc_easy"] < 1
    assert "acc_norm/winogrande" not in figures


def test_right_answers_change_with_format_alone(tmp_path: Path) -> None:
    """See tests/runtime/test_mathematics.py."""
    found, figures = answered(tmp_path), recorded()["figures"]
    assert len(found) == 6
    assert not unlike(found, {key: figures[key] for key in found}), "raise FORMAT and record anew"


def test_subjects_are_pooled_row_by_row(llama: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    write_local(tmp_path, ["mmlu"], count=30, dev=8)
    figures = measured(llama, tokenizer, tmp_path, tasks=["mmlu"], num_fewshot=1)
    (exam,) = load_exams(EvalConfig(tasks=["mmlu"], tasks_dir=str(tmp_path), num_fewshot=1), 0)
    right = module.answer(llama, tokenizer, exam, 1)["acc"]
    assert len(exam.parts) == 2
    assert figures.keys() == {"acc/mmlu", "acc_stderr/mmlu", "acc_rows/mmlu"}
    assert figures["acc_rows/mmlu"] == len(right) == 30
    assert figures["acc/mmlu"] == right.mean().item()


def test_the_same_model_is_asked_the_same_questions_once(
    llama: PreTrainedModel, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_local(tmp_path / "data", ["piqa"], count=30, dev=4)
    count = []

    def answer(*words: Any) -> dict[str, torch.Tensor]:
        count.append(1)
        return original(*words)

    original = module.answer
    monkeypatch.setattr(module, "answer", answer)

    def asked(model: PreTrainedModel = llama, **options: Any) -> tuple[int, float]:
        figures = measured(model, tokenizer, tmp_path / "data", tmp_path / "cache", **({"tasks": ["piqa"]} | options))
        return len(count), figures["acc_norm/piqa"]

    first = asked()
    assert asked() == first == (1, first[1])
    assert asked(limit=10)[0] == 2
    assert asked(num_fewshot=1)[0] == 3
    assert asked(tiny_model("llama"))[0] == 4
    write_local(tmp_path / "moved", ["piqa"], count=30)
    assert asked(tasks_dir=str(tmp_path / "moved")) == (4, first[1])  # the same rows from elsewhere
    write_local(tmp_path / "moved", ["piqa"], count=29)
    assert asked(tasks_dir=str(tmp_path / "moved"))[0] == 5
    assert asked() == (5, first[1])


def test_the_seed_draws_the_examples(llama: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    """And answers after other examples, or of other tokens, are others."""
    write_local(tmp_path, ["piqa"], count=3, dev=40)

    def exam_of(seed: int) -> Exam:
        return load_exams(EvalConfig(tasks=["piqa"], tasks_dir=str(tmp_path), num_fewshot=2), seed)[0]

    def contexts(seed: int) -> list[str]:
        exam = exam_of(seed)
        module.answer(llama, tokenizer, exam, 8)
        return [instance.args[0] for task in exam.parts.values() for instance in task.instances]

    assert contexts(0) == contexts(0) != contexts(1)
    assert module.asked(exam_of(0), tokenizer) == module.asked(exam_of(0), tokenizer)
    assert module.asked(exam_of(0), tokenizer) != module.asked(exam_of(1), tokenizer)
    others = module.asked(exam_of(0), lambda texts: {"input_ids": [[7] for _ in texts]})
    assert others != module.asked(exam_of(0), tokenizer)


def test_neither_tokenizer_nor_random_numbers_are_touched(
    llama: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    write_local(tmp_path, ["piqa"], count=2)
    before, state = tokenizer.pad_token, torch.get_rng_state()
    tokenizer.pad_token = None
    measured(llama, tokenizer, tmp_path, tasks=["piqa"])
    assert tokenizer.pad_token is None
    tokenizer.pad_token = before
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_that_gives_nan_is_refused(llama: PreTrainedModel, tokenizer: Any, tmp_path: Path) -> None:
    write_local(tmp_path, ["piqa"], count=2)
    llama.model.norm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"log-likelihood in piqa is not finite; try precision=float32"):
        measured(llama, tokenizer, tmp_path, tasks=["piqa"])


def test_standard_errors_and_the_average_by_hand() -> None:
    right = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    assert standard_error(right) == pytest.approx(math.sqrt((1 / 3) / 4))
    assert math.isnan(standard_error(right[:1]))
    figures = {f"acc/{name}": 0.1 * k for k, name in enumerate(SUITES["commonsense"])}
    figures |= {f"acc_stderr/{name}": 0.07 for name in SUITES["commonsense"]} | {"acc/mmlu": 1.0}
    assert average(figures) == {
        "acc/average": pytest.approx(0.3),
        "acc_stderr/average": pytest.approx(0.07 / math.sqrt(7)),
    }
    del figures["acc/piqa"]
    assert average(figures) == {}
