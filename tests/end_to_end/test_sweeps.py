"""Sweeps that are started again, extended, started twice, or started on somebody's results."""

import json
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.end_to_end.forked import run


@pytest.fixture
def words(tiny_job: list[str], tmp_path: Path) -> list[str]:
    fixed = [word for word in tiny_job if not word.startswith("eval.efficiency")]
    return [*fixed, "eval.efficiency=null", "save=none", "method=svd", f"cache={tmp_path}/cache"]


def test_an_override_may_name_another_key(words: list[str], tmp_path: Path) -> None:
    words = [*words, "ratio=0.5", "eval.seq_len=${calibration.seq_len}"]
    cell = run(tmp_path, ["-m", *words, "hydra.sweep.dir=sweep", "hydra.sweep.subdir=${method.name}-${ratio}"])
    assert cell.returncode == 0, cell.output
    record = json.loads((tmp_path / "sweep" / "svd-0.5" / "results.json").read_text())
    assert "calibration.seq_len}" in record["command"].replace("\\", "")  # Hydra's sweeper escapes the braces
    alone = run(tmp_path, [*shlex.split(record["command"]), "hydra.run.dir=${method.name}"])
    assert alone.returncode == 0, alone.output
    assert json.loads((tmp_path / "svd" / "results.json").read_text())["cell"] == record["cell"]


def test_a_sweep_is_taken_up_again(words: list[str], tmp_path: Path) -> None:
    words = ["-m", *words, "method=svd_llm", "hydra.sweep.dir=sweep"]
    blank = run(tmp_path, [*words, "ratio=0.5", "dry_run=true"])
    assert blank.stdout.endswith("\nthe run itself: not started\nin the cache: nothing of this model\n")
    assert "│ load " in blank.stdout
    assert "not counted: writing files" in blank.stdout
    first = run(tmp_path, [*words, "ratio=0.5,0.001"])
    assert first.returncode == 1
    assert "svdexp: 1 of 2 cells failed, see failed.json in their folders; the first is " in first.output
    assert re.search(r"│ 0\.5 +│ +\d[\d.]+ │ +\S+ [kM]B │ done +│", first.stdout)
    assert re.search(r"│ 0\.001 +│ +│ +│ failed: ratio=0\.001 leaves model", first.stdout)
    assert first.stdout.endswith("tables and pictures: python -m svdexp.report sweep --to sweep/report\n")
    (failed,) = tmp_path.glob("sweep/*/failed.json")
    assert "ratio=0.001 leaves model.layers.0" in json.loads(failed.read_text())["error"]
    (known,) = tmp_path.glob("sweep/*/results.json")
    before = known.stat().st_mtime_ns

    shown = run(tmp_path, [*words, "ratio=0.4,0.5", "dry_run=true"])
    assert shown.returncode == 0, shown.output
    assert shown.output.count("Estimate, good to") == 2
    assert f"the run itself: finished: {known}" in shown.output
    found = (f"{what} of 3 of 3 blocks" for what in ("gram", "output_gram", "decompositions"))
    assert f"\nin the cache: {', '.join(found)}\n" in shown.stdout
    assert "the run itself: not started" in shown.output

    extended = run(tmp_path, [*words, "ratio=0.4,0.5"])
    assert extended.returncode == 0, extended.output
    assert extended.output.count("finished already") == 1
    assert re.search(r"│ 0\.5 .* │ finished before │", extended.stdout)
    assert known.stat().st_mtime_ns == before
    ratios = sorted(json.loads(path.read_text())["ratio"] for path in tmp_path.glob("sweep/*/results.json"))
    assert ratios == [0.4, 0.5]

    record = json.loads(known.read_text())
    alone = run(tmp_path, [*shlex.split(record["command"]), "hydra.run.dir=alone"])
    assert alone.returncode == 0, alone.output
    again = json.loads((tmp_path / "alone" / "results.json").read_text())
    assert (again["ratio"], again["ppl/files"], again["cell"]) == (0.5, record["ppl/files"], record["cell"])
    assert again["command"] == record["command"]


def test_a_grid_grows_along_another_key(words: list[str], tmp_path: Path) -> None:
    words = ["-m", *words, "hydra.sweep.dir=sweep", "ratio=0.4,0.5"]
    assert run(tmp_path, words).returncode == 0
    known = sorted(path.parent.name for path in tmp_path.glob("sweep/*/results.json"))
    assert [name.rpartition("_")[0] for name in known] == ["ratio-0.4", "ratio-0.5"]
    grown = run(tmp_path, [*words, "seed=0,1"])
    assert grown.returncode == 0, grown.output
    assert grown.stdout.count("│ finished before │") == 2
    names = sorted(path.parent.name for path in tmp_path.glob("sweep/*/results.json"))
    new = [name.rpartition("_")[0] for name in names if name not in known]
    assert new == ["ratio-0.4_seed-1", "ratio-0.5_seed-1"]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("ratio=0.5,2", r"svdexp: 1 of 2 cells cannot run, so none was started; ratio=2: ratio is the kept"),
        ("method=svd,svd_llm_,kron", r"svdexp: 1 of 3 cells .*; method=svd_llm_: method has no choice svd_llm_"),
        ("method.allocation.rank_align=1,0", r"1 of 2 cells .*rank_align=0: method\.allocation\.rank_align must be"),
        ("calibration.files=[words.txt],[gone.txt]", r"1 of 2 cells .*gone\.txt"),
        ("eval.texts=[files],[nothing]", r"1 of 2 cells .*texts=\[nothing\]: "),
    ],
)
def test_a_mistake_in_the_last_cell_costs_nothing(
    word: str, sentence: str, words: list[str], text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "words.txt").write_bytes(text_file.read_bytes())
    done = run(tmp_path, ["-m", *words, word, "hydra.sweep.dir=sweep"])
    assert done.returncode == 1
    assert re.search(sentence, done.stderr), done.output
    assert not (tmp_path / "sweep").exists()


def test_two_launchers_share_a_sweep(words: list[str], tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    words = ["-m", *words, f"hydra.sweep.dir={tmp_path}/sweep", "ratio=0.3,0.4,0.5"]
    with ThreadPoolExecutor() as pool:
        for outcome in pool.map(lambda folder: run(folder, words), folders):
            assert outcome.returncode == 0, outcome.output
    logs = [path.read_text() for path in tmp_path.glob("sweep/*/svdexp.log")]
    assert [log.count("Estimate") for log in logs] == [1, 1, 1], "a cell was computed twice"


def test_results_are_never_overwritten(words: list[str], text_file: Path, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_bytes(text_file.read_bytes())
    words = [*words, f"calibration.files=[{text}]", "hydra.run.dir=run"]
    assert run(tmp_path, [*words, "ratio=0.5"]).returncode == 0
    kept = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    other = run(tmp_path, [*words, "ratio=0.6"])
    assert other.returncode == 1
    assert other.stderr.startswith(f"svdexp: {tmp_path}/run holds results of another configuration, or of other cont")
    assert {path: path.read_bytes() for path in kept} == kept
    same = run(tmp_path, [*words, "ratio=0.5", "eval.batch_size=1"])
    assert same.returncode == 0
    assert "finished already" in same.output
    text.write_text(text.read_text() + " rank")
    changed = run(tmp_path, [*words, "ratio=0.5"])
    assert changed.returncode == 1
    assert "other contents of its files" in changed.output


def test_cells_leave_checkpoints_where_they_are_asked_for(words: list[str], tmp_path: Path) -> None:
    words = [word for word in words if word != "save=none"]
    assert run(tmp_path, ["-m", *words, "ratio=0.5", "hydra.sweep.dir=one"]).returncode == 0
    assert list(tmp_path.glob("one/*/results.json"))
    assert not list(tmp_path.glob("one/*/checkpoint"))
    assert run(tmp_path, ["-m", *words, "ratio=0.5", "save=checkpoint", "hydra.sweep.dir=one"]).returncode == 0
    assert list(tmp_path.glob("one/*/checkpoint"))
    assert run(tmp_path, [*words, "ratio=0.5", "hydra.run.dir=run"]).returncode == 0
    assert (tmp_path / "run" / "checkpoint").is_dir()
