"""Accuracies and other scores on lm-eval's tasks, by lm-eval, on the model in memory."""

import copy
import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from transformers import PreTrainedModel

from svdexp.evaluation.tasks import SUITES, Exam
from svdexp.evaluation.tasks.exam import quiet
from svdexp.models.residency import residency_of
from svdexp.record import Record, Results
from svdexp.record.keys import Family
from svdexp.record.results import ACC, ACC_NORM, ACC_NORM_STDERR, ACC_ROWS, ACC_STDERR, AVERAGE, SCORE, SCORE_STDERR
from svdexp.runtime.errors import UserError
from svdexp.runtime.shelves import Cache, identity

log = logging.getLogger(__name__)

METRICS = {"acc": (ACC, ACC_STDERR), "acc_norm": (ACC_NORM, ACC_NORM_STDERR)}  # by lm-eval's name
LIKELIHOODS = "float32"
REQUESTS = 16  # of about a hundred tokens each


def accuracies(
    model: PreTrainedModel,
    tokenizer: Any,
    exams: Sequence[Exam],
    *,
    batch_size: int | None,
    cache: Cache,
    weights: str | None,
    what: str,
) -> Results:
    """acc/TASK and acc_norm/TASK with acc_stderr/TASK, acc_norm_stderr/TASK and acc_rows/TASK, and acc/average.

    Of other metrics score/TASK/METRIC and score_stderr/TASK/METRIC; of a group of lm-eval's the same under its name.

    Args:
        model: on its device, in evaluation mode.
        tokenizer: the model's; it is not changed.
        exams: what is asked.
        batch_size: requests, of one row and choice each, per forward pass; None takes REQUESTS.
        cache: what was answered before by the same weights is not asked again.
        weights: the model's fingerprint.
        what: "dense" or "compressed", for the log.

    Raises:
        UserError: a log-likelihood is not finite.
    """
    figures: Results = {}
    found: dict[str, Mapping[str, Any]] = {}
    for exam in exams:
        shelf = cache.shelf("accuracy", model=weights, device=model.device.type, **asked(exam, tokenizer))
        answers = shelf.remember("answers", partial(answer, model, tokenizer, exam, batch_size or REQUESTS))
        for metric, right in answers.items():
            figures |= told(exam.name, metric, right)
        figures |= ACC_ROWS.says({exam.name: sum(map(len, exam.rows.values()))})
        found[exam.name] = as_lm_eval_says(exam, answers)
        said = ", ".join(f"{metric} {right.mean().item():.4f}" for metric, right in answers.items())
        log.info("%s of the %s model: %s", exam.name, what, said)
    return figures | pooled(exams, found) | average(figures)


def as_lm_eval_says(exam: Exam, answers: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """A task's figures as lm-eval's groups read them: by METRIC,FILTER and METRIC_stderr,FILTER."""
    filters = [entry["name"] for entry in (exam.recipe or {}).get("filter_list") or [{"name": "none"}]]
    said: dict[str, Any] = {"sample_len": sum(map(len, exam.rows.values()))}
    for key, values in answers.items():
        metric, _, filtered = key.partition(",")
        filtered = filtered or filters[0]
        said[f"{metric},{filtered}"] = values.mean().item()
        if values.ndim:
            said[f"{metric}_stderr,{filtered}"] = standard_error(values)
    return said


def pooled(exams: Sequence[Exam], found: Mapping[str, Mapping[str, Any]]) -> Results:
    """The figures of lm-eval's groups among what was asked, by its own rule for each: mostly every row counts once.

    `found` has those of the tasks, as lm-eval says them.
    """
    figures: Results = {}
    for group in {group.name: group for exam in exams for group in exam.groups}.values():
        with quiet():
            said = group.aggregate(found)
        metrics = [key for key in said if "," in key and not key.partition(",")[0].endswith("_stderr")]
        for key in metrics:
            metric, _, filtered = key.partition(",")
            alone = sum(other.startswith(f"{metric},") for other in metrics) == 1
            error = said.get(f"{metric}_stderr,{filtered}")
            shares, errors, member = family(group.name, metric if alone else key)
            figures |= shares.says({member: float(said[key])})
            figures |= errors.says({member: float(error)}) if isinstance(error, float) else {}
        figures |= ACC_ROWS.says(
            {group.name: sum(found[task.task_name]["sample_len"] for task in group.get_all_tasks())}
        )
    return figures


def family(task: str, metric: str) -> tuple[Family[float], Family[float], str]:
    """Where a metric of a task stands: the family of its figures, that of their errors, and the member."""
    return (*METRICS[metric], task) if metric in METRICS else (SCORE, SCORE_STDERR, f"{task}/{metric}")


def told(task: str, metric: str, values: torch.Tensor) -> Results:
    """The figures of what `answer` gives of one metric: mean and standard error, or the one figure that it is."""
    shares, errors, member = family(task, metric)
    found = shares.says({member: values.mean().item()})
    return found | (errors.says({member: standard_error(values)}) if values.ndim else {})


def answer(model: PreTrainedModel, tokenizer: Any, exam: Exam, batch_size: int) -> dict[str, torch.Tensor]:
    """1.0 for each row that the model gets right, else 0.0, float64 (rows,), by metric; rows in the exam's order.

    Of tasks that only lm-eval knows, what its metrics give by row; (), the figure alone, where that is no mean of rows.

    Raises:
        UserError: a log-likelihood is not finite.
    """
    from lm_eval import evaluate

    for task in exam.parts.values():
        task.set_fewshot_seed(seed=exam.seed)
    with quiet():
        wrapped = language_model(model, tokenizer, batch_size)
        found = evaluate(wrapped, {"tasks": dict(exam.parts), "groups": {}}, samples=dict(exam.rows), bootstrap_iters=0)
    assert found is not None
    samples = [sample for part in exam.rows for sample in found["samples"][part]]
    for sample in samples if exam.asks_likelihoods else []:
        if not all(math.isfinite(likelihood) for likelihood, _ in sample["filtered_resps"]):
            raise UserError(f"eval: a log-likelihood in {exam.name} is not finite; try precision=float32")
    if exam.recipe is not None:
        return scores(found, exam.name)
    return {
        metric: torch.tensor([sample[metric] for sample in samples], dtype=torch.float64)
        for metric in METRICS
        if metric in samples[0]
    }


def scores(found: Mapping[str, Any], task: str) -> dict[str, torch.Tensor]:
    """What lm-eval found of one task, by metric: METRIC, or METRIC,FILTER where it filters answers in several ways."""
    samples, results = found["samples"][task], found["results"][task]
    filters = dict.fromkeys(sample["filter"] for sample in samples)
    by_metric: dict[str, torch.Tensor] = {}
    for key, value in results.items():
        metric, comma, filtered = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        rows = [sample[metric] for sample in samples if sample["filter"] == filtered and metric in sample]
        figure = torch.tensor(value, dtype=torch.float64)
        if rows and all(isinstance(row, int | float) for row in rows):
            each = torch.tensor(rows, dtype=torch.float64)
            figure = each if torch.isclose(each.mean(), figure, rtol=1e-9, atol=0.0) else figure
        by_metric[metric if len(filters) == 1 else key] = figure
    return by_metric


def language_model(model: PreTrainedModel, tokenizer: Any, batch_size: int) -> Any:
    """lm-eval's view of the model. Its log-likelihoods are float32: choices of a 16-bit model would tie otherwise."""
    from lm_eval.models.huggingface import HFLM

    from svdexp.evaluation.block_by_block import BlockByBlock
    from svdexp.evaluation.shared_contexts import SharedContexts

    kind = SharedContexts if model.device.type == "cpu" else HFLM
    if residency_of(model):
        kind = BlockByBlock
    # lm-eval gives the tokenizer a padding token, which is not to reach a checkpoint
    own = copy.deepcopy(tokenizer)
    return kind(pretrained=model, tokenizer=own, batch_size=batch_size, softmax_dtype=LIKELIHOODS)


def asked(exam: Exam, tokenizer: Any) -> dict[str, Any]:
    """All that answers depend on beside the model: the rows themselves and what the tokenizer makes of them."""
    parts = [(task, rows) for part, rows in exam.rows.items() if (task := exam.parts[part])]
    texts = [json.dumps([task.eval_docs[row] for row in rows], default=str) for task, rows in parts]
    if exam.num_fewshot:
        texts += [json.dumps(list(task.fewshot_docs()), default=str) for task in exam.parts.values()]
    recipe = {"recipe": json.dumps(exam.recipe, default=str)} if exam.recipe is not None else {}
    beside = {"beside": exam.beside} if exam.beside is not None else {}
    return {
        **recipe,
        **beside,
        "task": exam.name,
        "version": exam.version,
        "lm_eval": version("lm-eval"),
        "num_fewshot": exam.num_fewshot,
        "seed": exam.seed,
        "softmax": LIKELIHOODS,
        "data": identity(parts=list(exam.rows), texts=texts),
        "tokens": identity(ids=tokenizer(texts)["input_ids"]),
    }


def standard_error(right: torch.Tensor) -> float:
    """Of the mean of (rows,): sample standard deviation over the root of the rows; nan for one row."""
    return float(right.std()) / math.sqrt(len(right)) if len(right) > 1 else math.nan


def average(figures: Record) -> Results:
    """acc/average: the mean of the seven commonsense acc, each task counting once; nothing unless all are there."""
    tasks, right, errors = SUITES["commonsense"], ACC.of(figures), ACC_STDERR.of(figures)
    if not set(tasks) <= right.keys():
        return {}
    mean, error = sum(right[task] for task in tasks), math.hypot(*(errors[task] for task in tasks))
    return ACC.says({AVERAGE: mean / len(tasks)}) | ACC_STDERR.says({AVERAGE: error / len(tasks)})
