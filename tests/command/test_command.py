"""The console script: subcommands, help, lists, and what it says of words that it does not know."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from svdexp.cells.catalogue import all_groups, choices, groups, keys
from svdexp.cells.page import page
from svdexp.command.subcommands import MODULES
from svdexp.runtime.invocation import command, this_command
from tests.end_to_end.forked import Outcome, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The script as pip writes it."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = declared["svdexp"].partition(":")
    path = tmp_path / "bin" / "svdexp"
    path.parent.mkdir()
    path.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {name}\nsys.exit({name}())\n")
    path.chmod(0o755)
    return path


def start(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([script, *words], cwd=ROOT, capture_output=True, text=True)


def svdexp(folder: Path, *words: str) -> Outcome:
    return run(folder, words)


def test_a_subcommand_is_its_module(script: Path) -> None:
    done = start(script, "compress", "ratio=0.6", "--cfg", "job")
    module = subprocess.run(
        [sys.executable, "-m", "svdexp", "ratio=0.6", "--cfg", "job"], cwd=ROOT, capture_output=True, text=True
    )
    assert "ratio: 0.6\n" in done.stdout
    assert done.stdout == module.stdout
    wrong = start(script, "export", "pth=x")
    assert (wrong.returncode, wrong.stderr) == (1, "svdexp: there is no key pth; did you mean path?\n")


def test_help_names_commands_as_they_are_called(script: Path) -> None:
    shown = start(script)
    assert shown.returncode == 0
    assert "svdexp export path=RUN to=FOLDER" in shown.stdout
    assert "python -m" not in shown.stdout
    assert start(script, "compress", "--help").stdout == shown.stdout == start(script, "--help").stdout
    assert start(script, "report", "-h").stdout.startswith("usage: svdexp report ")
    assert start(script, "methods", "-h").stdout.startswith("usage: svdexp methods ")


def test_a_command_is_named_after_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "svdexp"])
    assert {name: command(name) for name in MODULES} == {name: f"python -m {path}" for name, path in MODULES.items()}
    monkeypatch.setattr(sys, "orig_argv", ["python", "/usr/bin/svdexp", "sync"])
    assert [command(name) for name in ("compress", "sync")] == ["svdexp compress", "svdexp sync"]
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="svdexp.tracking.sync"))
    assert this_command() == "svdexp sync"
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="svdexp.__main__"))
    assert this_command() == "svdexp compress"


def test_the_scripts_own_words(script: Path) -> None:
    assert start(script, "--version").stdout == "svdexp 0.1.0\n"
    assert start(script, "--list", "method/update").stdout.startswith("ipca          Dobi-SVD (arXiv 2502.02723): ")
    assert "kron" in start(script, "methods").stdout
    for words, sentence in {
        ("compres",): f"there is no subcommand compres, only {', '.join(MODULES)}; did you mean compress?",
        ("ratio=0.5",): "say what to do with ratio=0.5: svdexp compress ratio=0.5 …",
        ("--list", "methd"): f"there is no group methd, only {', '.join(all_groups())}; did you mean method?",
        ("--completion", "basch"): "--completion knows bash, zsh, fish, not basch; did you mean bash?",
    }.items():
        done = start(script, *words)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"svdexp: {sentence}\n")


def test_every_subcommand_is_there() -> None:
    for module in MODULES.values():
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def test_help_is_one_page_of_the_yamls_comments(tmp_path: Path) -> None:
    shown = svdexp(tmp_path, "--help")
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines == page().splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 110
    assert all(any(line.startswith(f"  {command(name)}") for line in lines) for name in MODULES)
    names = [line.split()[0].partition("=")[0] for line in lines if line.strip()]
    assert {entry.name for entry in [*groups(), *keys()]} <= set(names)
    assert "  ratio=0.8         KEPT fraction of the compressed layers' stored bits, 0 < ratio <= 1" in lines
    assert not list(tmp_path.iterdir())


def test_every_key_of_the_page_is_there() -> None:
    assert [entry.name for entry in keys()] == [
        *(
            "ratio",
            "bytes",
            "ppl",
            "seed",
            "targets",
            "device",
            "precision",
            "residency",
            "save",
            "cache",
            "objective",
            "dry_run",
        )
    ]
    assert {entry.name for entry in keys("evaluate")} == {"path", "seed", "device", "precision", "residency", "cache"}
    assert {entry.name for entry in keys("export")} == {
        "path",
        "to",
        "format",
        "gguf",
        "trust_remote_code",
        "push_to_hub",
    }
    assert {entry.name for entry in groups()} | {"hydra/sweeper"} == set(all_groups())


@pytest.mark.parametrize("group", all_groups())
def test_every_choice_says_what_it_is(group: str) -> None:
    for choice in choices(group):
        assert 5 < len(choice.says) <= 130, f"{group}/{choice.name}: {choice.says}"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rato=0.5"], "there is no key rato; did you mean ratio?"),
        (["+rato=0.5"], "there is no key rato; did you mean ratio?"),
        (["~rato"], "there is no key rato; did you mean ratio?"),
        (["samples=3"], "there is no key samples; did you mean calibration.samples?"),
        (["qqqqq=3"], "there is no key qqqqq"),
        (["method=asvd", "method.weighting.alph=1"], "there is no key method.weighting.alph; did you mean method.w"),
        (
            ["storage=gptq4", "+storage.code_bit=1"],
            "storage.code_bit: Key 'code_bit' not in 'GPTQStorage'; did you",
        ),
        (["method/allocatoin=uniform"], "there is no group method/allocatoin; did you mean method/allocation?"),
        (["experiment=quik"], "experiment has no choice quik, only best, best_low_rank, "),
        (["method=svdllm"], "method has no choice svdllm, only asvd, .*, swift_svd; did you mean svd_llm?"),
        (["targets.ranks.a=3"], "targets.ranks.a is new in its table, so it takes a plus: +targets.ranks.a=…"),
    ],
)
def test_did_you_mean(words: list[str], sentence: str, tmp_path: Path) -> None:
    done = svdexp(tmp_path, *words)
    assert done.returncode == 1
    start, _, end = sentence.partition(".*")
    assert done.stderr.startswith(f"svdexp: {start}")
    assert end in done.stderr
    assert done.stderr.count("\n") == 1
