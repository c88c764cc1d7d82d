"""Principal components against scikit-learn's, and what whoever compares features relies on."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances

from tinyssl.components import (
    equalizing_rotation,
    near_projection,
    pca_projection,
    standardization,
)


def features(n: int = 60, width: int = 24) -> np.ndarray:
    """Correlated, with mean 0."""
    generator = np.random.default_rng(0)
    made = generator.normal(size=(n, 8)) * 3.0 ** -np.arange(8) @ generator.normal(size=(8, width))
    made += 0.05 * generator.normal(size=(n, width))
    return (made - made.mean(axis=0)).astype(np.float32)


def test_without_whitening_distances_are_those_of_pca() -> None:
    given = features()
    found = pairwise_distances(given @ pca_projection(given, 6, 0.0))
    expected = pairwise_distances(PCA(6).fit_transform(given))
    np.testing.assert_allclose(found / found.max(), expected / expected.max(), atol=1e-5)


@pytest.mark.parametrize("n", [12, 24, 90])
def test_fewer_pictures_than_features_are_no_other_case(n: int) -> None:
    """Other pictures too land where PCA has them, whichever matrix is decomposed."""
    given = features(n, 40)
    kept = min(n - 1, 6)
    found = pairwise_distances(features(60, 40) @ pca_projection(given, kept, 0.0))
    expected = pairwise_distances(PCA(kept).fit(given).transform(features(60, 40)))
    np.testing.assert_allclose(found / found.max(), expected / expected.max(), atol=1e-4)


def test_copies_add_no_axes() -> None:
    given = np.repeat(features(4, 40), 5, axis=0)
    given -= given.mean(axis=0)
    found = pca_projection(given, 10, 0.5)
    assert found.shape == (40, 10)
    assert np.isfinite(found).all()
    assert np.linalg.matrix_rank(found, tol=1e-3) == 3


def test_all_components_without_whitening_are_a_rotation() -> None:
    given = features()
    found = given @ pca_projection(given, 24, 0.0)
    np.testing.assert_allclose(pairwise_distances(found), pairwise_distances(given), atol=1e-3)


def test_whole_whitening_weighs_components_alike() -> None:
    given = features()
    found = given @ pca_projection(given, 3, 0.5)
    variances = np.linalg.eigvalsh(np.cov(found.T))
    # The floor, a thousandth of the largest variance, takes a little from the smaller ones.
    assert variances.min() / variances.max() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("whitening", [0.0, 0.25, 0.5])
def test_a_component_is_divided_by_its_variance_to_the_power(whitening: float) -> None:
    given = features()
    before = np.linalg.eigvalsh(given.T.astype(np.float64) @ given / len(given))[::-1][:4]
    found = (given @ pca_projection(given, 4, whitening)).astype(np.float64)
    after = np.linalg.eigvalsh(found.T @ found / len(found))[::-1]
    expected = before / (before + before[0] / 1000) ** (2 * whitening)
    np.testing.assert_allclose(after / after[0], expected / expected[0], rtol=1e-3)
    assert after.sum() == pytest.approx(np.square(given).mean(axis=0).sum(), rel=1e-3)


def test_features_vary_alike() -> None:
    given = features(200, 64)
    deviations = (given @ pca_projection(given, 32, 0.25)).std(axis=0)
    np.testing.assert_allclose(deviations, deviations.mean(), rtol=1e-3)
    plain = PCA(32).fit_transform(given).std(axis=0)
    assert plain.max() > 30 * plain.min()


@pytest.mark.parametrize(
    "variances", [[1.0], [2, 2, 2], [9, 1, 0, 0], [5, 4, 3, 2, 1], [0, 0], [0.43251996] * 3]
)
def test_evening_is_a_rotation_to_equal_variances(variances: list[float]) -> None:
    turn = equalizing_rotation(np.array(variances, np.float64))
    np.testing.assert_allclose(turn.T @ turn, np.eye(len(variances)), atol=1e-12)
    after = np.diag(turn.T @ np.diag(variances) @ turn)
    np.testing.assert_allclose(after, np.mean(variances), atol=1e-12)


@pytest.mark.parametrize(("n", "width"), [(2, 1), (5, 4), (60, 24)])
def test_no_more_components_than_there_are(n: int, width: int) -> None:
    assert pca_projection(features()[:n], 256, 0.25).shape == (24, width)


def test_features_that_are_all_the_same_give_finite_ones() -> None:
    given = np.zeros((5, 24), np.float32)
    assert np.isfinite(pca_projection(given, 3, 0.5)).all()


def test_levels_count_as_much() -> None:
    given = features() * np.repeat([1, 50], 12).astype(np.float32) + 7
    centre, scale = standardization(given, [12, 12])
    first, second = np.split((given - centre) * scale, 2, axis=1)
    assert np.square(first).sum() == pytest.approx(np.square(second).sum(), rel=1e-3)


def test_near_pictures_differ_alike_along_whitened_axes() -> None:
    """Against a naive sum over each picture's 8 nearest among scikit-learn's components."""
    given = features(200, 24)
    found = PCA(6, svd_solver="full").fit_transform(given.astype(np.float64))
    cosines = pairwise_distances(found, metric="cosine") + 9 * np.eye(len(found))
    products = np.zeros((6, 6))
    for row, far in enumerate(cosines):
        for near in np.argsort(far)[:8]:
            products += np.outer(found[row] - found[near], found[row] - found[near])
    between, turn = np.linalg.eigh(products / (2 * 8 * len(found)))
    expected = found @ turn / np.sqrt(between + between.mean())
    expected *= np.sqrt(np.square(given).sum() / np.square(expected).sum())
    made = given @ near_projection(given, 6, 0.5)
    np.testing.assert_allclose(
        pairwise_distances(made), pairwise_distances(expected), rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(made.std(axis=0), made.std(axis=0).mean(), rtol=1e-3)


def test_near_whitening_weakens_what_changes_between_near_pictures() -> None:
    """Two groups that differ along one axis, within them pictures differ along another as much."""
    generator = np.random.default_rng(0)
    given = 0.05 * generator.normal(size=(200, 6)).astype(np.float32)
    given[:, 0] += np.repeat([-1, 1], 100)
    given[:, 1] += generator.normal(size=200)
    given -= given.mean(axis=0)

    def separation(made: np.ndarray) -> float:
        one, other = made[:100], made[100:]
        apart = np.square(one.mean(axis=0) - other.mean(axis=0)).sum()
        return float(apart / (one.var(axis=0).sum() + other.var(axis=0).sum()))

    near, plain = (f(given, 6, 0.5) for f in (near_projection, pca_projection))
    assert separation(given @ near) > 2 * separation(given @ plain)


@pytest.mark.parametrize("n", [1, 2, 3, 12])
def test_near_whitening_takes_few_pictures_and_copies(n: int) -> None:
    given = np.repeat(features(n, 40), 2, axis=0)[: max(1, 2 * n - 1)]
    given -= given.mean(axis=0)
    found = near_projection(given, 10, 0.5)
    assert found.shape == (40, max(1, min(10, len(given) - 1)))
    assert np.isfinite(found).all()
