"""What the dry run of the demo says that it will take, against what it then takes, without a cache."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from svdexp.bench.timing import Row, seconds

SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}


def said(table: str) -> float:
    """The total seconds of an estimate's table."""
    (line,) = (line for line in table.splitlines() if "total time" in line)
    found = re.search(r"([\d.,]+) (s|min|h|days) ", line)
    assert found is not None, line
    return float(found[1].replace(",", "")) * SECONDS[found[2]]


def demo(folder: Path, *words: str) -> str:
    """What `python -m svdexp` prints, in a process of its own, with a cache of its own."""
    places = [f"hydra.run.dir={folder / 'run'}", f"cache={folder / 'cache'}", "tracker=none"]
    command = [sys.executable, "-m", "svdexp", *places, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def rows() -> Iterator[Row]:
    """The one comparison: seconds said / seconds taken, from the start of the process to its end."""
    with TemporaryDirectory() as name:
        expected = said(demo(Path(name), "dry_run=true"))
        yield Row("the demo", "its dry run", "seconds said / taken", expected / seconds(lambda: demo(Path(name))))
