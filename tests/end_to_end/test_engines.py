"""`python -m svdexp.bench.engines` on a tiny model, in transformers: from the dense model to the table."""

from pathlib import Path

import pytest

from tests.end_to_end import forked


@pytest.mark.any_format
def test_a_tiny_model_in_transformers(tmp_path: Path, model_folder: Path, tiny_job: list[str]) -> None:
    keys = [word for word in tiny_job if word.startswith(("calibration", "eval.texts", "eval.files", "eval.seq_len"))]
    words = ["transformers", "--model", str(model_folder), "--forms", "factors", "--keys", "ratio=0.5", *keys]
    for made in (True, False):
        done = forked.run(tmp_path, words, program="svdexp.bench.engines")
        assert done.returncode == 0, done.output
        assert ("python -m svdexp model.path=" in done.stderr) is made
        lines = (tmp_path / "outputs" / "engines" / "table.md").read_text().splitlines()
        assert [line.split(" | ")[2:5] for line in lines[2:]] == [
            ["dense", "yes", "160 of 160"],
            ["factors", "yes", "160 of 160"],
        ]
        for line in lines[2:]:
            ours, theirs = line.split(" | ")[5:7]
            assert float(ours) == pytest.approx(float(theirs), rel=1e-4)
