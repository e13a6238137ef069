"""Every key of results.json is declared once, and whoever reads or writes one does so through its declaration."""

import ast
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

import svdexp
from svdexp.cells.choices import GROUPS
from svdexp.record import RESULTS, Key, Unit, as_dense, compared, dense_key, error_key, misfits, place, unit_of
from svdexp.record import results as keys
from svdexp.record.kinds import COUNT, NUMBER, WORD, maybe
from svdexp.record.lookup import FAMILIES, KEYS

PACKAGE = Path(svdexp.__file__).parent


def test_every_entry_has_a_name_of_its_own_and_a_meaning() -> None:
    assert len(KEYS) + len(FAMILIES) == len(keys.ENTRIES)
    assert all(entry.meaning for entry in keys.ENTRIES)
    twins = [entry.dense for entry in KEYS.values() if entry.twin]
    assert not KEYS.keys() & set(twins)
    assert not FAMILIES.keys() & {f"{name}_dense" for name in FAMILIES}


def test_the_parts_are_those_that_have_choices() -> None:
    assert [key.name for key in keys.PARTS] == list(GROUPS)
    assert [options.name for options in keys.PARTS.values()] == [f"{name}_options" for name in GROUPS]


@pytest.mark.parametrize(
    ("key", "dense", "error"),
    [
        ("ppl/wikitext2", "ppl_dense/wikitext2", "ppl_stderr/wikitext2"),
        ("acc/piqa", "acc_dense/piqa", "acc_stderr/piqa"),
        ("acc_norm/piqa", "acc_norm_dense/piqa", "acc_norm_stderr/piqa"),
        ("acc_stderr/average", "acc_stderr_dense/average", None),
        ("tokens_per_second/decode", "tokens_per_second/decode_dense", None),
        ("speed_spread/decode", "speed_spread_dense/decode", None),
        ("latency_ms/p99", "latency_ms_dense/p99", None),
        ("params", "params_dense", None),
        ("target_bits", "target_bits_dense", None),
    ],
)
def test_a_figure_its_twin_and_its_error(key: str, dense: str, error: str | None) -> None:
    assert dense_key(key) == dense
    assert error_key(key) == error
    here, there = place(key), place(dense)
    assert here is not None
    assert there is not None
    assert here.entry is there.entry
    assert (here.of_dense, there.of_dense) == (False, True)
    assert there.dense is None
    assert error is None or there.error == dense_key(error)


def test_what_only_dense_models_have_keeps_its_key() -> None:
    figures = {"ppl/x": 3.0, "tokens_per_second_routed/decode": 5.0}
    assert as_dense(figures) == {"ppl_dense/x": 3.0, "tokens_per_second_routed/decode": 5.0}
    with pytest.raises(KeyError, match="ratio"):
        as_dense({"ratio": 0.5})


@pytest.mark.parametrize("key", ["ratio", "seconds/evaluate_dense", "params_dense", "ppl_dense/x", "peak_rss_bytes"])
def test_what_has_no_twin(key: str) -> None:
    assert place(key) is not None
    with pytest.raises(KeyError, match=key):
        dense_key(key)


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "ppl", "ppl/", "pplx/a", "ppl_dense", "ratio_dense", "seconds_dense/load", "model/x", "params/x"),
        *("tokens_per_second/train", "tokens_per_second_dense/decode", "latency_ms/p50_dense", "folder", "_dense"),
    ],
)
def test_what_is_not_declared(key: str) -> None:
    assert place(key) is None
    assert misfits({key: 1.0}) == [f"{key} is not declared"]


def test_values_are_of_their_kind() -> None:
    record = {"ratio": "0.5", "seed": 0.5, "model": None, "commit": None, "ppl/x": math.nan, "params_dense": True}
    wrong = {"ratio": "number", "seed": "number", "model": "word", "params_dense": "number"}
    assert misfits(record) == [f"{key} is no {kind}" for key, kind in wrong.items()]
    assert COUNT.fits(2e9)  # as other programs write it
    assert not COUNT.fits(math.inf)
    assert not NUMBER.fits(10**400)
    assert maybe(WORD).fits(None)


def test_reading() -> None:
    record = {
        "ratio": 0.5,
        "commit": None,
        "seed": "x",
        "ppl/a": 2.0,
        "ppl_dense/a": 1.0,
        "ppl/b": "x",
        "ppl_dense/c": 1,
    }
    assert keys.RATIO.of(record) == 0.5
    assert keys.COMMIT.of(record) is None
    assert keys.SEED.get(record) is None
    assert keys.METHOD.get(record) is None
    with pytest.raises(TypeError, match="seed is no number"):
        keys.SEED.of(record)
    with pytest.raises(KeyError, match="method"):
        keys.METHOD.of(record)
    assert keys.PPL.of(record) == {"a": 2.0}
    assert keys.PPL.of_dense(record) == {"a": 1.0}
    assert keys.PPL.among(record) == ["a", "b"]
    assert keys.SPEED.of({"tokens_per_second/decode": 1.0, "tokens_per_second/decode_dense": 2.0}) == {"decode": 1.0}


def test_what_is_compared_are_figures_of_both_models() -> None:
    record = {
        **{"ppl/a": 2.0, "ppl_dense/a": 1.0, "ppl_stderr/a": 0.1, "ppl_stderr_dense/a": 0.1, "ppl/b": 3.0},
        **{"speed_spread/decode": 0.1, "speed_spread_dense/decode": 0.1, "params": 1, "params_dense": 2, "ratio": 0.5},
    }
    assert compared(record) == {"ppl/a": "ppl_dense/a", "params": "params_dense"}


def test_units() -> None:
    byte_counts = ["bytes", "bytes_dense", "peak_rss_bytes", "peak_rss_bytes/load", "generation_bytes_dense/peak"]
    assert [unit_of(key) for key in byte_counts] == [Unit.bytes] * 5
    assert unit_of("target_bits") is Unit.bits
    assert unit_of("elsewhere") is None


def words_of(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a module that are no docstrings, f-strings in their parts."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_no_other_module_spells_a_key_or_the_file() -> None:
    heads = tuple(f"{name}{dense}/" for name in FAMILIES for dense in ("", "_dense"))
    long = {name for key in KEYS.values() if isinstance(key, Key) for name in (key.name, key.dense) if "_" in key.name}
    spelt = [
        f"{path.relative_to(PACKAGE)}:{line}: {word}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent != PACKAGE / "record"
        for line, word in words_of(path)
        if word.startswith(heads) or word in long or word == RESULTS
    ]
    assert spelt == []


def test_the_record_is_a_leaf() -> None:
    """Else the report, which needs no torch, and a cell, which needs no tracker, could not read through it."""
    modules = {
        node.module or ""
        for path in (PACKAGE / "record").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
    }
    assert {name for name in modules if name.startswith("svdexp")} == {
        *("svdexp.record.keys", "svdexp.record.kinds", "svdexp.record.lookup", "svdexp.record.results")
    }
