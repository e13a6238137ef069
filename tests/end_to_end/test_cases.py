"""Models that a compressor can get wrong, from the command line: one of the right behaviours must hold whole."""

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import svdexp
from tests.end_to_end import cases
from tests.end_to_end.cases import CASES, Ran, finds
from tests.end_to_end.forked import run
from tests.support.warm import CONTEXT

pytestmark = [
    pytest.mark.skipif(not CASES, reason="the cases lie beside the checkout, or where SVDEXP_CASES says"),
    pytest.mark.any_format,  # they say theirs themselves
]

ModelOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> ModelOf:
    root, builders, made = tmp_path_factory.mktemp("models"), cases.builders() if CASES else None, {}

    def find(name: str) -> Path:
        if name not in made:
            assert builders is not None
            made[name] = Path(builders.build(name, root))
        return made[name]

    return find


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, model_of: ModelOf, tmp_path: Path) -> None:
    ran = cases.carry_out(name, model_of, tmp_path)
    complaints = [list(_complaints(CASES[name], right, ran)) for right in CASES[name]["right"]]
    assert not all(complaints), f"{complaints}\n{ran.outcome.output[-3000:]}"


def _complaints(case: Mapping[str, Any], right: Mapping[str, Any], ran: Ran) -> list[str]:
    """What is not as the alternative `right` says."""
    if "refuse" in right:
        return _not_refused(right, ran)
    if ran.outcome.returncode != 0:
        return [f"exit code {ran.outcome.returncode}"]
    checks = {key: partial(check, ran) for key, check in CHECKS.items()}
    return [complaint for key, wanted in right.items() for complaint in checks[key](case, wanted)]


def _not_refused(right: Mapping[str, Any], ran: Ran) -> list[str]:
    found = ["exit code 0"] if ran.outcome.returncode == 0 else []
    found += ["a traceback"] if "Traceback" in ran.outcome.output else []
    found += [f"{word!r} unsaid" for word in right["refuse"] if not finds(word, ran.last_line)]
    found += [f"{word!r} said" for word in right.get("unsaid", []) if finds(word, ran.last_line)]
    if not right.get("late"):
        begun = re.search(r"^calibration[^\n]*\d+%\|", ran.outcome.output.replace("\r", "\n"), re.MULTILINE)
        found += ["calibration had begun"] if begun or (ran.folder / "ranks.json").exists() else []
    return found


def _agree(ran: Ran, case: Mapping[str, Any], wanted: bool) -> list[str]:
    """The figures are those that plain transformers finds."""
    results = json.loads((ran.folder / "results.json").read_text())
    words = " ".join(case["arguments"])
    dtype, tolerance = ("bfloat16", 2e-2) if "precision=bfloat16" in words else ("float32", 1e-4)
    models = {"ppl_dense/files": ran.places["model"], "ppl/files": str(ran.folder / "checkpoint")}
    text = str(Path(ran.places["texts"]) / "evaluation.txt")
    truth = _elsewhere("perplexities", ran, models, text, dtype)
    return [
        f"{key} is {results[key]}, and {value} in plain transformers"
        for key, value in truth.items()
        if not math.isclose(results[key], value, rel_tol=tolerance)
    ]


def _roundtrip(ran: Ran, case: Mapping[str, Any], wanted: bool) -> list[str]:
    """Plain transformers and svdexp.load make the same model of the checkpoint, in whatever memory."""
    found: list[str] = []
    logits = {}
    for reader in ("plain", "svdexp"):
        said = _elsewhere(reader, ran, str(ran.folder / "checkpoint"))
        found += said["complaints"]
        logits[reader] = torch.tensor(said["logits"])
    if not torch.allclose(logits["plain"], logits["svdexp"], atol=1e-4, rtol=0):  # false for NaN
        found.append("svdexp.load gives other logits")
    return found


def _warn(ran: Ran, case: Mapping[str, Any], wanted: list[str]) -> list[str]:
    return [f"no word of {word!r}" for word in wanted if not finds(word, ran.said)]


def _smaller(ran: Ran, case: Mapping[str, Any], wanted: float) -> list[str]:
    dense, compressed = (_numbers(Path(place)) for place in (ran.places["model"], ran.folder / "checkpoint"))
    return [] if compressed < wanted * dense else [f"{compressed} numbers of {dense}"]


def _kept(ran: Ran, case: Mapping[str, Any], wanted: list[str]) -> list[str]:
    """Matrices that stay dense and unchanged, by their names in memory, which may be others than on disk."""
    dense = AutoModelForCausalLM.from_pretrained(ran.places["model"], dtype=torch.float32).state_dict()
    compressed = svdexp.load(ran.folder / "checkpoint", dtype=torch.float32)[0].state_dict()
    names = [name for name in dense if any(fnmatchcase(name, f"{pattern}.weight") for pattern in wanted)]
    lost = [name for name in names if name not in compressed or not torch.equal(dense[name], compressed[name])]
    return [f"{name} is not as it was" for name in lost] if names else [f"no matrix fits {wanted}"]


def _ranked(ran: Ran, case: Mapping[str, Any], wanted: list[str]) -> list[str]:
    ranks = {name for name, rank in json.loads((ran.folder / "ranks.json").read_text()).items() if rank is not None}
    return [f"no rank for {word}" for word in wanted if not any(fnmatchcase(name, word) for name in ranks)]


def _records(ran: Ran) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in ran.folder.rglob("results.json")]


def _named(ran: Ran, case: Mapping[str, Any], wanted: list[str]) -> list[str]:
    models = [record["model"] for record in _records(ran)]
    lost = [name for name in wanted if not any(name in model.split("/")[-1] for model in models)]
    return [f"records of {models}"] if lost or len(set(models)) != len(wanted) else []


def _reported(ran: Ran, case: Mapping[str, Any], wanted: list[str]) -> list[str]:
    done = run(ran.folder, [str(ran.folder)], program="svdexp.report")
    rows = [line for line in done.output.splitlines() if line.startswith("|")]
    return [f"no row of {name}" for name in wanted if not any(re.search(rf"\b{name}\b", row) for row in rows)]


def _tracked(ran: Ran, case: Mapping[str, Any], wanted: bool) -> list[str]:
    return [] if list(ran.folder.rglob("*.wandb")) else ["no run of W&B"]


CHECKS: dict[str, Callable[..., list[str]]] = {
    "agree": _agree,
    "roundtrip": _roundtrip,
    "warn": _warn,
    "smaller": _smaller,
    "kept": _kept,
    "ranked": _ranked,
    "named": _named,
    "reported": _reported,
    "tracked": _tracked,
}


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def _numbers(folder: Path) -> int:
    """Distinct numbers of a checkpoint."""
    return sum(tensor.numel() for tensor in _tensors(folder).values())


# --- readers of a checkpoint, each in a process of its own -----------------------------------------------------------


def _elsewhere(reader: str, ran: Ran, *words: Any) -> Any:
    answer = ran.folder.parent / f"{reader}.json"
    process = CONTEXT.Process(target=_answer, args=(reader, answer, words))
    process.start()
    process.join()
    assert process.exitcode == 0, f"{reader} of {words} failed"
    return json.loads(answer.read_text())


def _answer(reader: str, answer: Path, words: tuple[Any, ...]) -> None:
    answer.write_text(json.dumps(READERS[reader](*words)))


def _forget_svdexp() -> None:
    """From here on nothing imports svdexp."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "svdexp"]:
        del sys.modules[name]
    sys.modules["svdexp"] = None  # type: ignore[assignment]


def _perplexities(models: dict[str, str], text: str, dtype: str) -> dict[str, float]:
    _forget_svdexp()
    truth = cases.builders().perplexity
    return {key: truth(Path(model), Path(text), dtype=dtype) for key, model in models.items()}


def _plain(folder: str) -> dict[str, Any]:
    """Transformers alone, where fresh memory is full of NaN."""
    _forget_svdexp()
    torch.use_deterministic_algorithms(True)  # which fills it
    from transformers import AutoModelForCausalLM

    model, said = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    keys = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return {"complaints": [f"{key}: {sorted(said[key])}" for key in keys if said.get(key)], "logits": _logits(model)}


def _svdexp(folder: str) -> dict[str, Any]:
    torch.use_deterministic_algorithms(True)
    import svdexp

    model, _ = svdexp.load(folder)
    return {"complaints": [], "logits": _logits(model)}


def _logits(model: Any) -> Any:
    tokens = torch.randint(3, 400, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(tokens).logits.float().tolist()


READERS: dict[str, Callable[..., Any]] = {"perplexities": _perplexities, "plain": _plain, "svdexp": _svdexp}
