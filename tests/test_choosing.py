"""Choosing what to label: every method's promises, and each against a plain loop."""

from collections import Counter

import numpy as np
import pytest

from tinyssl.choosing import METHODS, _typicality, choose
from tinyssl.errors import UsageError
from tinyssl.neighbours import unit_rows


def clumps(sizes: list[int], spread: float = 0.02, d: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Tight clumps around the axes: (n, d) unit rows in mixed order, (n,) clump numbers."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return unit_rows(np.eye(d)[labels] + spread * generator.normal(size=(len(labels), d))), labels


@pytest.mark.parametrize("method", METHODS)
def test_promises_of_every_method(method: str) -> None:
    rows, _ = clumps([30, 20, 10, 7])
    covered = np.zeros(len(rows), bool)
    covered[:9] = True
    for budget in (1, 5, 58):
        chosen = choose(rows, budget, method=method, covered=covered, seed=3)
        assert len(set(chosen.tolist())) == budget
        assert not covered[chosen].any()
        again = choose(rows, budget, method=method, covered=covered, seed=3)
        assert chosen.tolist() == again.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_length_of_features_does_not_matter(method: str) -> None:
    rows, _ = clumps([12, 9, 6])
    longer = rows * np.random.default_rng(1).uniform(1, 9, (len(rows), 1))
    assert choose(rows, 3, method=method).tolist() == choose(longer, 3, method=method).tolist()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [0, 5, -1])
def test_a_budget_that_is_not_there(method: str, budget: int) -> None:
    covered = np.array([True] * 6 + [False] * 4)
    with pytest.raises(UsageError, match="allowed are 1 to 4"):
        choose(np.eye(10), budget, method=method, covered=covered)


def test_an_unknown_method() -> None:
    with pytest.raises(UsageError, match="allowed are kmeans, typiclust, kcenter, random"):
        choose(np.eye(3), 1, method="best")


@pytest.mark.parametrize("method", ["typiclust", "kmeans", "kcenter"])
def test_one_of_each_clump(method: str) -> None:
    rows, labels = clumps([40, 20, 10, 5])
    chosen = choose(rows, 4, method=method)
    assert Counter(labels[chosen].tolist()) == {0: 1, 1: 1, 2: 1, 3: 1}
    if method != "kcenter":  # the largest first
        assert labels[chosen].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("method", ["typiclust", "kmeans", "kcenter"])
def test_covered_clumps_have_had_their_turn(method: str) -> None:
    rows, labels = clumps([40, 20, 10, 5])
    covered = np.zeros(len(rows), bool)
    covered[[np.flatnonzero(labels == 0)[0], np.flatnonzero(labels == 2)[0]]] = True
    chosen = choose(rows, 2, method=method, covered=covered)
    assert sorted(labels[chosen].tolist()) == [1, 3]


def test_small_clusters_come_last() -> None:
    rows, labels = clumps([30, 20, 1, 2])
    assert labels[choose(rows, 4)].tolist()[:2] == [0, 1]
    two = clumps([30, 2])
    chosen = choose(two[0], 2, method="typiclust")  # the odd pair is no cluster to be typical of
    assert two[1][chosen].tolist() == [0, 0]


def test_k_means_takes_one_of_each_cluster_however_small() -> None:
    rows, labels = clumps([30, 2, 3, 1, 2])
    assert Counter(labels[choose(rows, 5)].tolist()) == dict.fromkeys(range(5), 1)


def test_typicality_ranks_as_the_inverse_mean_distance() -> None:
    rows = unit_rows(np.random.default_rng(0).normal(size=(60, 5)))
    scores = []
    for i in range(60):
        distances = sorted(float(np.linalg.norm(rows[i] - rows[j])) for j in range(60) if j != i)
        scores.append(1 / np.mean(distances[:20]))
    assert np.argsort(_typicality(rows)).tolist() == np.argsort(scores).tolist()


def test_typiclust_takes_the_most_typical_of_a_cluster() -> None:
    rows, labels = clumps([60, 30], spread=0.1)
    for chosen in choose(rows, 2):
        members = np.flatnonzero(labels == labels[chosen])
        assert members[int(np.argmax(_typicality(rows[members])))] == chosen


def test_more_than_the_most_clusters_goes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyssl.choosing._MOST_CLUSTERS", 3)
    rows, labels = clumps([20, 20, 20])
    counts = Counter(labels[choose(rows, 12, method="typiclust")].tolist())
    assert counts == {0: 4, 1: 4, 2: 4}


def test_kcenter_is_greedy_farthest_first() -> None:
    rows = unit_rows(np.random.default_rng(2).normal(size=(30, 4)))
    covered = np.zeros(30, bool)
    covered[[4, 9]] = True
    near = [4, 9]
    for chosen in choose(rows, 10, method="kcenter", covered=covered):
        gaps = [min(float(np.linalg.norm(rows[i] - rows[j])) for j in near) for i in range(30)]
        assert gaps[chosen] == pytest.approx(max(gaps), abs=1e-5)
        near.append(int(chosen))


def test_seeds_differ() -> None:
    rows, _ = clumps([50, 50])
    for method in ("random", "kcenter"):
        firsts = {choose(rows, 1, method=method, seed=seed)[0] for seed in range(5)}
        assert len(firsts) > 1


def test_many_clusters_use_small_batches_and_stay_the_same() -> None:
    rows = unit_rows(np.random.default_rng(0).normal(size=(400, 8)))
    first = choose(rows, 80)
    assert first.tolist() == choose(rows, 80).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_fewer_distinct_pictures_than_labels(method: str) -> None:
    rows = np.repeat(unit_rows(np.eye(3)), 4, axis=0)
    assert sorted(choose(rows, 12, method=method).tolist()) == list(range(12))
