"""What produced a figure: software versions, the git commit, and the command."""

import platform
import shlex
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from svdexp.runtime.masking import as_given, masked_words

# Of what is set of Hydra, what a run can depend on; the rest says where it runs, and how it prints.
HYDRA_KEPT = ("hydra.searchpath", "hydra.job.chdir", "hydra.job.env_set", "hydra.job.env_copy")
USUAL = ("config", "evaluate")  # names of configurations that no command needs to give

PACKAGES = (
    "svdexp",
    "torch",
    "transformers",
    "datasets",
    "hydra-core",
    "omegaconf",
    "safetensors",
    "tokenizers",
    "lm-eval",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout without installing
            continue
    return found


@cache
def commit() -> str | None:
    """The commit of the svdexp checkout, `-dirty` with uncommitted changes; None for an installed wheel.

    Remembered from the first call, which belongs at the start: the checkout may change while a process runs.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return f"{head}-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else head
    except (OSError, subprocess.CalledProcessError):
        return None


def command() -> str | None:
    """What to write behind `python -m svdexp` to do this job, alone, again; None where no command started it.

    Of a sweep's cell these are the cell's own values, whatever launched it.
    """
    return shlex.join(words()) if HydraConfig.initialized() else None


def words() -> list[str]:
    """The words of `command`, as a program gets them."""
    job = HydraConfig.get()
    added = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    options = [word for path in added for word in ("--config-dir", path)]
    if job.job.config_name not in USUAL:
        options += ["--config-name", str(job.job.config_name)]
    kept = [word for word in as_given(job.overrides.hydra) if word.lstrip("+").startswith(HYDRA_KEPT)]
    return [*options, *masked_words([*as_given(job.overrides.task), *kept])]


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout.strip()
