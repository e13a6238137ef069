"""Whether texts that calibrate or train hold what texts that evaluate hold: equal files, and passages of tokens."""

import filecmp
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from svdexp.models.pictures import is_picture
from svdexp.runtime.errors import UserError

# So many tokens in a row are a passage; equal texts of other origin hardly ever have as many.
PASSAGE = 64
BASE = 6364136223846793005  # odd, so that powers of it stay different modulo 2⁶⁴


def refuse_equal_files(learnt: Mapping[str, Sequence[Path]], asked: Mapping[str, Sequence[Path]]) -> None:
    """Raise UserError where a file of `learnt` is one of `asked`, or has the same contents.

    Both give files by the key that names them: calibration.files, eval.files.
    """
    for ours, files in learnt.items():
        for theirs, others in asked.items():
            for file in files:
                for other in others:
                    if same(file, other):
                        also = "" if file == other else f", {other} under {theirs}"
                        said = f"{ours} and {theirs} share {file}" if not also else f"{ours} has {file}{also}"
                        raise UserError(
                            f"{said}: what calibrates or trains cannot evaluate, because its figures would be too good"
                        )


def same(file: Path, other: Path) -> bool:
    """Whether two files are one, or have equal contents; of different sizes nothing is read."""
    if file.samefile(other):
        return True
    size = file.stat().st_size
    return size > 0 and size == other.stat().st_size and filecmp.cmp(file, other, shallow=False)


def windows_that_share(asked: torch.Tensor, learnt: torch.Tensor) -> int:
    """How many of the windows `asked` (N, L) hold PASSAGE tokens in a row that one of `learnt` (M, K) holds too."""
    if min(asked.shape[1], learnt.shape[1]) < PASSAGE:
        return 0
    known, order = passage_hashes(learnt).flatten().sort()
    found = passage_hashes(asked)
    place = torch.searchsorted(known, found).clamp(max=len(known) - 1)
    hits = known[place] == found
    rows = hits.any(1).nonzero()[:, 0]
    first = hits[rows].int().argmax(1)  # of each window; equal hashes are made sure of by their tokens
    mine = asked.unfold(1, PASSAGE, 1)[rows, first]
    per_window = learnt.shape[1] - PASSAGE + 1
    origin = order[place[rows, first]]
    theirs = learnt.unfold(1, PASSAGE, 1)[origin // per_window, origin % per_window]
    return int((mine == theirs).all(1).sum())


def pictures_that_share(asked: torch.Tensor, learnt: torch.Tensor) -> int:
    """How many of the windows `asked` (N, L) hold an image that one of `learnt` (M, K) holds too."""
    known = learnt[is_picture(learnt)].unique()  # type: ignore[no-untyped-call]
    return int(torch.isin(asked, known).any(1).sum())


def passage_hashes(windows: torch.Tensor) -> torch.Tensor:
    """A hash of the PASSAGE tokens from each place on: (N, L) → (N, L − PASSAGE + 1), int64 modulo 2⁶⁴."""
    count = windows.shape[1] - PASSAGE + 1
    hashes = torch.zeros(len(windows), count, dtype=torch.int64)
    for offset in range(PASSAGE):
        hashes = hashes * BASE + windows[:, offset : offset + count]
    return hashes
