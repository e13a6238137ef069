"""Evaluation from the command line: accuracies and continuations of a run, and models measured as they are."""

from pathlib import Path

import pytest

from tests.end_to_end import forked
from tests.end_to_end.conftest import Svdexp, read
from tests.end_to_end.test_bad_input import assert_one_sentence
from tests.evaluation.task_rows import write_local


@pytest.fixture
def evaluate_command(tmp_path: Path) -> Svdexp:
    """`python -m svdexp.evaluate WORDS` in an empty folder, without a hub and without local data."""

    def run(*words: str) -> forked.Outcome:
        return forked.run(tmp_path, words, program="svdexp.evaluate", SVDEXP_DATA="")

    return run


@pytest.fixture
def exam(other_text_file: Path, tmp_path: Path) -> list[str]:
    """Overrides that make eval=full small."""
    folder = write_local(tmp_path / "data", ["piqa", "winogrande"], count=40)
    return [
        "eval=full",
        "eval.texts=[files]",
        f"eval.files=[{other_text_file}]",
        "eval.windows=4",
        "eval.seq_len=32",
        "eval.tasks=[piqa,winogrande]",
        f"eval.tasks_dir={folder}",
        "eval.limit=15",
        "eval.prompts=['the rank of']",
        "eval.efficiency.prompt=8",
        "eval.efficiency.generate=4",
        "eval.efficiency.repeats=1",
    ]


FIGURES = ["acc/piqa", "acc_norm/piqa", "acc_stderr/piqa", "acc/winogrande", "acc_rows/piqa", "ppl/files", "bytes"]


def test_a_run_and_what_it_saved_are_measured_alike(
    svdexp_command: Svdexp,
    evaluate_command: Svdexp,
    tiny_job: list[str],
    exam: list[str],
    model_folder: Path,
    tmp_path: Path,
) -> None:
    run = svdexp_command(*tiny_job, *exam, "method=svd", "ratio=0.5", "hydra.run.dir=run")
    assert run.returncode == 0, run.stderr
    results = read(tmp_path / "run")
    task = {"version": "1.0", "num_fewshot": 0, "rows": 15, "of": 40}
    assert results["tasks"]["piqa"] == task | {"source": str(tmp_path / "data" / "piqa" / "test.jsonl")}
    assert results["acc_rows/piqa"] == results["acc_rows_dense/piqa"] == 15
    (said,) = results["generation"]
    assert said.keys() == {"prompt", "dense", "compressed"}
    for word in ("acc/piqa", "acc_norm/piqa", "acc/winogrande", "±", "the rank of", said["compressed"].split()[0]):
        assert word in run.stdout
    assert "acc_stderr" not in run.stdout

    for path, key in (("run", "compressed"), ("run/checkpoint", "compressed"), (str(model_folder), "dense")):
        own = path.strip("/").replace("/", "-")
        done = evaluate_command(f"path={path}", *exam, "cache=null", f"hydra.run.dir=alone/{own}")
        assert done.returncode == 0, done.stderr
        alone = read(tmp_path / "alone" / own)
        for figure in FIGURES:
            head, _, tail = figure.partition("/")
            wanted = results[figure if key == "compressed" else f"{head}_dense{'/' if tail else ''}{tail}"]
            assert alone[figure] == wanted, (path, figure)
        assert alone["generation"] == [{"prompt": "the rank of", "continuation": said[key]}]
        assert alone["tasks"] == results["tasks"]
        assert alone["seconds/evaluate"] > 0
        assert (alone["model"], alone["model_path"]) == (Path(path.removesuffix("/checkpoint")).name, path)
        for word in (
            "acc/piqa",
            "ppl/files",
            "tokens_per_second/decode",
            f"alone/{own}/results.json",
        ):
            assert word in done.stdout


def test_streamed_figures_are_those_of_the_whole_model(
    svdexp_command: Svdexp,
    evaluate_command: Svdexp,
    tiny_job: list[str],
    exam: list[str],
    model_folder: Path,
    tmp_path: Path,
) -> None:
    job = [*(word for word in tiny_job if "efficiency" not in word), "eval.efficiency=null"]
    run = svdexp_command(*job, "method=svd", "ratio=0.5", "hydra.run.dir=run")
    assert run.returncode == 0, run.stderr
    plain = [*(word for word in exam if "efficiency" not in word and "prompts" not in word), "eval.efficiency=null"]
    plain.append("eval.prompts=[]")
    for number, path in enumerate(["run", str(model_folder)]):
        found = {}
        for residency in ("streamed", "whole"):
            words = [f"path={path}", *plain, "cache=null", "precision=float32", f"residency={residency}"]
            done = evaluate_command(*words, f"hydra.run.dir={residency}/{number}")
            assert done.returncode == 0, done.stderr
            found[residency] = read(tmp_path / residency / str(number))
        assert [path for path in (tmp_path / "streamed" / str(number)).iterdir() if path.name.startswith(".b")] == []
        for figure in FIGURES:
            assert found["streamed"][figure] == pytest.approx(found["whole"][figure], rel=1e-5), (path, figure)
        assert found["streamed"]["cell"] == found["whole"]["cell"]


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["residency=streamed"], ["residency=streamed", "generation speed", "eval.efficiency=null"]),
        (["residency=streamed", "eval.efficiency=null"], ["residency=streamed", "eval.prompts", "leave it out"]),
        (["eval.tasks=[arc]"], ["eval.tasks", "'arc'", "arc_easy", "arc_challenge"]),
        (["eval.tasks_dir=null"], ["piqa cannot be loaded from the hub", "eval.tasks_dir=FOLDER"]),
        (["path=folder"], ["path=folder is neither a model", "nor a run"]),
        (["ratio=0.5"], ["ratio"]),
        (["path=???"], ["path"]),
    ],
)
def test_mistakes_get_one_sentence(
    evaluate_command: Svdexp,
    exam: list[str],
    model_folder: Path,
    tmp_path: Path,
    words: list[str],
    fragments: list[str],
) -> None:
    (tmp_path / "folder").mkdir()
    assert_one_sentence(evaluate_command(f"path={model_folder}", *exam, *words), *fragments)


def test_help(evaluate_command: Svdexp) -> None:
    shown = evaluate_command("--help")
    assert shown.returncode == 0
    assert "path=???" in shown.stdout
