"""Dobi-SVD's rank files: the published ones on the model they are for, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from svdexp.allocation import Budget, FromGamma, allocate
from svdexp.runtime.errors import UserError
from svdexp.storage import FactorStorage, RemapStorage, Storage
from tests.allocation.test_allocation import NOTHING, budget

ROOT = Path(__file__).parents[2]
PUBLISHED = Path(os.environ.get("SVDEXP_DATA") or ROOT.parent / "shared" / "data") / "dobi"
HIDDEN, INTERMEDIATE = 4096, 11008
LLAMA_2_7B = {
    f"model.layers.{i}.{name}_proj": shape
    for i in range(32)
    for name, shape in (
        *((f"self_attn.{part}", (HIDDEN, HIDDEN)) for part in "qkvo"),
        ("mlp.gate", (INTERMEDIATE, HIDDEN)),
        ("mlp.up", (INTERMEDIATE, HIDDEN)),
        ("mlp.down", (HIDDEN, INTERMEDIATE)),
    )
}
# Remapping-0.4 comes to its ratio when all r (m + n) numbers take 8 bits; remapped storage needs 0.522 for its ranks.
FILES = [
    ("Noremapping-0.4", FactorStorage(), 0.4),
    ("Noremapping-0.6", FactorStorage(), 0.6),
    ("Noremapping-0.8", FactorStorage(), 0.8),
    ("Remapping-0.4", RemapStorage(), 0.522),
    ("Remapping-0.6", RemapStorage(), 0.6),
    ("Remapping-0.8", RemapStorage(), 0.8),
]


def write(path: Path, content: Any) -> FromGamma:
    path.write_text(json.dumps(content))
    return FromGamma(str(path))


@pytest.mark.parametrize(("file", "storage", "ratio"), FILES)
def test_published_files_give_their_own_ranks(file: str, storage: Storage, ratio: float) -> None:
    path = PUBLISHED / f"Llama-2-7b-hf_{file}.best_gamma.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here; set $SVDEXP_DATA to the folder that holds dobi/")
    offer, gammas = Budget(ratio, LLAMA_2_7B, storage), json.loads(path.read_text())
    ranks = FromGamma(str(path))(offer, NOTHING)
    assert list(ranks) == list(LLAMA_2_7B)
    for name, rank in ranks.items():
        published = gammas[name] * min(LLAMA_2_7B[name]) / 2048
        assert rank is not None
        assert abs(rank - published) <= 0.01 * published + 1, name
    assert 0.9999 * offer.total < offer.spent(ranks) <= offer.total


def test_ranks_are_gammas_share_of_the_shorter_side(tmp_path: Path) -> None:
    """q: 512 of 2048 is 100 of 400; up: 256 of 2048 is 50 of 400; 100 · 800 + 50 · 1000 of 400,000 numbers is 0.325."""
    allocation = write(tmp_path / "gamma.json", {"q": 512, "up": 256.0})
    shapes = {"q": (400, 400), "up": (600, 400)}
    assert allocation(budget(0.325, **shapes), NOTHING) == {"q": 100, "up": 50}
    assert allocation(budget(0.1625, **shapes), NOTHING) == {"q": 50, "up": 25}


def test_other_keys_and_fixed_layers_are_ignored(tmp_path: Path) -> None:
    other = {"ppl": [5.5], "compression_ratio": 0.4, "PPL_ORIG": None, "lm_head": 7, "fixed": "no number"}
    allocation = write(tmp_path / "gamma.json", {"q": 512} | other)
    offer = budget(0.6, q=(64, 64), fixed=(64, 64))
    assert allocate(allocation, offer, {"fixed": 20}, NOTHING)[0] == {"q": 18, "fixed": 20}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("not json", "cannot be read"),
        ("[3]", "is not an object"),
        ('{"q": 3}', r"no positive γ for up$"),
        ('{"q": 0, "up": 3}', r"no positive γ for q$"),
        ('{"q": 3, "up": -3.5}', r"no positive γ for up$"),
        ('{"q": 3, "up": null}', r"no positive γ for up$"),
        ('{"q": true, "up": 3}', r"no positive γ for q$"),
        ('{"q": "3", "up": 3}', r"no positive γ for q$"),
        ('{"q": [3], "up": 3}', r"no positive γ for q$"),
        ('{"q": NaN, "up": 3}', r"no positive γ for q$"),
        ('{"q": Infinity, "up": 3}', r"no positive γ for q$"),
        (f'{{"q": 1{"0" * 400}, "up": 3}}', r"no positive γ for q$"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "gamma.json"
    path.write_text(content)
    with pytest.raises(UserError, match=rf"method\.allocation\.path=.*{sentence}"):
        FromGamma(str(path))(budget(0.5, q=(64, 64), up=(96, 64)), NOTHING)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method\.allocation\.path=.*nowhere\.json cannot be read"):
        FromGamma(str(tmp_path / "nowhere.json"))(budget(0.5, q=(64, 64)), NOTHING)
