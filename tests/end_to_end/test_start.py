"""What starting takes: modules that nobody asked for are not imported, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# What a plain run does without, each of which takes between a tenth of a second and several.
UNASKED = {
    "bitsandbytes": "peft imports it where it is installed",
    "datasets": "texts from the hub",
    "functorch": "torch's compiler",
    "gguf": "models in GGUF files",
    "gptqmodel": "storage.solver=gptqmodel",
    "IPython": "notebooks",
    "lm_eval": "tasks",
    "matplotlib": "the report",
    "networkx": "torch's compiler",
    "pandas": "the report",
    "peft": "method/training=sequential_lora",
    "pyarrow": "datasets",
    "submitit": "hydra/launcher=slurm",
    "wandb": "tracker=wandb",
}
TORCH = {"torch", "transformers", "numpy", "scipy", "accelerate"}
TELL = """
import atexit, json, runpy, sys
from pathlib import Path

atexit.register(lambda: Path("modules.json").write_text(json.dumps(sorted(sys.modules))))
{work}
"""
COMMAND = "sys.argv[0] = 'svdexp'; runpy.run_module('svdexp', run_name='__main__', alter_sys=True)"


def packages(folder: Path, work: str, *words: str) -> set[str]:
    """The packages that a new interpreter has imported when it has done the work."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    program = [sys.executable, "-c", TELL.format(work=work), *words]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads((folder / "modules.json").read_text())}


def test_a_plain_run_imports_nothing_unasked(tmp_path: Path, tiny_job: list[str]) -> None:
    found = packages(tmp_path, COMMAND, *tiny_job, "hydra.run.dir=here")
    assert (tmp_path / "here" / "results.json").is_file()
    assert "torch" in found
    assert sorted(found & UNASKED.keys()) == []


@pytest.mark.any_format
def test_the_package_itself_imports_almost_nothing(tmp_path: Path) -> None:
    found = packages(tmp_path, "import svdexp; dir(svdexp); svdexp.__version__")
    assert "svdexp" in found
    assert sorted(found & (UNASKED.keys() | TORCH | {"hydra", "omegaconf", "rich", "yaml"})) == []


@pytest.mark.any_format
@pytest.mark.parametrize("words", [["--help"], ["--cfg", "job"], ["--version"]])
def test_what_is_only_said_waits_for_no_torch(words: list[str], tmp_path: Path) -> None:
    found = packages(tmp_path, COMMAND, *words)
    assert "hydra" in found
    assert sorted(found & (UNASKED.keys() | TORCH)) == []
