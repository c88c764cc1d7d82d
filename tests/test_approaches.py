"""The three ways from labels to a classifier, on pictures and features that are easy to tell."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.making import LikeGpu
from tinyssl.approaches import (
    Linear,
    Network,
    ScaledHead,
    Semi,
    held_out_logits,
    joint_weights,
)
from tinyssl.augment import Augment
from tinyssl.encoder import create_encoder, embed_pictures
from tinyssl.folds import stratified_folds
from tinyssl.labeled import Labeled
from tinyssl.probing import fit_plane, scaling_of
from tinyssl.spreading import Spread
from tinyssl.tuning import Course

ENCODER = create_encoder("mobilenetv3-small", seed=0)


def clouds(n: int, seed: int = 0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(9).normal(size=(3, 16))
    labels = np.arange(n) % 3
    noise = np.random.default_rng(seed).normal(size=(n, 16))
    return (centres[labels] + spread * noise).astype(np.float32), labels


def nothing(_: int) -> None:
    pass


def semi(features: np.ndarray, labels: np.ndarray, others: np.ndarray) -> Semi:
    return Semi(
        ENCODER, features, labels, others, strength=0.1, neighbours=5, alpha=0.9, weight=1.0
    )


def test_unlabeled_pictures_help_where_classes_are_clouds() -> None:
    test, truth = clouds(600, seed=2)
    others, _ = clouds(300, seed=3)
    gains = []
    for seed in range(5):
        features, labels = clouds(3, seed=10 + seed)
        every = np.arange(3)
        accuracy = [
            np.mean(approach.fit(every, nothing, final=True).plane.logits(test).argmax(1) == truth)
            for approach in (
                semi(features, labels, others),
                Linear(ENCODER, features, labels, 0.1),
            )
        ]
        gains.append(accuracy[0] - accuracy[1])
    assert np.mean(gains) > 0.05


def test_held_out_pictures_take_no_part_in_the_graph() -> None:
    """Moving a held-out picture may change the common scaling's columns, but no spread label."""
    features, labels = clouds(12)
    approach = semi(features, labels, clouds(60, seed=1)[0])
    inside = np.arange(9)
    whole = approach.fit(inside, nothing, final=False).plane.weight
    approach.graph = approach.graph.tolil()
    approach.graph[9:12] = 5.0  # absurd links of the held-out rows
    approach.graph[:, 9:12] = 5.0
    approach.graph = approach.graph.tocsr()
    assert np.array_equal(approach.fit(inside, nothing, final=False).plane.weight, whole)


def test_joint_weights_balance_both_kinds() -> None:
    given = np.array([0, 0, 1, -1, -1, -1, -1])
    spread = Spread(np.array([0, 0, 1, 0, 1, 1, 1]), np.array([1, 1, 1, 0.5, 0.2, 0.4, 0.0]))
    weights = joint_weights(spread, given, share=0.5)
    assert weights[:3] == pytest.approx([0.75, 0.75, 1.5])
    assert weights[3:] == pytest.approx([0.75, 0.25, 0.5, 0.0])
    assert weights[3:].sum() == pytest.approx(0.5 * 3)


def test_joint_weights_without_confidence_are_those_of_the_given() -> None:
    given = np.array([0, 1, -1])
    weights = joint_weights(Spread(np.array([0, 1, 1]), np.array([1.0, 1, 0])), given, share=1.0)
    assert weights.tolist() == [1, 1, 0]


def test_scaled_head_is_the_plane_there_and_back() -> None:
    features, labels = clouds(30)
    plane = fit_plane(features, labels, 0.1)
    head = ScaledHead(plane, scaling_of(features * 3 + 1))
    with torch.no_grad():
        logits = head(torch.from_numpy(features)).numpy()
    assert logits == pytest.approx(plane.logits(features), abs=1e-4)
    assert head.plane().weight == pytest.approx(plane.weight, abs=1e-5)
    assert head.plane().bias == pytest.approx(plane.bias, abs=1e-4)


def test_held_out_logits_are_those_of_fits_without_the_picture() -> None:
    features, labels = clouds(18, spread=2)
    folds = stratified_folds(labels, 3, 2, seed=0)
    found = held_out_logits(Linear(ENCODER, features, labels, 0.1), folds, 3, nothing)
    assert found.shape == (2, 18, 3)
    inside, outside = folds[1][2]
    alone = fit_plane(features[inside], labels[inside], 0.1)
    assert found[1, outside] == pytest.approx(alone.logits(features[outside]), abs=1e-5)


def test_held_out_logits_leave_out_what_is_never_held_out() -> None:
    features, labels = clouds(18, spread=2)
    labels[3] = 3
    folds = stratified_folds(labels, 3, 1, seed=0)
    found = held_out_logits(Linear(ENCODER, features, labels, 0.1), folds, 4, nothing)
    assert found.shape == (1, 17, 4)
    inside, outside = folds[0][2]
    alone = fit_plane(features[inside], labels[inside], 0.1).logits(features[outside])
    assert found[0, outside - (outside > 3)] == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_network_starts_at_the_linear_fit_and_leaves_the_run_encoder_alone(dtype: Any) -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(8) % 2
    array = generator.integers(0, 128, (8, 32, 32, 3), dtype=np.uint8)
    array[labels == 1] += 100
    array = array.astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    digests = [str(i) for i in range(8)]
    labeled = Labeled(array, digests, digests, labels, ["dark", "bright"])
    features = embed_pictures(ENCODER, array)
    linear = Linear(ENCODER, features, labels, 0.1)
    course = Course(
        batch_size=4, lr=1e-12, head_lr=1.0, layer_decay=1.0, weight_decay=0.0, smoothing=0.0,
        average=0.0, frozen_batch_norm=True, seed=0,
    )  # fmt: skip
    before = {key: value.clone() for key, value in ENCODER.state_dict().items()}
    network = Network(
        linear, labeled, Augment(32), course, fold_views=4, views=4, device=torch.device("cpu")
    )
    with LikeGpu():
        fitted = network.fit(np.arange(8), nothing, final=True)
    start = linear.fit(np.arange(8), nothing, final=True)
    assert fitted.encoder is not ENCODER
    assert all(torch.equal(value, ENCODER.state_dict()[key]) for key, value in before.items())
    logits = network.logits(fitted, np.arange(8))
    assert logits == pytest.approx(start.plane.logits(features), abs=1e-3)
