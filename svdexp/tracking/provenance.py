"""What produced a figure: software versions and the git commit."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

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


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout.strip()
