"""Command line: `python -m svdexp.bench.engines` runs compressed models in the programs that people run models with.

Each engine runs launch/engines/ENGINE/run.py in an environment of its own, where svdexp is not installed. Models and
environments are made once, in outputs/engines/; docs/engines.md has the table.
"""

from svdexp.runtime.interruption import interruptible

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from svdexp.bench.engines.kinds import ENGINES, FORMS
from svdexp.runtime.errors import UserError
from svdexp.runtime.invocation import command

SCRIPTS = Path(__file__).parents[3] / "launch" / "engines"


def main(words: Sequence[str] | None = None) -> int:
    """Make the models, run the engines, print the table."""
    parser = argparse.ArgumentParser(
        prog=command("bench.engines"), description="Runs compressed models in the programs that people run models with."
    )
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"of {', '.join(ENGINES)}; all by default")
    parser.add_argument("--model", help="a dense model's folder; by default the demo's")
    parser.add_argument(
        "--forms", nargs="+", metavar="FORM", help=f"of {', '.join(FORMS)}; all of an engine's by default"
    )
    parser.add_argument("--keys", nargs="+", default=[], metavar="KEY=VALUE", help="of every compression: ratio=0.6 …")
    parser.add_argument("--folder", type=Path, default=Path("outputs/engines"), help="of all that is made")
    asked = parser.parse_args(words)
    for names, known in ((asked.engines, list(ENGINES)), (asked.forms or [], list(FORMS))):
        for name in names:
            if name not in known:
                parser.error(f"there is no {name} among {', '.join(known)}")
    engines = {name: ENGINES[name] for name in asked.engines or ENGINES}
    if asked.forms:
        engines = {name: engine._replace(forms=tuple(asked.forms)) for name, engine in engines.items()}
    from svdexp.bench.engines.trial import show

    try:
        show(engines, asked.model, asked.keys, asked.folder, SCRIPTS)
    except UserError as error:
        print(f"{command('bench.engines')}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(interruptible(main))
