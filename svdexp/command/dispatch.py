"""`svdexp SUBCOMMAND …` is `python -m MODULE …`: the very same program, under a shorter name."""

from svdexp.runtime.interruption import interruptible

# isort: split
import os
import runpy
import sys
from collections.abc import Sequence

from svdexp.command.subcommands import MODULES
from svdexp.runtime.errors import UserError
from svdexp.runtime.nearest import did_you_mean
from svdexp.runtime.version import __version__


def main() -> int:
    """The console script."""
    try:
        return interruptible(lambda: dispatch(sys.argv[1:]))
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again when it ends
        return 0


def dispatch(words: Sequence[str]) -> int:
    """Do what the words say; the exit code."""
    first, *rest = words or ["--help"]
    try:
        if first in MODULES:
            sys.argv[1:] = rest
            runpy.run_module(MODULES[first], run_name="__main__", alter_sys=True)
        elif first == "--complete":
            from svdexp.command.completion import answers

            print("".join(f"{answer}\n" for answer in answers()), end="")
        else:
            print(told(first, rest))
    except UserError as error:
        print(f"svdexp: {error}", file=sys.stderr)
        return 1
    return 0


def told(first: str, rest: Sequence[str]) -> str:
    """What the script says by itself.

    Raises:
        UserError: there is no such subcommand or option.
    """
    if first == "--version":
        return f"svdexp {__version__}"
    if first == "--completion":
        from svdexp.command.completion import script

        return script(*rest[:1])
    if first in ("--help", "-h", "--list"):
        from svdexp.cells.page import listing, page  # Hydra takes a second

        return page() if first != "--list" else listing(*rest[:1])
    if "=" in first or first in ("-m", "--multirun", "--cfg"):
        raise UserError(f"say what to do with {first}: svdexp compress {first} …")
    raise UserError(f"there is no subcommand {first}, only {', '.join(MODULES)}{did_you_mean(first, MODULES)}")


if __name__ == "__main__":
    sys.exit(main())
