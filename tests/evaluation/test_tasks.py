"""Our local tasks ask what lm-eval's own ask; rows are drawn over the whole task; bad data is named."""

import gzip
import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from svdexp.evaluation.tasks import SUITES, TASKS, check_tasks, expand, load_exams
from svdexp.evaluation.tasks.exam import draw_rows
from svdexp.runtime.errors import UserError
from svdexp.schema import EvalConfig
from tests.evaluation.task_rows import questions, write_hub, write_local, write_rows

DATA = Path(os.environ.get("SVDEXP_DATA") or Path(__file__).parents[3] / "shared" / "data") / "tasks"


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SVDEXP_DATA", raising=False)


def asked(task: Any, shots: int) -> list[Any]:
    """Everything that decides about right and wrong: contexts, continuations, answers and metrics."""
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=3)
    task.build_all_requests()
    fakes = [(-1.0, False), (-4.0, False), (-2.0, False), (-3.0, False), (-1.5, False)]
    results = []
    for doc in task.eval_docs:
        choices = len(task.doc_to_choice(doc))
        results += [task.process_results(doc, fakes[k:choices] + fakes[:k]) for k in range(choices)]
    return [[request.args for request in task.instances], results, task.VERSION]


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("name", TASKS)
def test_local_tasks_ask_what_lm_evals_own_ask(name: str, shots: int, tmp_path: Path) -> None:
    write_hub(tmp_path / "hub", [name], count=9, dev=12)
    write_local(tmp_path / "local", [name], count=9, dev=12)
    manager = TaskManager(include_path=str(tmp_path / "hub"), include_defaults=False)
    part = EvalConfig(tasks=[name], tasks_dir=str(tmp_path / "local"), num_fewshot=shots)
    (exam,) = load_exams(part, seed=0)
    assert len(exam.parts) == (2 if name == "mmlu" else 1)
    for key, task in exam.parts.items():
        (theirs,) = manager.load([f"hub_{key}"])["tasks"].values()
        assert asked(task, shots) == asked(theirs, shots)


def test_suites_and_tasks_expand_once_in_order() -> None:
    assert expand(["piqa", "commonsense", "mmlu"])[:2] == ["piqa", "arc_easy"]
    assert len(expand(["piqa", "commonsense", "mmlu"])) == 8
    with pytest.raises(UserError, match=r"eval\.tasks: no task is called 'piqaa'; there is piqa"):
        expand(["piqaa"])


def test_rows_are_drawn_over_the_whole_task() -> None:
    sizes = {"a": 500, "b": 9500}
    drawn = draw_rows(sizes, 1000, Random(0))
    assert len(drawn["a"]) + len(drawn["b"]) == 1000
    assert 25 < len(drawn["a"]) < 80
    assert 4000 < sum(drawn["b"]) / len(drawn["b"]) < 5500
    assert drawn["b"] == sorted(set(drawn["b"]))
    assert drawn == draw_rows(sizes, 1000, Random(0)) != draw_rows(sizes, 1000, Random(1))
    assert draw_rows(sizes, 10_000, Random(0)) == draw_rows(sizes, None, Random(0))
    assert list(draw_rows({"a": 1, "b": 100_000}, 2, Random(0))) == ["b"]


def test_the_seed_draws_the_rows(tmp_path: Path) -> None:
    write_local(tmp_path, ["arc_easy", "piqa"], count=200)

    def rows(seed: int) -> list[Any]:
        part = EvalConfig(tasks=["arc_easy", "piqa"], tasks_dir=str(tmp_path), limit=20)
        return [next(iter(exam.rows.values())) for exam in load_exams(part, seed)]

    assert rows(0) == rows(0) != rows(1)
    assert rows(0)[0] != rows(0)[1]
    assert [len(drawn) for drawn in rows(0)] == [20, 20]


def test_the_data_folder_has_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_local(tmp_path / "tasks", ["piqa"], count=3)
    monkeypatch.setenv("SVDEXP_DATA", str(tmp_path))
    (exam,) = load_exams(EvalConfig(tasks=["piqa"]), 0)
    assert exam.source == str(tmp_path / "tasks" / "piqa" / "test.jsonl")
    assert exam.describe() | {"source": ""} == {"version": "1.0", "num_fewshot": 0, "rows": 3, "of": 3, "source": ""}
    check_tasks(EvalConfig(tasks=["boolq"]))  # from the hub
    with pytest.raises(UserError, match=r"boolq cannot be loaded from the hub .*eval\.tasks_dir=FOLDER reads boolq/"):
        load_exams(EvalConfig(tasks=["boolq"]), 0)


def test_compressed_files_are_read(tmp_path: Path) -> None:
    plain = write_rows(tmp_path / "piqa" / "test.jsonl", questions("piqa", 3)[1])
    (tmp_path / "piqa" / "test.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    (exam,) = load_exams(EvalConfig(tasks=["piqa"], tasks_dir=str(tmp_path)), 0)
    assert exam.of == 3


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"question": "a?", "choices": ["b"], "answer": 1}', "line 2: no row of arc_easy, which is question, choices"),
        ('{"question": "a?", "choices": ["b", ""], "answer": 0}', "line 2: no row"),
        ('{"question": 3, "choices": ["b", "c"], "answer": 0}', "line 2: no row"),
        ('{"question": "a?", "answer": 0}', "line 2: no row"),
        ("[]", "line 2: no row"),
        ("{", "line 2 is not JSON"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_bad_line_is_named(line: str | bytes, sentence: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "arc_easy" / "test.jsonl", questions("arc_easy", 1)[1])
    with path.open("ab") as file:
        file.write(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(UserError, match=sentence):
        load_exams(EvalConfig(tasks=["arc_easy"], tasks_dir=str(tmp_path)), 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tasks_dir": "nowhere"}, r"eval\.tasks_dir=nowhere is not a folder"),
        ({"tasks": ["mmlu"]}, r"eval\.tasks_dir=.* has no mmlu/test\.jsonl and no mmlu/test\.jsonl\.gz"),
        ({"num_fewshot": 5}, r"eval\.num_fewshot=5 takes examples from piqa/dev\.jsonl, not in"),
    ],
)
def test_missing_files_are_named_before_anything_is_read(
    options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    write_local(tmp_path, ["piqa"], count=1)
    with pytest.raises(UserError, match=sentence):
        check_tasks(EvalConfig(**({"tasks": ["piqa"], "tasks_dir": str(tmp_path)} | options)))


def test_too_few_examples(tmp_path: Path) -> None:
    write_local(tmp_path, ["piqa"], count=3, dev=2)
    with pytest.raises(UserError, match=r"eval\.num_fewshot=3, but piqa has 2 examples"):
        load_exams(EvalConfig(tasks=["piqa"], tasks_dir=str(tmp_path), num_fewshot=3), 0)


def test_an_empty_file(tmp_path: Path) -> None:
    write_rows(tmp_path / "piqa" / "test.jsonl", [])
    with pytest.raises(UserError, match=r"piqa/test\.jsonl is empty"):
        load_exams(EvalConfig(tasks=["piqa"], tasks_dir=str(tmp_path)), 0)


def test_the_real_files_are_read() -> None:
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not here; set $SVDEXP_DATA to the folder that holds tasks/")
    exams = load_exams(EvalConfig(tasks=["commonsense", "mmlu"], tasks_dir=str(DATA), limit=300), 0)
    assert [exam.name for exam in exams] == [*SUITES["commonsense"], "mmlu"]
    assert [sum(map(len, exam.rows.values())) for exam in exams] == [300] * 8
    assert len(exams[-1].parts) > 40  # of 57 subjects
    for exam in exams:
        assert exam.of == pytest.approx(TASKS[exam.name].rows, rel=0.03)
