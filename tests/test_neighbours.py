"""Blocked neighbours against plain loops over the whole matrix."""

import numpy as np
import pytest

from tinyssl import neighbours
from tinyssl.neighbours import (
    alike,
    centred,
    isolation,
    mean_row,
    near_copy_cosine,
    nearest,
    unit_rows,
)


@pytest.fixture(params=[(3, 4), (1000, 1000)], ids=["small blocks", "one block"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_ROWS", request.param[0])
    monkeypatch.setattr(neighbours, "_COLUMNS", request.param[1])


def some_rows(n: int, d: int = 6, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).normal(size=(n, d)))


def test_unit_rows_and_zero() -> None:
    rows = unit_rows(np.array([[3, 4], [0, 0]], np.float16))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert rows.dtype == np.float32


def test_centred_takes_the_common_part_out() -> None:
    far = some_rows(50) + 10  # a large mean: every plain cosine is near 1
    plain = unit_rows(far) @ unit_rows(far).T
    assert plain.min() > 0.9
    rows = centred(far, mean_row(far))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    assert abs((rows @ rows.T).mean()) < 0.1


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("k", [1, 4, 11, 50])
def test_nearest_is_that_of_a_full_sort(k: int) -> None:
    queries, rows = some_rows(7, seed=1), some_rows(11)
    numbers, products = nearest(queries, rows, k)
    assert numbers.shape == (7, min(k, 11))
    for query, found, values in zip(queries, numbers, products, strict=True):
        order = sorted(range(11), key=lambda i: -float(query @ rows[i]))[:k]
        assert found.tolist() == order
        np.testing.assert_allclose(values, rows[order] @ query, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_blocks")
def test_nearest_leaves_one_row_out() -> None:
    rows = some_rows(10)
    rows[7] = rows[2]
    numbers, products = nearest(rows, rows, 9, without=np.arange(10))
    for row in range(10):
        assert sorted(numbers[row]) == [i for i in range(10) if i != row]
    assert numbers[2, 0] == 7
    assert numbers[7, 0] == 2
    assert np.isfinite(products).all()
    mixed, _ = nearest(rows[[0, 1]], rows, 1, without=np.array([-1, 1]))
    assert mixed[0, 0] == 0
    assert mixed[1, 0] != 1


def test_as_many_are_found_as_there_are() -> None:
    rows = unit_rows(np.random.default_rng(0).normal(size=(5, 3)))
    assert nearest(rows[:1], rows, 9)[0].shape == (1, 5)
    assert nearest(rows[:1], rows, 9, without=np.array([-1]))[0].shape == (1, 5)
    assert nearest(rows[:1], rows, 9, without=np.array([0]))[0].shape == (1, 4)


@pytest.mark.usefixtures("_blocks")
def test_equal_rows_come_in_order() -> None:
    rows = np.repeat(some_rows(1), 4, axis=0)
    numbers, _ = nearest(rows[:1], rows, 4)
    assert numbers.tolist() == [[0, 1, 2, 3]]
    some = np.eye(3, dtype=np.float32)[np.arange(900) % 3]
    numbers, products = nearest(some[:3], some, 5, without=np.array([0, -1, 5]))
    assert numbers.tolist() == [[3, 6, 9, 12, 15], [1, 4, 7, 10, 13], [2, 8, 11, 14, 17]]
    assert (products == 1).all()


@pytest.mark.usefixtures("_blocks")
def test_isolation_is_the_mean_of_the_nearest() -> None:
    rows = some_rows(12)
    expected = [
        np.sort([1 - float(rows[i] @ rows[j]) for j in range(12) if j != i])[:3].mean()
        for i in range(12)
    ]
    np.testing.assert_allclose(isolation(rows, 3), expected, rtol=1e-4, atol=1e-6)
    assert isolation(rows[:2], 10).shape == (2,)


def naive_groups(rows: np.ndarray, threshold: float) -> list[list[int]]:
    """Connected parts by spreading from each row in turn."""
    left, groups = set(range(len(rows))), []
    while left:
        start = min(left)
        group, waiting = {start}, [start]
        while waiting:
            i = waiting.pop()
            near = {j for j in left - group if float(rows[i] @ rows[j]) >= threshold}
            group |= near
            waiting += near
        left -= group
        groups.append(sorted(group))
    return [group for group in groups if len(group) > 1]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_groups_are_the_connected_parts(threshold: float) -> None:
    rows = some_rows(40, d=4, seed=3)
    groups, closest = alike(rows, threshold)
    assert groups == naive_groups(rows, threshold)
    assert groups  # else this would show nothing
    products = rows @ rows.T
    np.fill_diagonal(products, -1)
    np.testing.assert_allclose(closest, products.max(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "expected"), [(72, 0.85), (45, 1 - (1 - np.cos(np.deg2rad(45))) / 3), (5, 0.95)]
)
def test_near_copies_are_three_times_nearer_within_limits(step: float, expected: float) -> None:
    angles = np.deg2rad(np.arange(0, 5 * step, step))
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert near_copy_cosine(rows, 3, 0.95) == pytest.approx(expected, abs=1e-5)
    assert near_copy_cosine(rows[:1], 3, 0.95) == 0.95


@pytest.mark.usefixtures("_blocks")
def test_groups_chain() -> None:
    angles = np.deg2rad([0, 10, 20, 90])
    rows = unit_rows(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert alike(rows, np.cos(np.deg2rad(11)))[0] == [[0, 1, 2]]


@pytest.mark.usefixtures("_blocks")
def test_equal_keys_are_linked_whatever_the_rows() -> None:
    rows = np.eye(5, dtype=np.float32)
    groups, closest = alike(rows, 0.9, ["a", "b", "a", "c", "a"])
    assert groups == [[0, 2, 4]]
    assert closest.tolist() == [1, 0, 1, 0, 1]


@pytest.mark.usefixtures("_blocks")
def test_all_alike_is_one_group_and_progress_counts_all() -> None:
    told: list[int] = []
    groups, _ = alike(np.repeat(some_rows(1), 50, axis=0), 0.99, progress=told.append)
    assert groups == [list(range(50))]
    assert sum(told) == 50
