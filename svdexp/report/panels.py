"""Which runs may stand in one picture of one figure: those that measured it alike."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from svdexp.record.results import ACC, ACC_ROWS, PPL, PPL_TOKENS
from svdexp.report.frame import MEAN, MEAN_DENSE, tasks_among


@dataclass(frozen=True)
class Panel:
    """One figure of some runs of one model.

    Attributes:
        title: what was measured, and how much of it.
        key, dense_key: columns of the compressed model's figure and of the dense model's.
        rows: the runs.
    """

    title: str
    key: str
    dense_key: str
    rows: pd.DataFrame


def perplexity_panels(rows: pd.DataFrame) -> list[Panel]:
    """One for every text, every number of its tokens that runs were measured on, and every place of BOS in them.

    What was measured and is not a number counts as infinite.
    """
    panels = []
    for text in sorted(PPL.among(rows)):
        key = PPL.at(text)
        counted = rows.get(PPL_TOKENS.at(text), pd.Series(np.nan, index=rows.index)).notna()
        having = rows[rows[key].notna() | counted].fillna({key: np.inf})
        counts = having.get(PPL_TOKENS.at(text), pd.Series(np.nan, index=having.index)).fillna(0)
        places = having.get(f"ppl_bos/{text}", pd.Series("none", index=having.index)).fillna("none")
        for (tokens, bos), part in having.groupby([counts, places]):
            title = f"{text}, {tokens:,.0f} tokens" if tokens else text
            title += f", BOS {bos}" if bos != "none" else ""
            panels.append(Panel(title, key, PPL.dense_at(text), part))
    return panels


def accuracy_panels(rows: pd.DataFrame) -> list[Panel]:
    """The mean over the tasks, for every set of several, then every task by its number of rows."""
    panels = []
    for part, several in asked_alike(rows):
        count = str(part["tasks"].iloc[0]).count(",") + 1
        if count > 1:
            title = f"mean of {count} tasks" + (f": {part['asked'].iloc[0]}" if several else "")
            panels.append(Panel(title, MEAN, MEAN_DENSE, part))
    for task in sorted(tasks_among(rows)):
        key = ACC.at(task)
        asked = rows[rows[key].notna()]
        counts = asked.get(ACC_ROWS.at(task), pd.Series(np.nan, index=asked.index)).fillna(0)
        for count, part in asked.groupby(counts):
            title = f"{task}, {count:,.0f} rows" if count else task
            panels.append(Panel(title, key, ACC.dense_at(task), part))
    return panels


def asked_alike(rows: pd.DataFrame) -> list[tuple[pd.DataFrame, bool]]:
    """The runs that were asked the same tasks and as many rows of each, and whether there are several such groups."""
    groups = [part for _, part in rows[rows["asked"].notna()].groupby("asked")]
    return [(part, len(groups) > 1) for part in groups]
