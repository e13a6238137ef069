"""Sizes as people write them."""

import pytest

from svdexp.runtime.errors import UserError
from svdexp.runtime.sizes import parse_size


@pytest.mark.parametrize(
    ("words", "count"),
    [("300MB", 300e6), ("1.5 GiB", 1.5 * 1024**3), ("20000", 20000), ("0.6", 0.6), ("1e6", 1e6), ("2kb", 2000)],
)
def test_sizes_are_read_as_people_write_them(words: str, count: float) -> None:
    assert parse_size(words, "bytes") == count


@pytest.mark.parametrize("words", ["big", "-1MB", "3 apples", "0", "MB"])
def test_what_is_no_size_is_a_sentence(words: str) -> None:
    with pytest.raises(UserError, match=rf"bytes={words} is no size"):
        parse_size(words, "bytes")
