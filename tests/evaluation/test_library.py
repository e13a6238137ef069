"""Tasks that only lm-eval knows: by name, in the user's own folder, and figures equal to lm-eval's own."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from svdexp.evaluation.accuracy import accuracies, asked
from svdexp.evaluation.tasks import check_tasks, expand, load_exams, task_files
from svdexp.evaluation.tasks.exam import lm_eval_tasks
from svdexp.evaluation.tasks.library import definitions, library, tags
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache
from svdexp.schema import EvalConfig
from tests.conftest import TINY, WORDS

GENERATES = """
task: writes
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["</s>"], do_sample: false, max_gen_toks: 6}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "(\\\\w+)"}, {function: take_first}]}
  - {name: last, filter: [{function: regex, regex_pattern: "(\\\\w+)", group_select: -1}, {function: take_first}]}
metadata: {version: 2.0}
"""
READS = """
task: reads
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{question}}"
doc_to_target: " {{answer}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.0}
"""


@pytest.fixture(autouse=True)
def _no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SVDEXP_DATA", raising=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a task that writes, one that reads, and their rows."""
    folder = tmp_path / "own"
    folder.mkdir()
    write_rows(folder / "rows.jsonl", 8)
    for name, text in (("writes", GENERATES), ("reads", READS)):
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(folder / "rows.jsonl")))
    return folder


def write_rows(path: Path, count: int) -> None:
    picks = torch.randint(len(WORDS), (count, 5), generator=torch.Generator().manual_seed(4)).tolist()
    rows = [{"question": " ".join(WORDS[i] for i in row[:4]), "answer": WORDS[row[4]]} for row in picks]
    path.write_text("\n".join(map(json.dumps, rows)))


def speaker(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A tiny model that writes words of the tokenizer alone."""
    config = copy.deepcopy(TINY["llama"])
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def answer_rows(path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, every: int) -> None:
    """Let every second row, or so, ask for the first word that the model writes."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[::every]:
        tokens = tokenizer(row["question"], return_tensors="pt")
        written = model.generate(**tokens, max_new_tokens=6, do_sample=False)[0, tokens["input_ids"].shape[1] :]
        row["answer"] = (tokenizer.decode(written, skip_special_tokens=True).split() or ["nothing"])[0]
    path.write_text("\n".join(map(json.dumps, rows)))


def figures(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, part: EvalConfig) -> dict[str, Any]:
    exams = load_exams(part, seed=0)
    how = {"batch_size": 2, "cache": Cache(), "weights": "x", "what": "dense"}
    return accuracies(model, tokenizer, exams, **how)  # type: ignore[arg-type]


def theirs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, own: Path) -> dict[str, Any]:
    wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=2, softmax_dtype="float32")
    manager = TaskManager(include_path=str(own), include_defaults=False)
    found = simple_evaluate(wrapped, tasks=["writes", "reads"], task_manager=manager, bootstrap_iters=0)
    assert found is not None
    results: dict[str, Any] = found["results"]
    return results


def test_figures_are_lm_evals_own(tokenizer: PreTrainedTokenizerFast, own: Path) -> None:
    model = speaker(tokenizer)
    answer_rows(own / "rows.jsonl", model, tokenizer, every=2)
    part = EvalConfig(tasks=["writes", "reads"], include_path=str(own))
    ours, known = figures(model, tokenizer, part), theirs(model, tokenizer, own)
    assert ours["acc/reads"] + ours["score/writes/exact_match,first"] > 0
    assert ours["score/writes/exact_match,first"] == known["writes"]["exact_match,first"]
    assert ours["score/writes/exact_match,last"] == known["writes"]["exact_match,last"]
    assert ours["score/reads/perplexity"] == pytest.approx(known["reads"]["perplexity,none"], rel=1e-5)
    assert ours["acc/reads"] == known["reads"]["acc,none"]
    assert ours["acc_rows/writes"] == ours["acc_rows/reads"] == 8
    assert {"score_stderr/writes/exact_match,first", "acc_stderr/reads"} <= ours.keys()
    assert "score_stderr/reads/perplexity" not in ours  # no mean of rows


def test_what_a_model_writes_counts(tokenizer: PreTrainedTokenizerFast, own: Path) -> None:
    model = speaker(tokenizer)
    answer_rows(own / "rows.jsonl", model, tokenizer, every=1)
    found = figures(model, tokenizer, EvalConfig(tasks=["writes"], include_path=str(own)))
    assert found["score/writes/exact_match,first"] > 0.7


def test_rows_are_drawn_and_files_count(tokenizer: PreTrainedTokenizerFast, own: Path) -> None:
    part = EvalConfig(tasks=["writes"], include_path=str(own), limit=3)
    (exam,) = load_exams(part, seed=0)
    assert (exam.describe()["rows"], exam.describe()["of"], exam.describe()["version"]) == (3, 8, "2.0")
    assert exam.describe()["source"] == str(own / "writes.yaml")
    names = ["reads.yaml", "rows.jsonl", "writes.yaml"]
    assert task_files(part) == {"writes": [own / name for name in names]}


def test_answers_are_kept_only_as_long_as_all_code_beside_the_task_is_the_same(
    tokenizer: PreTrainedTokenizerFast, own: Path
) -> None:
    """What lm-eval says of a function is its source, which does not hold that of what it calls."""
    (own / "reads.yaml").unlink()
    scored = GENERATES.replace("DATA", str(own / "rows.jsonl")).partition("metric_list:")[0]
    metric = "process_results: !function marks.given\nmetric_list:\n  - {metric: marks, aggregation: mean}\n"
    (own / "writes.yaml").write_text(f"{scored}{metric}metadata: {{version: 1.0}}\n")
    part, seen = EvalConfig(tasks=["writes"], include_path=str(own)), []
    for points in (1, 1, 2):
        code = f"def points():\n    return {points}\n\n\ndef given(doc, results):\n    return {{'marks': points()}}\n"
        (own / "marks.py").write_text(code)
        (exam,) = load_exams(part, seed=0)
        seen.append(asked(exam, tokenizer))
    assert seen[0] == seen[1]
    assert seen[1]["recipe"] == seen[2]["recipe"]
    assert seen[1] != seen[2]


def test_rows_of_lm_evals_own_tasks_may_lie_here(tmp_path: Path) -> None:
    for split, count in (("test", 3), ("dev", 6)):
        file = tmp_path / "data" / "gsm8k" / f"{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) for i in range(count)))
    part = EvalConfig(tasks=["gsm8k"], tasks_dir=str(tmp_path / "data"))
    check_tasks(part)
    (exam,) = load_exams(part, seed=0)
    assert (exam.num_fewshot, exam.of, exam.source) == (5, 3, str(tmp_path / "data" / "gsm8k" / "test.jsonl"))
    (exam,) = load_exams(EvalConfig(tasks=["gsm8k"], tasks_dir=str(tmp_path / "data"), num_fewshot=0), seed=0)
    assert exam.num_fewshot == 0
    (task,) = exam.parts.values()
    assert task.doc_to_text(task.eval_docs[0]) == "Question: 0?\nAnswer:"


def test_every_name_of_lm_evals_is_known() -> None:
    names = ["gsm8k", "ifeval", "lambada_openai", "mmlu_anatomy", "longbench_qasper", "leaderboard", "lambada"]
    assert expand(names) == names
    assert "mmlu_anatomy" in definitions(library())
    assert "lambada" in tags(library())


def test_an_unknown_name_is_answered_with_near_ones(own: Path) -> None:
    with pytest.raises(UserError, match=r"eval\.tasks: no task is called 'gsm8'; there is gsm8k"):
        check_tasks(EvalConfig(tasks=["gsm8"]))
    with pytest.raises(UserError, match="there is writes"):
        check_tasks(EvalConfig(tasks=["write"], include_path=str(own)))
    with pytest.raises(UserError, match=r"any of lm-eval's is one"):
        check_tasks(EvalConfig(tasks=["zzzzzzzz"]))


def test_a_folder_of_tasks_must_be_one(tmp_path: Path) -> None:
    for path, sentence in ((tmp_path / "no", "is not a folder"), (tmp_path, "has no task")):
        with pytest.raises(UserError, match=rf"eval\.include_path=.* {sentence}"):
            check_tasks(EvalConfig(tasks=["piqa"], include_path=str(path)))


def test_code_that_a_model_writes_is_not_run(monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    (task,) = lm_eval_tasks("writes", own / "writes.yaml", None)[0].values()
    task.UNSAFE_CODE = True
    monkeypatch.setattr("svdexp.evaluation.tasks.exam.lm_eval_tasks", lambda *about: ({"writes": task}, []))
    with pytest.raises(UserError, match="writes runs code that a model writes"):
        load_exams(EvalConfig(tasks=["writes"], include_path=str(own)), seed=0)


def test_the_hub_that_cannot_be_had_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"the task gsm8k cannot be loaded .*eval\.tasks_dir=FOLDER reads gsm8k/test"):
        load_exams(EvalConfig(tasks=["gsm8k"]), seed=0)


def test_a_group_has_the_pooled_figures_that_lm_eval_gives_it(tokenizer: PreTrainedTokenizerFast, own: Path) -> None:
    write_rows(own / "few.jsonl", 3)
    few = READS.replace("task: reads", "task: reads_few").replace("DATA", str(own / "few.jsonl"))
    (own / "reads_few.yaml").write_text(few)
    metrics = "[{metric: acc, weight_by_size: true}, {metric: perplexity, weight_by_size: false}]"
    (own / "both.yaml").write_text(f"group: both\ntask: [reads, reads_few]\naggregate_metric_list: {metrics}\n")
    (own / "unpooled.yaml").write_text("group: unpooled\ntask: [reads]\n")
    model = speaker(tokenizer)
    answer_rows(own / "rows.jsonl", model, tokenizer, every=2)
    part = EvalConfig(tasks=["both", "unpooled"], include_path=str(own))
    ours = figures(model, tokenizer, part)

    wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=2, softmax_dtype="float32")
    manager = TaskManager(include_path=str(own), include_defaults=False)
    found = simple_evaluate(wrapped, tasks=["both"], task_manager=manager, bootstrap_iters=10)
    assert found is not None
    known = found["groups"]["both"]
    assert ours["acc/both"] == known["acc,none"]
    assert ours["acc/both"] == pytest.approx((8 * ours["acc/reads"] + 3 * ours["acc/reads_few"]) / 11)
    assert ours["acc_stderr/both"] == pytest.approx(known["acc_stderr,none"])
    assert ours["acc_rows/both"] == 11
    assert ours["score/both/perplexity"] == pytest.approx(known["perplexity,none"], rel=1e-5)
    assert "acc/unpooled" not in ours
    described = {exam.name: exam.describe() for exam in load_exams(part, seed=0)}
    assert described["reads_few"]["groups"] == ["both"]
