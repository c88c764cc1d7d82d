"""Scores of features, against loops, scikit-learn and scipy."""

import json
import math
import threading
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score
from sklearn.preprocessing import StandardScaler

from tinyssl import scoring
from tinyssl.logistic import fit_logistic, rotate
from tinyssl.scoring import (
    KNN_CHOICES,
    PROBE_CHOICES,
    choose_k,
    evaluate_features,
    few_shot,
    knn_loo_score,
    knn_predict,
    linear_probe,
    mean_cosine,
    pixel_features,
    rankme,
    retrieval,
    scores,
)

Data = tuple[NDArray[np.float32], NDArray[np.int64]]


def clouds(
    n: int = 60, d: int = 12, classes: int = 3, *, spread: float = 1.5, seed: int = 0
) -> Data:
    """Overlapping clouds, one a class, with columns of very different size."""
    centres = np.random.default_rng(99).normal(size=(classes, d))
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    rows = centres[labels] + spread * generator.normal(size=(n, d))
    return (rows * np.geomspace(0.05, 5, d)).astype(np.float32), labels


def naive_knn(train: NDArray[Any], labels: NDArray[Any], row: NDArray[Any], k: int) -> int:
    unit = train.astype(float) / np.linalg.norm(train.astype(float), axis=1)[:, None]
    query = row.astype(float) / np.linalg.norm(row.astype(float))
    votes = dict.fromkeys(range(int(labels.max()) + 1), 0.0)
    cosines = [float(other @ query) for other in unit]
    for index in sorted(range(len(unit)), key=lambda i: -cosines[i])[:k]:
        votes[int(labels[index])] += math.exp(cosines[index] / 0.07)
    return max(votes, key=lambda label: votes[label])


# k-NN


@pytest.mark.parametrize("k", [1, 4, 60, 500])
def test_knn_is_the_naive_loop(k: int) -> None:
    train, labels = clouds()
    test, _ = clouds(40, seed=1)
    expected = [naive_knn(train, labels, row, k) for row in test]
    assert knn_predict(train, labels, test, k=k).tolist() == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("k", [1, 5, 59, 60, 200])
def test_leave_one_out_leaves_one_out(k: int) -> None:
    rows, labels = clouds()
    others = ~np.eye(len(rows), dtype=bool)
    expected = [naive_knn(rows[o], labels[o], row, k) for o, row in zip(others, rows, strict=True)]
    assert knn_loo_score(rows, labels, k=k) == pytest.approx(
        balanced_accuracy_score(labels, expected)
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_leave_one_out_of_features_that_are_not_finite_is_nan(bad: float) -> None:
    rows, labels = clouds()
    rows[3, 2] = bad
    assert math.isnan(knn_loo_score(rows, labels, k=5))


@pytest.mark.parametrize("count", [0, 1])
def test_leave_one_out_without_others_is_nan(count: int) -> None:
    rows, labels = clouds()
    assert math.isnan(knn_loo_score(rows[:count], labels[:count], k=5))


@pytest.mark.parametrize("spread", [0.3, 1.5, 4.0])
def test_chosen_k_is_best_on_the_training_rows_and_smallest_of_equals(spread: float) -> None:
    rows, labels = clouds(90, spread=spread)
    by_k = {k: knn_loo_score(rows, labels, k=k) for k in KNN_CHOICES}
    best = max(by_k.values())
    assert choose_k(rows, labels) == min(k for k in KNN_CHOICES if by_k[k] == best)


def test_k_is_smaller_than_the_rows() -> None:
    rows, labels = clouds(6)
    assert choose_k(rows, labels) in (1, 5)
    assert choose_k(rows[:1], labels[:1]) == 1


# Linear probe


def converged(rows: NDArray[Any], labels: NDArray[Any], strength: float) -> LogisticRegression:
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=20000, tol=1e-8)
    return model.fit(rows.astype(np.float64), labels)


@pytest.mark.parametrize("strength", PROBE_CHOICES)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_fit_is_the_minimum_that_scikit_learn_finds(strength: float, classes: int) -> None:
    rows, labels = clouds(97, classes=classes)
    # scikit-learn's two-class model has one weight vector where a softmax has two of half its size
    reference = converged(rows, labels, strength * (2 if classes == 2 else 1))
    test, _ = clouds(300, classes=classes, seed=1)
    model = fit_logistic(rows, labels, strength)
    logits = test @ model.weights[:-1] + model.weights[-1]
    found = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert found == pytest.approx(reference.predict_proba(test), abs=3e-3)
    assert np.mean(model.predict(test) == reference.predict(test)) > 0.99


def test_fit_weighs_classes_equally_and_keeps_their_names() -> None:
    rows, _ = clouds(80, d=3, classes=2, spread=3)
    labels = np.where(np.arange(80) < 70, 7, 2)
    found = fit_logistic(rows, labels, 1e-4).predict(rows)
    assert set(found) == {2, 7}
    assert np.array_equal(found, converged(rows, labels, 2e-4).predict(rows))


def test_fit_on_one_class_calls_everything_that() -> None:
    rows, _ = clouds(10)
    assert set(fit_logistic(rows, np.full(10, 4), 1.0).predict(rows)) == {4}


def test_fit_works_where_gradients_are_switched_off() -> None:
    rows, labels = clouds()
    outside = fit_logistic(rows, labels, 0.1).weights
    with torch.no_grad():
        assert np.array_equal(fit_logistic(rows, labels, 0.1).weights, outside)


@pytest.mark.parametrize(("n", "d"), [(30, 200), (60, 12), (40, 40)])
def test_probe_is_the_unrotated_fit(n: int, d: int) -> None:
    """Wider than there are rows, narrower and square: the rotation changes nothing."""
    train, labels = clouds(n, d, spread=3)
    test, _ = clouds(200, d, spread=3, seed=1)
    probe = linear_probe(train, labels, test)
    scaler = StandardScaler().fit(train)
    reference = converged(scaler.transform(train), labels, probe.C)
    ranked = np.sort(reference.predict_proba(scaler.transform(test)), axis=1)
    margin = ranked[:, -1] - ranked[:, -2]
    decided = margin > np.median(margin) / 10
    assert decided.mean() > 0.8
    expected = reference.predict(scaler.transform(test))
    assert np.array_equal(probe.predictions[decided], expected[decided])


@pytest.mark.parametrize("shape", [(30, 80), (80, 30), (30, 30)])
def test_rotation_keeps_every_product_of_rows(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).normal(size=shape)
    turned, rotation = rotate(rows)
    assert turned.shape == (shape[0], min(shape))
    assert turned == pytest.approx(rows @ rotation, abs=1e-4)
    assert turned @ turned.T == pytest.approx(rows @ rows.T, abs=1e-3)
    assert rotation.T @ rotation == pytest.approx(np.eye(min(shape)), abs=1e-5)


def test_chosen_strength_has_the_best_sum_over_the_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = clouds(90, spread=3)
    totals = dict.fromkeys(PROBE_CHOICES, 0.0)
    score = scoring._fold_score

    def noted(*arguments: Any) -> float:
        value = score(*arguments)
        totals[arguments[-1]] += value
        return value

    monkeypatch.setattr(scoring, "_fold_score", noted)
    strength = linear_probe(rows, labels, rows).C
    tried = {c: total for c, total in totals.items() if total}
    assert strength == min(c for c in tried if tried[c] == max(tried.values()))


@pytest.mark.parametrize(
    ("by_strength", "tried", "chosen"),
    [
        ((0.5, 0.6, 0.7, 0.8, 0.9), 5, 1.0),
        ((0.5, 0.4, 0.3, 0.9, 0.9), 3, 1e-4),
        ((0.5, 0.4, 0.6, 0.4, 0.3), 5, 1e-2),
        ((0.5, 0.6, 0.5, 0.6, 0.9), 4, 1e-3),
    ],
)
def test_climb_ends_after_two_strengths_that_are_no_better(
    by_strength: tuple[float, ...], tried: int, chosen: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, labels = clouds()
    seen = []

    def score(*arguments: Any) -> float:
        seen.append(arguments[-1])
        return by_strength[PROBE_CHOICES.index(arguments[-1])]

    monkeypatch.setattr(scoring, "_fold_score", score)
    assert scoring._choose_strength(rows, labels, 0) == chosen
    assert list(dict.fromkeys(seen)) == list(PROBE_CHOICES[:tried])


def test_a_class_with_one_row_leaves_nothing_to_choose_on() -> None:
    rows, labels = clouds()
    labels[labels == 2] = 1
    labels[0] = 2
    probe = linear_probe(rows, labels, rows)
    assert probe.C == 1e-2
    assert probe.predictions[0] == 2


def test_probe_does_not_look_at_test_rows() -> None:
    train, labels = clouds(spread=3)
    test, _ = clouds(40, spread=3, seed=1)
    alone = [linear_probe(train, labels, row[None]) for row in test[:5]]
    among_wild = linear_probe(train, labels, np.concatenate([test[:5], 1e4 * test]))
    assert [int(p.predictions[0]) for p in alone] == among_wild.predictions[:5].tolist()
    assert {p.C for p in alone} == {among_wild.C}


def test_knn_does_not_look_at_other_test_rows() -> None:
    train, labels = clouds()
    test, _ = clouds(40, seed=1)
    together = knn_predict(train, labels, test, k=5)
    assert [int(knn_predict(train, labels, row[None], k=5)[0]) for row in test] == list(together)


def test_probe_is_the_same_on_a_second_call() -> None:
    train, labels = clouds(spread=3)
    one, other = (linear_probe(train, labels, train, seed=3) for _ in range(2))
    assert one.C == other.C
    assert np.array_equal(one.predictions, other.predictions)


def test_features_that_do_not_vary_are_survived() -> None:
    rows, labels = clouds()
    rows[:] = 2
    assert len(linear_probe(rows, labels, rows).predictions) == 60
    assert few_shot(rows, labels, rows, labels, shots=2).mean == pytest.approx(1 / 3)


def test_no_warning_is_needed_or_touched() -> None:
    """Filters of warnings belong to the whole process: no other thread may see them change."""
    rows, labels = clouds(spread=6)
    before = list(warnings.filters)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            linear_probe(rows, labels, rows)
            few_shot(rows, labels, rows, labels, shots=1)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert list(warnings.filters) == before
        time.sleep(1e-4)  # or this loop would hold the interpreter nearly all the time
    assert not failed


# Few-shot


def test_few_shot_is_the_same_on_a_second_call_and_another_with_another_seed() -> None:
    (train, labels), (test, truth) = clouds(spread=2), clouds(80, spread=2, seed=1)
    results = [few_shot(train, labels, test, truth, shots=3, seed=s) for s in (0, 0, 1)]
    assert results[0] == results[1] != results[2]
    assert results[0].draws == 10


def test_shots_are_drawn_from_each_class_and_a_small_class_gives_all() -> None:
    labels = np.array([0] * 20 + [1] * 3 + [5] * 9)
    generator = np.random.default_rng(0)
    draws = [scoring._draw_shots(labels, 5, generator) for _ in range(20)]
    for rows in draws:
        assert len(set(rows)) == len(rows)
        assert np.bincount(labels[rows]).tolist() == [5, 3, 0, 0, 0, 5]
    assert len({tuple(sorted(rows)) for rows in draws}) > 10


def test_few_shot_learns_from_training_rows_only() -> None:
    """Test labels that contradict the training rows cannot be met by one who never saw them."""
    train, labels = clouds(spread=0.05)
    turned = (labels + 1) % 3
    assert few_shot(train, labels, train, labels, shots=5).mean == 1
    assert few_shot(train, labels, train, turned, shots=5).mean == 0


def test_few_shot_does_not_depend_on_the_other_test_rows() -> None:
    (train, labels), (test, truth) = clouds(spread=2), clouds(60, spread=2, seed=1)
    far = np.concatenate([test, 1e3 * test[::-1]])
    parts = [
        few_shot(train, labels, rows, names, shots=2)
        for rows, names in (
            (test, truth),
            (far[60:], truth[::-1]),
            (far, np.r_[truth, truth[::-1]]),
        )
    ]
    assert parts[2].mean == pytest.approx((parts[0].mean + parts[1].mean) / 2)


def test_more_shots_help() -> None:
    (train, labels), (test, truth) = clouds(300, spread=2), clouds(300, spread=2, seed=1)
    one, many = (few_shot(train, labels, test, truth, shots=s).mean for s in (1, 20))
    assert many > one + 0.05


def test_few_shot_is_scikit_learns_fit_on_the_drawn_rows() -> None:
    (train, labels), (test, truth) = clouds(d=30, spread=2), clouds(90, 30, spread=2, seed=1)
    unit, unit_test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    generator = np.random.default_rng([4, 3])
    expected = []
    for _ in range(10):
        rows = np.concatenate(
            [generator.permutation(np.flatnonzero(labels == c))[:3] for c in range(3)]
        )
        mean, spread = unit[rows].mean(axis=0), unit[rows].std(axis=0).mean()
        model = converged((unit[rows] - mean) / spread, labels[rows], scoring.FEW_SHOT_C)
        found = model.predict((unit_test - mean) / spread)
        expected.append(balanced_accuracy_score(truth, found))
    result = few_shot(train, labels, test, truth, shots=3, seed=4)
    assert result.mean == pytest.approx(np.mean(expected), abs=2e-3)


# Scores without labels


def test_rankme_of_known_spectra() -> None:
    assert rankme(np.eye(7)) == pytest.approx(7, abs=1e-4)
    assert rankme(np.outer(np.arange(1, 9), np.ones(5))) == pytest.approx(1, abs=1e-4)
    assert rankme(np.zeros((6, 4))) == pytest.approx(1, abs=1e-4)
    half = np.diag([0.5, 0.25, 0.25])
    assert rankme(half) == pytest.approx(math.exp(1.5 * math.log(2)), abs=1e-4)


def test_rankme_is_the_naive_formula_and_knows_no_scale() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 8)) * np.geomspace(1, 100, 8)
    sigma = np.sqrt(np.linalg.eigvalsh(rows.T @ rows))
    shares = [s / sum(sigma) + 1e-7 for s in sigma]
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert rankme(rows) == pytest.approx(expected, rel=1e-6)
    assert rankme(1000 * rows) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_without_labels_are_nan_where_features_are_not_finite(bad: float) -> None:
    rows, _ = clouds()
    rows[5, 1] = bad
    assert math.isnan(rankme(rows))
    assert math.isnan(mean_cosine(rows))


def test_retrieval_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    first = rng.normal(size=(40, 6)) + 5
    second = first + rng.normal(size=(40, 6)) - 9
    one, other = first - first.mean(axis=0), second - second.mean(axis=0)
    found = 0
    for i, row in enumerate(one):
        cosines = [row @ x / np.linalg.norm(row) / np.linalg.norm(x) for x in other]
        found += int(np.argmax(cosines)) == i
    assert 0 < found < 40
    assert retrieval(first, second) == pytest.approx(found / 40)
    first[3, 2] = np.inf
    assert math.isnan(retrieval(first, second))


def test_mean_cosine_is_the_double_loop() -> None:
    rows, _ = clouds(25)
    cosines = [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for i, a in enumerate(rows)
        for j, b in enumerate(rows)
        if i != j
    ]
    assert mean_cosine(rows) == pytest.approx(np.mean(cosines), abs=1e-6)


def test_mean_cosine_of_known_rows() -> None:
    assert mean_cosine(np.ones((5, 3))) == pytest.approx(1)
    assert mean_cosine(np.eye(4)) == pytest.approx(0, abs=1e-7)
    assert mean_cosine(np.array([[1.0, 0], [-2, 0]])) == pytest.approx(-1)
    assert mean_cosine(np.ones((1, 3))) == 1


# Scores with labels


@pytest.mark.parametrize("truth_has", [4, 3])
def test_scores_are_scikit_learns(truth_has: int) -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, truth_has, 50)
    found = np.where(generator.random(50) < 0.6, truth, generator.integers(0, truth_has, 50))
    result = scores(truth, found, 4)
    assert result["accuracy"] == pytest.approx(accuracy_score(truth, found))
    assert result["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, found))
    assert result["macro_f1"] == pytest.approx(f1_score(truth, found, average="macro"))
    assert np.array_equal(result["confusion"], confusion_matrix(truth, found, labels=range(4)))


def test_a_class_without_test_pictures_counts_nowhere_but_in_the_matrix() -> None:
    truth, found = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    result = scores(truth, found, 3)
    assert result["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)
    assert result["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert result["confusion"] == [[1, 0, 1], [0, 2, 0], [0, 0, 0]]


# Pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_features_are_block_means(dtype: Any, channels: int) -> None:
    top = np.iinfo(dtype).max
    pictures = np.random.default_rng(0).integers(0, top, (5, 12, 12, channels)).astype(dtype)
    blocks = pictures.reshape(5, 4, 3, 4, 3, channels).mean(axis=(2, 4)) / top
    expected = blocks.transpose(0, 3, 1, 2).reshape(5, -1)
    found = pixel_features(pictures, side=4)
    assert found.dtype == np.float32
    assert found == pytest.approx(expected, abs=1e-6)
    assert pixel_features(np.full_like(pictures, top), side=4) == pytest.approx(1)


def test_pixel_features_of_a_memory_map(tmp_path: Any) -> None:
    pictures = np.arange(3 * 30 * 30, dtype=np.uint8).reshape(3, 30, 30, 1)
    pictures.tofile(tmp_path / "pictures.bin")
    mapped = np.memmap(tmp_path / "pictures.bin", np.uint8, "r", shape=pictures.shape)
    assert np.array_equal(pixel_features(mapped), pixel_features(pictures))
    assert pixel_features(mapped).shape == (3, 24 * 24)


# All of them


def test_evaluation_of_features_is_json() -> None:
    (train, labels), (test, truth) = clouds(), clouds(45, seed=1)
    result = evaluate_features(train, labels, test, truth, classes=4, shots=(1, 5), draws=10)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == ["knn", "linear", "few_shot", "rankme", "width", "seconds"]
    assert result["width"] == 12
    assert list(result["few_shot"]) == ["1", "5"]
    assert result["few_shot"]["5"]["draws"] == 10
    assert result["knn"]["k"] == choose_k(train, labels)
    assert result["linear"]["C"] == linear_probe(train, labels, test).C
    for name in ("knn", "linear"):
        assert np.sum(result[name]["confusion"], axis=1).tolist() == [15, 15, 15, 0]


def test_evaluation_does_not_choose_on_test_rows() -> None:
    """Whatever the test rows are, the same k and C are chosen."""
    train, labels = clouds(spread=3)
    chosen = set()
    for seed in range(3):
        test, truth = clouds(30, spread=seed + 0.1, seed=seed + 5)
        result = evaluate_features(train, labels, test, truth, classes=3, shots=(1,))
        chosen.add((result["knn"]["k"], result["linear"]["C"]))
    assert len(chosen) == 1
