"""The frame that runs engines: environments made once, answers gathered, and failures told in a row."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from svdexp.bench import stacks
from svdexp.bench.engines import models, throughput
from svdexp.bench.engines.__main__ import SCRIPTS, main
from svdexp.bench.engines.environments import MADE, bare, python_of
from svdexp.bench.engines.kinds import DENSE, ENGINES, FORMS, Engine, Form
from svdexp.bench.engines.rows import HEAD, Answer, Task, answer, row
from svdexp.bench.engines.trial import show, tried
from svdexp.evaluation.generation import greedy
from svdexp.evaluation.perplexity import perplexity
from svdexp.runtime.errors import UserError
from tests.checkpoints.gguf_files import write_llama
from tests.conftest import tiny_model

TASK = Task("FOLDER", [[1, 2], [3]], 2, [[4, 5, 6]], "DENSE")
OURS = {"tokens": [[7, 8], [9, 7]], "perplexity": 12.5}
ANSWERS = """
import json, os, sys
task = json.load(open(sys.argv[1]))
said = {"version": os.environ.get("PYTHONPATH", "none"), "tokens": [prompt + [7] for prompt in task["prompts"]]}
json.dump(said | {"perplexity": 3.5, "prefill": 20.0, "decode": 5.0, "also": "more"}, open(sys.argv[2], "w"))
"""


def script(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.py").write_text(text)
    return folder / "run.py"


def test_every_engine_has_its_files_and_forms() -> None:
    for name, engine in ENGINES.items():
        assert (SCRIPTS / name / "run.py").is_file()
        assert set(engine.forms) <= FORMS.keys()
        named = [word for words in engine.install for word in words if word.endswith(".txt")]
        assert all((SCRIPTS / name / word).is_file() for word in named)


def test_what_an_engine_leaves_is_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "where svdexp lies")
    found = answer(Path(sys.executable), script(tmp_path, ANSWERS), TASK, tmp_path / "answers" / "one")
    assert found == Answer(None, "none", [[1, 2, 7], [3, 7]], 3.5, {"prefill": 20.0, "decode": 5.0}, "more")
    assert json.loads((tmp_path / "answers" / "one.task.json").read_text()) == TASK._asdict()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\nprint('so far')\nsys.exit('it cannot')", "exit code 1: it cannot"),
        ("raise ValueError('of this kind')", "exit code 1: ValueError: of this kind"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "exit code -9: it said nothing"),
        ("print('nothing to write')", "exit code 0: nothing to write"),
    ],
)
def test_an_engine_that_fails_says_so_in_its_row(tmp_path: Path, text: str, said: str) -> None:
    place = tmp_path / "answers" / "one"
    place.parent.mkdir()
    Path(f"{place}.result.json").write_text("of a run before")
    found = answer(Path(sys.executable), script(tmp_path, text), TASK, place)
    assert found.error == said
    assert row("it", "factors", found, OURS, None) == ["it", "–", "factors", f"no: {said}", *"–" * (len(HEAD) - 4)]


def test_rows_count_equal_tokens_and_compare_speeds_with_the_dense_model() -> None:
    dense = Answer(None, "1.0", [[7, 8], [9, 7]], 12.0, {"prefill": 10.0, "decode": 4.0})
    found = Answer(None, "1.0", [[7, 8], [9]], 12.5, {"prefill": 15.0})
    assert row("it", "factors", found, OURS, dense)[3:] == ["yes", "3 of 4", "12.5000", "12.5000", "1.50", "–", "–"]
    assert row("it", DENSE, dense, OURS, dense)[3:] == ["yes", "4 of 4", "12.5000", "12.0000", "1", "1", "–"]
    assert row("it", "factors", found, OURS, Answer("it died"))[-3:-1] == ["–", "–"]


def test_an_environment_is_made_once_and_again_when_its_recipe_changes(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    requirements = tmp_path / "scripts" / "requirements.txt"
    requirements.write_text("")
    engine, folder = Engine((), (("install", "--no-index", "-r", "requirements.txt"),)), tmp_path / "environment"
    python = python_of(engine, tmp_path / "scripts", folder)
    assert python.is_relative_to(folder)
    found = answer(python, script(tmp_path, "import sys\nsys.exit(sys.prefix)"), TASK, tmp_path / "one")
    assert found.error == f"exit code 1: {folder}"
    (folder / "trace").touch()
    python_of(engine, tmp_path / "scripts", folder)
    assert (folder / "trace").exists()
    requirements.write_text("svdexp-has-no-such-package==1.0")
    assert "No matching distribution" in str(tried(engine, ".", TASK, tmp_path / "scripts", tmp_path, "factors").error)
    with pytest.raises(UserError, match="its environment cannot be made: ERROR: No matching distribution"):
        python_of(engine, tmp_path / "scripts", folder)
    assert not (folder / MADE).exists()


def test_an_environment_sees_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        monkeypatch.setenv(variable, "elsewhere")
    found = bare(tmp_path)
    assert "elsewhere" not in found.values()
    assert found["PATH"].startswith(f"{tmp_path / 'bin'}:")


def test_a_model_that_cannot_be_made_is_told_in_its_rows(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*asked: object) -> None:
        raise UserError("svdexp itself: it cannot")

    monkeypatch.setattr(models, "command", refused)
    script(tmp_path / "scripts" / "it", ANSWERS)
    show({"it": Engine(("factors",))}, str(model_folder), [], tmp_path, tmp_path / "scripts")
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[2:4] for line in lines[2:]] == [
        ["dense", "yes"],
        ["factors", "no: svdexp itself: it cannot"],
    ]
    assert "tokens equal" in capsys.readouterr().out


def test_a_dense_model_in_a_file_of_an_engines_own_is_held_against_the_same_numbers(tmp_path: Path) -> None:
    form = Form(file="{dense}.of_it.gguf")
    with pytest.raises(UserError, match=r"dense\.of_it\.gguf is not there: llama\.cpp's script makes it of the dense"):
        models.compressed_folder(form, tmp_path / DENSE, [], tmp_path)
    model = tiny_model("llama")
    write_llama(tmp_path / "dense.of_it.gguf", model)
    made, given = models.compressed_folder(form, tmp_path / DENSE, [], tmp_path)
    assert made == given == tmp_path / "dense.of_it.gguf"
    said = models.svdexps_own(made, [[1, 2]], [list(range(16))])
    assert said["tokens"] == [list(greedy(model, torch.tensor([[1, 2]]), models.TOKENS))]
    assert said["perplexity"] == pytest.approx(perplexity(model, torch.arange(16)[None], what=None).value)


@pytest.mark.parametrize(("table", "spoken_for"), [("svdexp", "exported"), ("quantization_config", "run")])
def test_an_export_that_svdexp_loads_speaks_for_itself(
    table: str, spoken_for: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Factors of pivots may be rounded once more; what an engine answers for is what it was given."""

    def exported(words: Sequence[str], log: Path, program: str = "svdexp") -> None:
        folder = Path(words[1].removeprefix("to="))
        if program == "svdexp.export":
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps({table: {}}))

    monkeypatch.setattr(models, "command", exported)
    own, given = models.compressed_folder(Form(("storage=pivot",), ("format=any",)), tmp_path / DENSE, [], tmp_path)
    assert given.is_dir()
    assert own == (given if spoken_for == "exported" else own.parent / "checkpoint")


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["vlm"])
    assert "there is no vlm among " in capsys.readouterr().err
    assert main(["transformers", "--model", str(tmp_path / "nowhere"), "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_turns_are_told_by_medians() -> None:
    turns = [[(10, 4), (20, 6)], [(10, 4), (15, 8)], [(20, 4), (20, 8)]]
    assert throughput.cells(turns) == ["10", "20", "1.50", "1.00", "2.00", "2.00"]


def test_models_of_random_numbers_are_loaded_by_plain_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 2, "num_key_value_heads": 2}
    monkeypatch.setattr(stacks, "WIDE", LlamaConfig(**shape, vocab_size=64, num_hidden_layers=2))
    for kept in (None, 0.8):
        folder = throughput.written(tmp_path / f"{kept}", 1, kept)
        assert throughput.written(folder, 1, kept) == folder
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert model(torch.tensor([[1, 2]])).logits.isfinite().all()
        assert model.dtype == torch.bfloat16
        ranks = {name: part.out_features for name, part in model.named_modules() if name.endswith("rank_in")}
        assert set(ranks.values()) == (set() if kept is None else {32})
