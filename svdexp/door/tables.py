"""What lies on disk as tables: records of runs, and the methods of conf/."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import pandas as pd

from svdexp.cells.catalogue import choices
from svdexp.cells.choices import own_parts, own_storage
from svdexp.door.guest import as_guest
from svdexp.report.collect import standalone, survey
from svdexp.report.frame import tidy


@as_guest
def read(folders: str | PathLike[str] | Sequence[str | PathLike[str]]) -> pd.DataFrame:
    """The records of all runs below one or several folders: runs, sweeps, or what `Result.save` wrote.

    Returns:
        A row a run, best known by `series`, `ratio` and `folder`, with a column for each figure of results.json and
        some that are made of them (docs/report.md); models that were measured as they are come last, without a method.
        `.attrs["missing"]` says which runs left no record, and why.

    Raises:
        UserError: there is none.
    """
    several = [folders] if isinstance(folders, str | PathLike) else list(folders)
    paths = [Path(folder).expanduser() for folder in several]
    records, missing = survey(paths)
    table = tidy(records, standalone(paths, records))
    table.attrs["missing"] = {str(gone.folder): gone.reason for gone in missing}
    return table


@as_guest
def methods() -> pd.DataFrame:
    """The methods of conf/method/, by name: their parts, and what their files say of them.

    A part that is empty is none; a storage, the run's own choice.
    """
    rows = {
        choice.name: (own_parts(choice.name) or {}) | {"storage": own_storage(choice.name), "about": choice.says}
        for choice in choices("method")
    }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    return table.fillna("")
