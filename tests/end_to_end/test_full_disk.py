"""A disk that takes no more: the run ends in one sentence, with what was finished, and goes on when there is room."""

import resource
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.forked import Death, run


@dataclass(frozen=True)
class SmallFiles(Death):
    """No death: no file may be larger than `count` bytes, and what goes beyond fails as on a full disk."""

    def arrange(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.count, self.count))


@pytest.mark.parametrize(
    ("words", "size", "fragments", "kept"),
    [
        ([], 8_000, ["cache: ", "statistics", "File too large", "kept and will be reused", "cache=FOLDER"], []),
        (["cache=null"], 20_000, ["checkpoint cannot be written", "File too large", "is kept"], ["ranks.json"]),
        (["cache=null"], 200, [".hydra/config.yaml cannot be written", "File too large"], []),
    ],
    ids=["cache", "checkpoint", "first file"],
)
def test_one_sentence_and_the_same_command_again(
    words: list[str], size: int, fragments: list[str], kept: list[str], tiny_job: list[str], tmp_path: Path
) -> None:
    words = [*tiny_job, "eval.efficiency=null", "method=svd_llm", "ratio=0.6", "hydra.run.dir=run", *words]
    full = run(tmp_path, words, SmallFiles("", size))
    sentence = full.stderr.splitlines()[-1]  # after the progress bars
    assert full.returncode == 1, full.output
    assert sentence.startswith("svdexp: ")
    assert all(fragment in sentence for fragment in fragments), sentence
    assert "Traceback" not in full.output
    assert not list(tmp_path.rglob("*.partial"))
    assert all((tmp_path / "run" / name).is_file() for name in kept)
    assert not (tmp_path / "run" / "results.json").exists()
    if not kept:
        return
    again = run(tmp_path, words)
    assert again.returncode == 0, again.output
    assert (tmp_path / "run" / "results.json").is_file()
