"""What features say of pictures, on features whose answer is known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tinyssl.reporting.mistakes import find_mistakes, from_shares
from tinyssl.reporting.seen import STEPS, Seen, look

GROUPS, EACH, WIDTH = 4, 40, 24


@pytest.fixture(scope="module")
def features() -> NDArray[np.float32]:
    """Four far groups; rows 7 and 8 are near copies, row 0 fits nowhere."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(GROUPS, WIDTH))
    rows = np.repeat(centres, EACH, axis=0) + 0.2 * generator.normal(size=(GROUPS * EACH, WIDTH))
    rows[8] = rows[7] + 1e-3
    rows[0] = 3 * generator.normal(size=WIDTH)
    return rows.astype(np.float32)


@pytest.fixture(scope="module")
def seen(features: NDArray[np.float32]) -> Seen:
    steps: list[int] = []
    found = look(features, [str(i) for i in range(len(features))], steps.append)
    assert sum(steps) == STEPS
    return found


def test_neighbours_are_of_the_same_group(seen: Seen) -> None:
    group = np.arange(GROUPS * EACH) // EACH
    same = group[seen.near[1:]] == group[1:, None]
    assert same.mean() > 0.95
    assert (np.diff(seen.cosines, axis=1) <= 1e-6).all()


def test_groups_lie_apart_on_the_map(seen: Seen) -> None:
    group = np.arange(GROUPS * EACH) // EACH
    centres = np.stack([np.median(seen.place[group == g], axis=0) for g in range(GROUPS)])
    nearest = np.linalg.norm(seen.place[:, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == group).mean() > 0.95
    assert np.abs(seen.place).max() == pytest.approx(1)


def test_odd_ones_and_near_copies(seen: Seen) -> None:
    assert seen.odd[0] == 0
    assert seen.copies == [[7, 8]]


def test_clusters_are_sorted_and_hold_every_picture(seen: Seen) -> None:
    sizes = [len(rows) for rows in seen.typical]
    assert sizes == sorted(sizes, reverse=True)
    assert sorted(np.concatenate(seen.typical)) == list(range(GROUPS * EACH))
    assert all((seen.cluster[rows] == number).all() for number, rows in enumerate(seen.typical))


def test_the_same_map_each_time(seen: Seen, features: NDArray[np.float32]) -> None:
    again = look(features, [str(i) for i in range(len(features))], lambda _: None)
    assert np.array_equal(seen.place, again.place)


def test_where_all_are_alike_near_copies_must_be_nearer() -> None:
    generator = np.random.default_rng(1)
    line = np.stack([np.cos(t := np.linspace(0, 6, 200)), np.sin(t)], axis=1)
    rows = line + 1e-4 * generator.normal(size=line.shape)
    found = look(rows.astype(np.float32), [str(i) for i in range(200)], lambda _: None)
    assert found.threshold > 0.99


@pytest.mark.parametrize("count", [2, 3, 6])
def test_a_handful_of_pictures(count: int) -> None:
    rows = np.random.default_rng(2).normal(size=(count, 5)).astype(np.float32)
    found = look(rows, [str(i) for i in range(count)], lambda _: None)
    assert np.isfinite(found.place).all()
    assert len(found.diverse) == count


def test_equal_pictures_are_copies_and_have_a_place() -> None:
    found = look(np.ones((20, 5), np.float32), ["a"] * 20, lambda _: None)
    assert found.copies == [list(range(20))]
    assert np.isfinite(found.place).all()


def test_mistakes_on_the_test_pictures(features: NDArray[np.float32]) -> None:
    labels = np.arange(GROUPS * EACH) // EACH
    test = np.arange(len(labels)) % 4 == 1
    labels[41] = 0  # a wrong label among the test pictures
    found = find_mistakes(features, labels, GROUPS, test=test)
    assert found is not None
    assert found.confusion.sum() == test.sum()
    assert [(w.row, w.called) for w in found.wrong][:1] == [(41, 1)]
    assert found.wrong[0].share > 0.5


def test_mistakes_without_a_split_judge_every_labeled_picture(
    features: NDArray[np.float32],
) -> None:
    labels = np.arange(GROUPS * EACH) // EACH
    labels[::5] = -1
    found = find_mistakes(features, labels, GROUPS)
    assert found is not None
    assert found.confusion.sum() == (labels >= 0).sum()


@pytest.mark.parametrize("labels", [[-1, -1, -1, -1], [0, 0, 0, -1], [0, 1, -1, -1]])
def test_too_few_labels_judge_nothing(labels: list[int]) -> None:
    rows = np.eye(4, dtype=np.float32)
    assert find_mistakes(rows, np.array(labels), 2) is None


def test_surest_mistake_first() -> None:
    shares = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    found = from_shares(np.arange(4), shares, np.array([0, 0, 0, 1]), "how")
    assert [w.row for w in found.wrong] == [1, 2]
    assert found.confusion.tolist() == [[1, 2], [0, 1]]
