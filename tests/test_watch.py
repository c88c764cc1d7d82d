"""What is watched: label-free scores, and the guard that speaks up when embeddings collapse."""

from typing import Any

import numpy as np
import pytest
import torch

from tinyssl.augment import Augment
from tinyssl.loader import generator_for
from tinyssl.rows import spaced_rows
from tinyssl.views import two_views
from tinyssl.watch import VIEWED, collapse_warning, label_free, watch

PLAIN = Augment(12, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), hflip=0, jitter=0, grayscale=0)


def unit_rows(n: int, d: int, common: float = 0.0) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(n, d)) + common
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_healthy_embeddings_draw_no_warning() -> None:
    rows = unit_rows(200, 16)
    assert collapse_warning(label_free(rows, rows)) is None


@pytest.mark.parametrize(
    "bank",
    [unit_rows(200, 16, common=50.0), np.outer(np.sign(unit_rows(200, 1)), unit_rows(1, 16))],
    ids=["all the same", "one line"],
)
def test_collapse_is_told_with_its_figures(bank: np.ndarray) -> None:
    values = label_free(unit_rows(200, 16), bank)
    told = collapse_warning(values)
    assert told is not None
    assert f"effective rank {values['bank_rank']:.1f}" in told
    assert "optim.base_lr" in told


def test_collapsed_features_are_told_while_the_bank_looks_healthy() -> None:
    same = np.ones((200, 32)) + 1e-3 * unit_rows(200, 32)
    values = label_free(same, unit_rows(200, 16))
    told = collapse_warning(values)
    assert told is not None
    assert f"features are collapsing: effective rank {values['rankme']:.2f}" in told
    assert "optim.clip_norm" in told


def looked(features: np.ndarray, labels: np.ndarray | None, views: Any = None) -> dict[str, float]:
    def some(rows: np.ndarray) -> np.ndarray:
        return features[rows]

    return watch(some, some, len(features), labels, views)


def test_knn_is_over_the_labeled_rows_only() -> None:
    features = np.concatenate([unit_rows(20, 4, 9.0), unit_rows(20, 4, -9.0)]).astype(np.float32)
    labels = np.repeat([0, 1], 20)
    assert looked(features, labels)["knn"] == 1
    labels[:20:2] = -1
    assert looked(features, labels)["knn"] == 1
    assert "knn" not in looked(features, None)


def test_all_labeled_rows_are_looked_at_however_many_others_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tinyssl.watch.WATCHED", 20)
    features = np.concatenate([unit_rows(500, 4, 9.0), unit_rows(500, 4, -9.0)]).astype(np.float32)
    labels = np.full(1000, -1)
    labels[[3, 5, 7]], labels[[903, 905, 907]] = 0, 1  # none is among 20 that are evenly spaced
    found, without = looked(features, labels), looked(features, None)
    assert found.pop("knn") == 1
    assert found == without


def test_retrieval_is_looked_at_where_there_are_views() -> None:
    features = unit_rows(20, 4)
    assert looked(features, None, lambda: (features, features))["retrieval"] == 1
    assert "retrieval" not in looked(features, None)


def test_few_pictures_are_augmented_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given, apply = [], Augment.apply

    def counted(self: Augment, pictures: torch.Tensor, *rest: Any) -> torch.Tensor:
        given.append(len(pictures))
        return apply(self, pictures, *rest)

    monkeypatch.setattr(Augment, "apply", counted)
    two_views(np.zeros((65, 12, 12, 1), np.uint8), PLAIN, seed=0)
    assert sum(given) == 2 * 65
    assert 1 < min(given) <= max(given) <= 64


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_two_views_are_pictures_again_and_the_same_at_every_look(dtype: type) -> None:
    most = np.iinfo(dtype).max
    pictures = np.random.default_rng(0).integers(0, most, (VIEWED + 40, 12, 12, 3), dtype)
    augment = Augment(8, crop_scale=(0.2, 1.0))
    first, second = two_views(pictures, augment, seed=3)
    assert first.shape == second.shape == (VIEWED, 8, 8, 3)
    assert first.dtype == second.dtype == dtype
    assert first.max() > most // 2
    assert not np.array_equal(first, second)
    again = two_views(pictures, augment, seed=3)
    assert np.array_equal([first, second], again)
    sample = torch.from_numpy(pictures[spaced_rows(len(pictures), VIEWED)])
    at_once = augment(sample, generator_for(3, 0, 5)).mul(most).round().permute(0, 2, 3, 1)
    assert np.array_equal(first, at_once.numpy().astype(dtype))
    same, other = two_views(pictures, PLAIN, seed=3)
    assert np.array_equal(same, other)
    assert np.array_equal(same, pictures[spaced_rows(len(pictures), VIEWED)])
