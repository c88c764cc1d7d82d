"""Monitoring during a run: label-free scores, and detection of collapse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.rows import spaced_rows
from tinyssl.scoring import knn_loo_score, mean_cosine, rankme, retrieval

WATCHED = 2000  # pictures that scores are computed on
VIEWED = 500  # pictures that two views are made of
_LOW_RANK = 3.0
_LOW_RANKME = 1.5  # lower than for embeddings, since features share a large mean
_HIGH_COSINE = 0.95


def label_free(features: NDArray[Any], bank: NDArray[Any]) -> dict[str, float]:
    """Scores that need no labels.

    Args:
        features: (m, width) features of unaugmented pictures.
        bank: (m, d) rows of the memory bank.

    Returns:
        `rankme` of the features; `bank_rank` and `bank_cosine`, effective rank and mean cosine
        of the embeddings.
    """
    return {
        "rankme": rankme(features),
        "bank_rank": rankme(bank),
        "bank_cosine": mean_cosine(bank),
    }


def watch(
    embed: Callable[[NDArray[np.int64]], NDArray[Any]],
    bank: Callable[[NDArray[np.int64]], NDArray[Any]],
    pictures: int,
    labels: NDArray[np.int64] | None,
    embed_views: Callable[[], tuple[NDArray[Any], NDArray[Any]]] | None = None,
) -> dict[str, float]:
    """Current scores, on at most `WATCHED` pictures.

    Args:
        embed: returns the features (m, width) of rows of pictures.
        bank: returns the rows (m, d) of the memory bank.
        pictures: n, their number.
        labels: (n,) classes, below 0 where unknown.
        embed_views: returns features of two views of each of some pictures.

    Returns:
        Scores of `label_free`; with views `retrieval`; with labels `knn`, the leave-one-out
        balanced accuracy on labeled pictures.
    """
    looked_at, known = spaced_rows(pictures, WATCHED), np.array([], np.int64)
    if labels is not None:
        labeled = np.flatnonzero(labels >= 0)
        known = labeled[spaced_rows(len(labeled), WATCHED)]
    rows = np.union1d(looked_at, known)
    features = embed(rows)
    values = label_free(features[np.searchsorted(rows, looked_at)], bank(looked_at))
    if embed_views is not None:
        values["retrieval"] = retrieval(*embed_views())
    if labels is not None:
        of_known = features[np.searchsorted(rows, known)]
        values["knn"] = knn_loo_score(of_known, labels[known], k=10)
    return values


def collapse_warning(values: dict[str, float]) -> str | None:
    """A warning that embeddings or features are collapsing; None if they are not.

    The bank can look healthy long after the features have collapsed, since the head amplifies the
    small differences that are left.
    """
    rank, cosine = values["bank_rank"], values["bank_cosine"]
    if values["rankme"] < _LOW_RANKME:
        return (
            f"the encoder's features are collapsing: effective rank {values['rankme']:.2f} "
            f"(healthy: well above {_LOW_RANKME}). Lower optim.base_lr and keep optim.clip_norm "
            "at 1 or less, or give more pictures: fewer than some hundred collapse easily; "
            "features of this run may be useless"
        )
    if rank >= _LOW_RANK and cosine <= _HIGH_COSINE:
        return None
    return (
        f"the embeddings are collapsing: effective rank {rank:.1f}, mean cosine {cosine:.2f} "
        "(healthy: well above 3, well below 0.95). Lower optim.base_lr, raise optim.batch_size or "
        "loss.temperature, or lower loss.distill_weight; features of this run may be useless"
    )
