"""What somebody who misspelt a name may have meant."""

import re
from collections.abc import Collection
from difflib import get_close_matches


def did_you_mean(word: str, names: Collection[str]) -> str:
    """`; did you mean NAME?`, to end a sentence with; nothing where no name is near.

    A key without what stands before it (`samples`) is near to those that end in it (calibration.samples).
    """
    others = [name for name in names if name != word]  # a name of another command's may be the same
    ends = [name for name in others if re.split(r"[./]", name)[-1] == word]
    near = ends[:3] or get_close_matches(word, others, n=1, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""
