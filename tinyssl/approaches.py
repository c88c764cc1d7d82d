"""Three ways from few labels to a classifier, each fitted on any part of the labeled pictures.

n = labeled pictures, m = unlabeled ones, d = feature width, k = classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import diags_array
from torch import Tensor, nn

from tinyssl.augment import Augment
from tinyssl.console import Advance
from tinyssl.encoder import Encoder, embed_pictures
from tinyssl.errors import JobError
from tinyssl.folds import Fold, held_out
from tinyssl.labeled import Labeled
from tinyssl.loader import generator_for, rows_of
from tinyssl.logistic import balanced_weights, fit_logistic, rotate
from tinyssl.probing import Plane, Scaling, fit_plane, scaling_of, unscaled
from tinyssl.small_maps import quicken_small_maps
from tinyssl.spreading import Spread, neighbour_graph, spread_labels
from tinyssl.tuning import Course, tune

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """An encoder and the classifier on its features; frozen encoders are the run's own."""

    encoder: Encoder
    plane: Plane


class Approach(Protocol):
    """A way to fit a classifier.

    Attributes:
        cost: progress steps of a fit on a fold, and of the final fit.
    """

    cost: tuple[int, int]

    def fit(self, inside: Rows, advance: Advance, *, final: bool) -> Fitted:
        """Fits on the rows `inside` of the labeled pictures, cheaper unless it is the final one."""

    def logits(self, fitted: Fitted, outside: Rows) -> NDArray[np.float32]:
        """(rows, k) of other labeled pictures."""


class Linear:
    """A logistic fit on the features of the frozen encoder."""

    cost = (1, 1)

    def __init__(
        self, encoder: Encoder, features: NDArray[np.float32], labels: Rows, strength: float
    ) -> None:
        self.encoder, self.features = encoder, features
        self.labels, self.strength = labels, strength

    def fit(self, inside: Rows, advance: Advance, *, final: bool) -> Fitted:
        """As `Approach.fit`; the final fit costs no more."""
        plane = fit_plane(self.features[inside], self.labels[inside], self.strength)
        advance(1)
        return Fitted(self.encoder, plane)

    def logits(self, fitted: Fitted, outside: Rows) -> NDArray[np.float32]:
        """As `Approach.logits`."""
        return fitted.plane.logits(self.features[outside])


class Semi(Linear):
    """The same fit on the unlabeled pictures too, labeled by spreading over a graph.

    Pictures that are held out of a fit take no part in its graph.

    Args:
        encoder: frozen.
        features: (n, d) of the labeled pictures.
        labels: (n,).
        unlabeled: (m, d) of the others, none of them a copy of a labeled one.
        strength: C of the fit.
        neighbours: number of neighbours of each picture in the graph.
        alpha: in (0, 1); the larger, the further labels spread.
        weight: total weight of the spread labels over that of the given ones.
    """

    def __init__(
        self,
        encoder: Encoder,
        features: NDArray[np.float32],
        labels: Rows,
        unlabeled: NDArray[np.float32],
        *,
        strength: float,
        neighbours: int,
        alpha: float,
        weight: float,
    ) -> None:
        super().__init__(encoder, features, labels, strength)
        self.alpha, self.weight = alpha, weight
        together = np.concatenate([features, unlabeled])
        self.graph = neighbour_graph(together, neighbours)
        self.scaling = scaling_of(together)
        self.rows, self.rotation = rotate(self.scaling(together))

    def fit(self, inside: Rows, advance: Advance, *, final: bool) -> Fitted:
        """As `Approach.fit`; the final fit costs no more."""
        given = np.full(len(self.rows), -1, np.int64)
        given[inside] = self.labels[inside]
        taken = np.ones(len(self.rows), bool)
        taken[: len(self.labels)] = given[: len(self.labels)] >= 0
        mask = diags_array(taken.astype(np.float64))
        spread = spread_labels(
            (mask @ self.graph @ mask).tocsr(),
            given,
            alpha=self.alpha,
            classes=int(self.labels.max()) + 1,
        )
        weights = joint_weights(spread, given, self.weight) * taken
        used = weights > 0
        fitted = fit_logistic(self.rows[used], spread.labels[used], self.strength, weights[used])
        turned = np.vstack([self.rotation @ fitted.weights[:-1], fitted.weights[-1:]])
        advance(1)
        return Fitted(self.encoder, unscaled(turned, self.scaling))


def joint_weights(spread: Spread, given: Rows, share: float) -> NDArray[np.float64]:
    """Weights of given and spread labels in one fit, classes balanced within both kinds.

    Args:
        spread: labels and confidences of all pictures.
        given: (n + m,) labels from 0, -1 where there is none.
        share: sum of the spread labels' weights over the sum of the given ones'.

    Returns:
        (n + m,); the given labels' sum to their number.
    """
    weights = np.zeros(len(given))
    known = given >= 0
    weights[known] = balanced_weights(given[known])
    confidence = np.where(known, 0.0, spread.weights)
    totals = np.bincount(spread.labels, confidence)
    reached = totals > 0
    if reached.any():
        each = share * known.sum() / reached.sum()
        scale = np.where(reached, each / np.maximum(totals, 1e-300), 0.0)
        weights += confidence * scale[spread.labels]
    return weights


class ScaledHead(nn.Module):
    """A linear classifier on scaled features, so that one learning rate suits any encoder."""

    mean: Tensor
    spread: Tensor

    def __init__(self, plane: Plane, scaling: Scaling) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(scaling.mean))
        self.register_buffer("spread", torch.from_numpy(scaling.spread))
        weight = plane.weight * scaling.spread
        bias = plane.bias + plane.weight @ scaling.mean
        self.weight = nn.Parameter(torch.from_numpy(weight))
        self.bias = nn.Parameter(torch.from_numpy(bias))

    def forward(self, features: Tensor) -> Tensor:
        """(b, d) features to (b, k) logits."""
        scaled = (features - self.mean) / self.spread
        return scaled @ self.weight.T + self.bias

    def plane(self) -> Plane:
        """The classifier on features as they are."""
        weights = torch.cat([self.weight.T, self.bias[None]]).detach().cpu().numpy()
        return unscaled(weights, Scaling(self.mean.cpu().numpy(), self.spread.cpu().numpy()))


class Network:
    """The logistic fit first, then training of classifier and encoder together.

    The classifier comes first because gradients of a random one would distort the features
    (Kumar et al., arXiv:2202.10054).

    Args:
        linear: the logistic fit on the same pictures.
        labeled: the pictures.
        augment: makes the views.
        course: of the training.
        fold_views: augmented views of the fit on a fold.
        views: of the final fit.
        device: where to train.
    """

    def __init__(
        self,
        linear: Linear,
        labeled: Labeled,
        augment: Augment,
        course: Course,
        *,
        fold_views: int,
        views: int,
        device: torch.device,
    ) -> None:
        self.linear, self.labeled, self.augment = linear, labeled, augment
        self.course, self.device = course, device
        self.cost = (course.steps(fold_views), course.steps(views))

    def fit(self, inside: Rows, advance: Advance, *, final: bool) -> Fitted:
        """As `Approach.fit`."""
        start = self.linear.fit(inside, lambda _: None, final=final)
        head = ScaledHead(start.plane, scaling_of(self.linear.features[inside])).to(self.device)
        encoder = copy.deepcopy(start.encoder).to(self.device)
        encoder = encoder.to(memory_format=torch.channels_last)
        quicken_small_maps(encoder)
        pictures = torch.from_numpy(self.labeled.array[inside]).to(self.device)
        labels = self.labeled.labels[inside]
        tune(
            encoder,
            encoder.backbone,
            head,
            self._views(pictures),
            labels,
            balanced_weights(labels),
            self.course,
            self.cost[1 if final else 0],
            lambda _: advance(1),
        )
        _refuse_diverged(encoder, head, self.labeled.array[inside[:1]], self.device)
        return Fitted(encoder, head.plane())

    def logits(self, fitted: Fitted, outside: Rows) -> NDArray[np.float32]:
        """As `Approach.logits`."""
        array = self.labeled.array[outside]
        return fitted.plane.logits(embed_pictures(fitted.encoder, array, device=self.device))

    def _views(self, pictures: Tensor) -> Callable[[Rows, int], Tensor]:
        def views(chosen: Rows, step: int) -> Tensor:
            generator = generator_for(self.course.seed, step, stream=1)
            raw = rows_of(pictures, torch.from_numpy(chosen).to(self.device))
            return self.augment(raw, generator).contiguous(memory_format=torch.channels_last)

        return views


def _refuse_diverged(
    encoder: Encoder, head: ScaledHead, picture: NDArray[Any], device: torch.device
) -> None:
    """The loss is checked before each step, so the last step could diverge unnoticed."""
    features = torch.from_numpy(embed_pictures(encoder, picture, device=device, finite=False)).to(
        device
    )
    with torch.inference_mode():
        finite = bool(torch.isfinite(head(features)).all())
    if not finite:
        raise JobError("the network has diverged: its logits are not finite; lower network.lr")


def held_out_logits(
    approach: Approach, folds: Sequence[Sequence[Fold]], classes: int, advance: Advance
) -> NDArray[np.float32]:
    """Logits of every picture that is held out, by a fit that did not see it.

    Returns:
        (repeats, pictures, k), in the order of `held_out`.
    """
    rows = held_out(folds[0])
    found = np.zeros((len(folds), len(rows), classes), np.float32)
    for repeat, parts in enumerate(folds):
        for inside, outside in parts:
            fitted = approach.fit(inside, advance, final=False)
            found[repeat, np.searchsorted(rows, outside)] = approach.logits(fitted, outside)
    return found
