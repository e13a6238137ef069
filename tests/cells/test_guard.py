"""What a command says where it cannot begin, and where it ends early."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from svdexp import bench
from svdexp.bench.__main__ import main as bench_main
from svdexp.cells.guard import refuse_null_groups
from svdexp.cells.mistakes import as_mistake
from svdexp.runtime.errors import UserError
from svdexp.runtime.interruption import INTERRUPTED, interruptible
from tests.end_to_end.forked import Outcome, run

ROOT = Path(__file__).resolve().parents[2]


def toy(folder: Path, *words: str) -> Outcome:
    return run(folder, words, program="tests.cells.toy")


@pytest.mark.parametrize("word", ["method=null", "+model=null", "method/training=null", "tracker = null"])
def test_a_group_is_not_null(word: str) -> None:
    name = word.partition("=")[0].strip("+ ")
    with pytest.raises(UserError, match=rf"{re.escape(word)}: the group takes one of .*~{name} leaves it out"):
        refuse_null_groups(["-m", "ratio=0.5", word])


def test_a_key_may_be_null(tmp_path: Path) -> None:
    refuse_null_groups(["cache=null", "eval.stride=null", "--config-name", "null"])
    done = toy(tmp_path, "+experiment=best", "~method/training", "cache=null", "hydra.run.dir=run")
    assert done.returncode == 0, done.output
    assert "training: {}" in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()


@pytest.mark.parametrize(
    "word", ["experiment=kv_only", "+experiment=kv_only", "experiment=[kv_only,best_low_rank_oneshot]"]
)
def test_an_experiment_needs_no_plus(word: str, tmp_path: Path) -> None:
    done = toy(tmp_path, word, "hydra.run.dir=run")
    assert done.returncode == 0, done.output
    kept = (tmp_path / "run" / ".hydra" / "config.yaml").read_text()
    assert "k_proj" in kept
    assert ("RemapStorage" in kept) == ("best" in word)


def test_a_sweep_may_be_asked_for_among_the_overrides(tmp_path: Path) -> None:
    done = toy(tmp_path, "seed=0,1", "-m", "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.output
    assert len(list(tmp_path.glob("sweep/*/.hydra"))) == 2


def test_the_environment_may_name_the_cache(tmp_path: Path) -> None:
    done = run(tmp_path, ["--cfg", "job", "--resolve"], SVDEXP_CACHE="/scratch/stages")
    assert "cache: /scratch/stages\n" in done.output
    assert "cache: outputs/cache\n" in run(tmp_path, ["--cfg", "job", "--resolve"]).output


def test_half_a_sweep_is_refused(tmp_path: Path) -> None:
    for words, gone in (([], "method, ratio"), (["method=svd"], "ratio"), (["method=svd", "dry_run=true"], "ratio")):
        done = toy(tmp_path, "+experiment=shootout", *words, "hydra.run.dir=run")
        assert done.returncode == 1
        sentence = f"svdexp: experiment=shootout is a sweep: add -m, or give one value for each of {gone}\n"
        assert done.output.endswith(sentence)
    done = toy(tmp_path, "+experiment=shootout", "method=svd", "ratio=0.5", "hydra.run.dir=run")
    assert done.returncode == 0, done.output


@pytest.mark.parametrize("word", ["method=glob(zz*)", "seed=range(3,3)"])
def test_a_sweep_over_nothing_is_refused(word: str, tmp_path: Path) -> None:
    done = toy(tmp_path, "-m", "ratio=0.5,0.6", word, "hydra.sweep.dir=sweep")
    assert done.returncode == 1
    assert done.output == f"svdexp: {word} gives no value, so the sweep has no cells\n"
    assert not (tmp_path / "sweep").exists()


def test_what_hydra_cannot_do_is_a_sentence(tmp_path: Path) -> None:
    done = toy(tmp_path, "hydra.run.dir=/dev/null/run")
    assert done.returncode == 1
    assert re.fullmatch(r"svdexp: NotADirectoryError: .*/dev/null/run.*\n", done.output)


def test_a_variable_that_is_not_there(tmp_path: Path) -> None:
    done = toy(tmp_path, "hydra.job.env_copy=[NOT_SET_ANYWHERE]")
    assert done.returncode == 1
    assert done.output == "svdexp: hydra.job.env_copy names NOT_SET_ANYWHERE, which the environment does not have\n"


def test_a_defect_keeps_its_traceback(tmp_path: Path) -> None:
    done = toy(tmp_path, "ratio=1", "hydra.run.dir=run")
    assert done.returncode == 1
    assert "Traceback" in done.output
    assert "RuntimeError: a defect" in done.output


def test_memory_that_is_not_there_is_a_sentence() -> None:
    raised: list[Exception] = [MemoryError(), torch.OutOfMemoryError("CUDA out of memory.\nTried much")]
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        raised.append(error)
    for error in raised:
        found = as_mistake(error)
        assert isinstance(found, UserError)
        assert re.match(r"out of memory.*eval\.batch_size.*dry_run=true", str(found))
    assert len(raised) == 3
    for defect in (RuntimeError("a defect"), FileNotFoundError(2, "No such file or directory", "a")):
        assert as_mistake(defect) is defect


def test_what_the_disk_says_is_a_sentence() -> None:
    found = as_mistake(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "folder/file"))
    assert isinstance(found, UserError)
    assert str(found) == "folder/file: No space left on device; all that was complete before is kept"


@pytest.mark.parametrize(
    ("word", "promise"), [("cache=null", ""), ("cache=kept", "; finished stages are in kept and will be reused")]
)
@pytest.mark.parametrize("many", [False, True])
def test_an_interrupt_promises_what_is_kept(word: str, promise: str, many: bool, tmp_path: Path) -> None:
    what, place = ("sweep", "hydra.sweep.dir=s") if many else ("run", "hydra.run.dir=r")
    words = [*(["-m"] if many else []), "seed=9", word]
    for said in ([*words, place], words):
        done = toy(tmp_path, *said)
        assert done.returncode == INTERRUPTED
        first, again = done.output.splitlines()[-2:]
        assert first == f"svdexp: interrupted{promise}; the {what} goes on with"
        assert again.startswith(f"  python -m tests.cells.toy {' '.join(words)} hydra.{what}.dir=")
    assert re.fullmatch(r".*=outputs/(multirun|runs)/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d\S*", again)
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("program", "imported"),
    [
        ("svdexp", "hydra"),
        ("svdexp.evaluate", "hydra"),
        ("svdexp.export", "hydra"),
        ("svdexp.report", "argparse"),
        ("svdexp.bench", "argparse"),
    ],
)
def test_an_interrupt_in_the_first_second(program: str, imported: str, tmp_path: Path) -> None:
    """It comes while the first large module is imported."""
    (tmp_path / f"{imported}.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True
    )
    assert done.returncode in (INTERRUPTED, -signal.SIGINT)
    assert done.stderr == b"svdexp: interrupted\n"


def test_an_interrupt_of_any_command(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise KeyboardInterrupt

    assert interruptible(main) == INTERRUPTED
    assert capsys.readouterr().err == "svdexp: interrupted\n"
    assert interruptible(lambda: 3) == 3


def test_the_benchmark_explains_itself(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def measure() -> None:
        raise AssertionError("the benchmark runs")

    monkeypatch.setattr(bench.__main__, "show", measure)  # type: ignore[attr-defined]
    with pytest.raises(SystemExit) as end:
        bench_main(["--help"])
    assert end.value.code == 0
    assert "python -m svdexp.bench" in capsys.readouterr().out


def test_cleaning_keeps_results() -> None:
    said = subprocess.run(["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ".venv" in said
    assert "outputs" not in said
