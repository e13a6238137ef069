"""Nothing that is kept of a command holds a token."""

from pathlib import Path

import pytest

from svdexp.runtime.masking import masked_words
from tests.end_to_end.forked import run

TOKEN = "hf_notarealtoken"


@pytest.mark.parametrize(
    ("word", "masked"),
    [
        (f"hydra.job.env_set.HF_TOKEN={TOKEN}", "hydra.job.env_set.HF_TOKEN=***"),
        (f"++hydra.job.env_set.HF_TOKEN='a=b{TOKEN}'", "++hydra.job.env_set.HF_TOKEN=***"),
        (f"hydra.job.env_set={{HF_TOKEN:\n{TOKEN}}}", "hydra.job.env_set=***"),
        (f"+hydra.job={{env_set:{{A:{TOKEN}}}}}", "+hydra.job=***"),
        (f"hydra.launcher.setup=['export A={TOKEN}']", "hydra.launcher.setup=***"),
        ("hydra.job.env_copy=[HF_TOKEN]", "hydra.job.env_copy=[HF_TOKEN]"),
        ("hydra.job.name=x", "hydra.job.name=x"),
        ("hydra/launcher=slurm", "hydra/launcher=slurm"),
        ("hydra.launcher.slots=2", "hydra.launcher.slots=2"),
        ("ratio=0.5", "ratio=0.5"),
        ("-m", "-m"),
    ],
)
def test_words(word: str, masked: str) -> None:
    assert masked_words([word]) == [masked]


def files_with_token(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


GIVEN = {"set": [f"+hydra.job.env_set.SOME_TOKEN={TOKEN}"], "copied": ["hydra.job.env_copy=[SOME_TOKEN]"]}


@pytest.mark.parametrize("how", GIVEN)
def test_a_run_keeps_no_token(how: str, tiny_job: list[str], tmp_path: Path) -> None:
    """Neither its record, nor .hydra/, logs, the card, nor W&B's files, which know the command, too."""
    words = [word for word in tiny_job if not word.startswith(("tracker", "eval.efficiency"))]
    words += [
        "eval.efficiency=null",
        "method=svd",
        "ratio=0.5",
        "save=hf",
        "tracker.mode=offline",
        "hydra.verbose=true",
    ]
    (tmp_path / "here").mkdir()
    done = run(tmp_path / "here", [*words, *GIVEN[how], "hydra.verbose=true", "hydra.run.dir=run"], SOME_TOKEN=TOKEN)
    assert done.returncode == 0, done.output
    assert files_with_token(tmp_path / "here") == []
    assert "SOME_TOKEN: '***'" in (tmp_path / "here" / "run" / ".hydra" / "hydra.yaml").read_text()
    assert list((tmp_path / "here" / "run" / "wandb").rglob("*.wandb"))


@pytest.mark.parametrize("how", GIVEN)
def test_a_sweep_keeps_no_token(how: str, tmp_path: Path) -> None:
    """And its cells get it all the same."""
    (tmp_path / "here").mkdir()
    words = ["-m", "seed=1,2", *GIVEN[how], "hydra.sweep.dir=sweep"]
    done = run(tmp_path / "here", words, program="tests.cells.toy", SOME_TOKEN=TOKEN, TOY_TELLS="SOME_TOKEN")
    assert done.returncode == 0, done.output
    assert done.output.count(f"SOME_TOKEN is {TOKEN}") == 2
    assert files_with_token(tmp_path / "here") == []
    assert "SOME_TOKEN: '***'" in (tmp_path / "here" / "sweep" / "multirun.yaml").read_text()
