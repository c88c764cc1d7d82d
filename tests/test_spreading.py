"""Spreading of labels, against the dense closed form and shapes that decide themselves."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from tinyssl.spreading import neighbour_graph, spread_labels


def rings(n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Two long, thin arcs on the sphere: a label in each must run along its arc."""
    angle = np.linspace(0, 2.4, n // 2)
    one = np.stack([np.cos(angle), np.sin(angle), np.full(n // 2, 0.35)], axis=1)
    rows = np.concatenate([one, one * [1, 1, -1]])
    return rows + np.random.default_rng(0).normal(scale=0.01, size=rows.shape), np.repeat(
        [0, 1], n // 2
    )


def test_graph_is_a_loop_over_pairs() -> None:
    rows = np.random.default_rng(0).normal(size=(15, 4)) + 3
    graph = neighbour_graph(rows, 4).toarray()
    centred = rows - rows.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    expected = np.zeros((15, 15))
    for i in range(15):
        others = sorted((j for j in range(15) if j != i), key=lambda j: -float(unit[i] @ unit[j]))
        for j in others[:4]:
            expected[i, j] += max(float(unit[i] @ unit[j]), 0) ** 3
            expected[j, i] += max(float(unit[i] @ unit[j]), 0) ** 3
    assert graph == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 0.95])
def test_scores_are_the_dense_closed_form(alpha: float) -> None:
    generator = np.random.default_rng(1)
    graph = neighbour_graph(generator.normal(size=(40, 5)), 6)
    labels = np.full(40, -1)
    labels[:7] = [0, 0, 0, 1, 1, 2, 2]
    dense = graph.toarray()
    scale = np.diag(1 / np.sqrt(dense.sum(axis=1)))
    targets = np.zeros((40, 3))
    for row, label in enumerate(labels[:7]):
        targets[row, label] = 1 / np.sum(labels == label)
    scores = np.linalg.inv(np.eye(40) - alpha * scale @ dense @ scale) @ targets
    shares = scores / scores.sum(axis=1, keepdims=True)
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(axis=1)
    found = spread_labels(graph, labels, alpha=alpha, classes=3)
    assert np.array_equal(found.labels[7:], shares.argmax(axis=1)[7:])
    assert found.weights[7:] == pytest.approx((1 - entropy / np.log(3))[7:], abs=1e-4)


def test_given_labels_stay_with_full_weight() -> None:
    rows, _ = rings()
    labels = np.full(len(rows), -1)
    labels[[0, 1, 2]] = [0, 1, 1]  # even where the neighbours say otherwise
    found = spread_labels(neighbour_graph(rows, 4), labels, alpha=0.9, classes=2)
    assert found.labels[:3].tolist() == [0, 1, 1]
    assert found.weights[:3].tolist() == [1, 1, 1]


def test_one_label_runs_along_its_whole_arc() -> None:
    rows, truth = rings()
    labels = np.full(len(rows), -1)
    labels[0], labels[-1] = 0, 1  # at opposite ends: the nearest label is often the wrong one
    found = spread_labels(neighbour_graph(rows, 4), labels, alpha=0.99, classes=2)
    assert np.mean(found.labels == truth) > 0.95


@pytest.mark.parametrize("classes", range(2, 11))
def test_what_no_label_reaches_has_no_weight(classes: int) -> None:
    graph = csr_array(np.kron(np.eye(2), np.ones((3, 3)) - np.eye(3)))
    labels = np.array([0, 1, -1, -1, -1, -1])
    found = spread_labels(graph, labels, alpha=0.9, classes=classes)
    assert found.weights[3:].tolist() == [0, 0, 0]
