"""How this program was called, for lines that say what to type next."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPT = "svdexp"  # the console script's name, and the package's
MAIN = "compress"  # the subcommand that `python -m svdexp` is
ELSEWHERE = {"methods": "command.methods", "sync": "tracking.sync"}  # those that are no module of the package's top


def command(name: str = MAIN) -> str:
    """A subcommand as it is called here: `svdexp NAME`, or `python -m svdexp.NAME` where no script called us."""
    if Path(sys.orig_argv[1] if len(sys.orig_argv) > 1 else "").name == SCRIPT:
        return f"{SCRIPT} {name}"
    return f"python -m {SCRIPT}" if name == MAIN else f"python -m {SCRIPT}.{ELSEWHERE.get(name, name)}"


def module() -> str:
    """What stands behind `python -m` to start what this process runs."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return str(spec.name).removesuffix(".__main__") if spec else SCRIPT


def subcommand() -> str:
    """The subcommand that this process runs."""
    package, *below = module().split(".")
    return below[-1] if package == SCRIPT and below else MAIN


def this_command() -> str:
    """The program that this process runs, as `command` gives it."""
    return command(subcommand()) if module().partition(".")[0] == SCRIPT else f"python -m {module()}"


def same_again(words: Sequence[str], folder: Path, key: str) -> str:
    """The line that starts this program with the same words in the same folder, which `key` names."""
    place = [] if any(word.startswith(f"{key}=") for word in words) else [f"{key}={shown(folder)}"]
    return f"{this_command()} {shlex.join([*words, *place])}"


def shown(folder: Path) -> Path:
    """A folder as whoever sits here would type it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
