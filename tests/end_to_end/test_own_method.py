"""docs/adding_a_method.md: its files, as they stand there, make a method outside the checkout."""

import os
import re
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Svdexp, read

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_method.md"


@pytest.mark.any_format
def test_a_method_outside_the_checkout(fresh_command: Svdexp, tiny_job: list[str], tmp_path: Path) -> None:
    files = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL))
    assert len(files) == 5
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    here = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    words = ["--config-dir", "conf", "method=damped", "method.weighting.share=0.02", "hydra.run.dir=run"]
    words += ["method/allocation=flat_spectra", "method.allocation.power=0.4"]
    done = fresh_command(*words, *tiny_job, "eval.efficiency=null", "save=none", PYTHONPATH=here)
    assert done.returncode == 0, done.stderr
    record = read(tmp_path / "run")
    assert record["method"] == "damped"
    assert record["allocation"] == "flat_spectra"
    assert record["allocation_options"] == {"power": 0.4}
