"""Where svdexp is imported, transformers needs no remote code; where it is not, it needs that, and nothing else."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import svdexp
from svdexp.checkpoints import checkpoint
from svdexp.storage import FactorStorage, PivotStorage, RemapStorage, RTNStorage, Storage
from tests.support.shrunk import shrunk

STORAGES: dict[str, Storage] = {
    "factors": FactorStorage(),
    "pivot": PivotStorage(),
    "remap": RemapStorage(),
    "quantised": RTNStorage(5, 5, zero_points=True),
}
ASKS = {"quant_method": "svdexp"}


def saved_as(name: str, storage: Storage, folder: Path) -> Any:
    """A model in memory, which is saved in `folder`."""
    model, ranks = shrunk(name, storage)
    checkpoint.save(model, None, folder, ranks)
    return model


def asks(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text()).get("quantization_config")


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ["llama_gqa", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_a_folder_loads_without_its_code(name: str, storage: str, windows: torch.Tensor, tmp_path: Path) -> None:
    model = saved_as(name, STORAGES[storage], tmp_path / "saved")
    for code in tmp_path.glob("saved/*.py"):  # nobody runs them
        code.write_text("raise AssertionError")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(loaded(windows).logits, model(windows).logits)
    assert type(loaded) is type(model)
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "saved")(windows)[0], model.base_model(windows)[0])


@torch.no_grad()
def test_a_loaded_model_is_an_ordinary_one(windows: torch.Tensor, tmp_path: Path) -> None:
    saved_as("llama_gqa", FactorStorage(), tmp_path / "saved")
    assert asks(tmp_path / "saved") == ASKS
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert not getattr(loaded, "is_quantized", False)
    assert not hasattr(loaded, "hf_quantizer")
    assert not hasattr(loaded.config, "quantization_config")
    loaded.save_pretrained(tmp_path / "again")
    assert asks(tmp_path / "again") == ASKS
    again, _ = svdexp.load(tmp_path / "again")
    assert torch.equal(again(windows).logits, loaded(windows).logits)
    again.save_pretrained(tmp_path / "third")
    assert asks(tmp_path / "third") == ASKS
    assert not hasattr(again.config, "quantization_config")


@torch.no_grad()
def test_folders_of_earlier_versions_load(windows: torch.Tensor, tmp_path: Path) -> None:
    model = saved_as("llama_gqa", PivotStorage(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for loaded in (svdexp.load(tmp_path)[0], AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)):
        assert torch.equal(loaded(windows).logits, model(windows).logits)


def test_a_table_that_is_missing_is_named(tmp_path: Path) -> None:
    saved_as("llama_gqa", FactorStorage(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["svdexp"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config\.json has no table `svdexp`"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


LOADS = """
import os, sys, torch
{imports}
for case in range(1, len(sys.argv), 2):
    sys.stdout.flush()
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0
        continue
    print(case, file=sys.stderr)
    torch.set_num_threads(torch.get_num_threads())  # as tests/conftest.py has it
    exec(sys.argv[case])
    model = AutoModelForCausalLM.from_pretrained({folder!r}, **eval(sys.argv[case + 1]))
    print(type(model).__name__)
    break
"""
TRANSFORMERS = """
from transformers import AutoModelForCausalLM
import transformers.models.llama.modeling_llama  # else each case would
"""
HIDDEN = "sys.modules['svdexp'] = None"
UNKNOWN = "Unknown quantization type, got svdexp"
TRUSTED = "dict(trust_remote_code=True)"
OURS, THEIRS = ("LowRankLlamaForCausalLM", False), ("LlamaForCausalLM", True)


@pytest.mark.parametrize(
    ("imports", "cases"),
    [
        (["import svdexp", TRANSFORMERS], [("", "{}", *OURS), ("", TRUSTED, *OURS)]),
        (
            [TRANSFORMERS],
            [
                ("import svdexp", "{}", *OURS),
                (HIDDEN, TRUSTED, *OURS),
                (HIDDEN, "{}", *THEIRS),  # and then transformers' report of random layers
            ],
        ),
    ],
    ids=["svdexp first", "transformers first"],
)
def test_in_a_process_of_its_own(imports: list[str], cases: list[tuple[str, str, str, bool]], tmp_path: Path) -> None:
    """One process imports, and each case in a fork of it does the rest, prints the class, and maybe a warning."""
    saved_as("llama_gqa", FactorStorage(), tmp_path / "saved")
    program = LOADS.format(imports="\n".join(imports), folder=str(tmp_path / "saved"))
    words = [word for first, how, _, _ in cases for word in (first, how)]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [kind for _, _, kind, _ in cases]
    said = re.split(r"^\d+$", done.stderr, flags=re.MULTILINE)
    assert [UNKNOWN in part for part in said] == [False, *(warned for *_, warned in cases)]


def test_another_librarys_wish_stays(tmp_path: Path) -> None:
    model = saved_as("llama_gqa", FactorStorage(), tmp_path / "saved")
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    model.save_pretrained(tmp_path / "codes")
    assert asks(tmp_path / "codes")["quant_method"] == "gptq"
    assert AutoConfig.from_pretrained(tmp_path / "codes").quantization_config["bits"] == 4
