"""Evenly spaced rows."""

import pytest

from tinyssl.rows import spaced, spaced_rows


@pytest.mark.parametrize(("n", "count"), [(2, 2), (1999, 1999), (50_000, 2000)])
def test_rows_are_few_distinct_and_span_all(n: int, count: int) -> None:
    rows = spaced_rows(n, 2000)
    assert len(rows) == count
    assert len(set(rows)) == count
    assert (rows[0], rows[-1]) == (0, n - 1)


def test_items_keep_their_order() -> None:
    assert spaced("abcde", 3) == ["a", "c", "e"]
    assert spaced([], 3) == []
