"""Tab completion, as a real bash has it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svdexp.command.completion import SCRIPTS

ROOT = Path(__file__).resolve().parents[2]
ASK = r"""
source "$1"
COMP_LINE="$2"; COMP_POINT=${#2}
words="${2//=/ = }"; [[ "$2" == *" " ]] && words+=" ''"
eval "COMP_WORDS=($words)"; COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
eval "$(complete -p svdexp | sed -E 's/.*-F (\S+) .*/\1/')"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """A folder with the script `svdexp`, and what it says for bash."""
    script = tmp_path / "svdexp"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom svdexp.command.dispatch import main\nsys.exit(main())\n")
    script.chmod(0o755)
    (tmp_path / "completion").write_text(SCRIPTS["bash"])
    return tmp_path


def completed(shell: Path, line: str, before: str = "") -> list[str]:
    """What bash offers for a line with the cursor at its end."""
    environment = os.environ | {"PATH": f"{shell}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", "--norc", "-c", before + ASK, "bash", str(shell / "completion"), line]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("svdexp co", ["compress "]),
        ("svdexp compress method=svd_llm_", ["svd_llm_update ", "svd_llm_v2 "]),
        ("svdexp compress method/up", ["method/update="]),
        ("svdexp compress -m experiment=ra", ["ratio_grid "]),
        ("svdexp compress method=asvd method.weighting.", ["method.weighting.alpha=", "method.weighting.scale="]),
        ("svdexp compress save=", ["auto ", "checkpoint ", "hf ", "elastic ", "none "]),
        ("svdexp export format=d", ["dense "]),
        ("svdexp evaluate eval=f", ["full "]),
        ("svdexp --list method/t", ["method/training "]),
        ("svdexp report out", []),
    ],
)
def test_bash_offers(line: str, offered: list[str], shell: Path) -> None:
    assert completed(shell, line) == (offered or [""])  # which printf prints of no word


def test_bash_that_breaks_no_words_at_equals_signs(shell: Path) -> None:
    assert completed(shell, "svdexp compress method=kr", "COMP_WORDBREAKS=' '\n") == ["method=kron "]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_shell_reads_its_script(name: str, tmp_path: Path) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    (tmp_path / "completion").write_text(SCRIPTS[name])
    subprocess.run([name, str(tmp_path / "completion")], check=True, capture_output=True)
