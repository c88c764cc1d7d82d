"""Near pictures of each picture, found before training.

n = pictures, m = near pictures of each. Nearness is the cosine of partly whitened principal
components of features that need no training here. Of more than 65,536 pictures only that many,
evenly spaced, are candidates.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyssl.console import progress
from tinyssl.describing import COMPONENTS, WHITENING, DescriptorFeatures
from tinyssl.encoder import LOOKED_AT, Encoder, embed_pictures, widen
from tinyssl.neighbours import nearest, unit_rows
from tinyssl.rows import spaced_rows

_AMONG = 1 << 16  # all pairs of a million would take hours of a CPU


def near_by_descriptors(pictures: NDArray[Any], encoder: Encoder, count: int) -> Tensor:
    """The pictures with the nearest descriptors, which need no training, for each picture.

    Args:
        pictures: (n, h, w, c) uint8 or uint16.
        encoder: gives the normalization and the device.
        count: m, below n.

    Returns:
        (n, m) int64 numbers of other pictures, nearest first.
    """
    shown = pictures[spaced_rows(len(pictures), LOOKED_AT)]
    mean, std = encoder.mean.tolist(), encoder.std.tolist()
    features_of = DescriptorFeatures(shown, mean, std, encoder.mean.device)
    with progress("describing", len(pictures)) as advance:
        features = features_of(pictures, advance)
    return _near(features, count)


def near_by_start(
    pictures: NDArray[Any], encoder: Encoder, count: int, levels: int | Literal["all"]
) -> Tensor:
    """The nearest pictures of each by the encoder's current features; see `near_by_descriptors`.

    Uses `levels` of the encoder's features.
    """
    wide = widen(encoder, levels, pictures, COMPONENTS, WHITENING)
    with progress("embedding", len(pictures)) as advance:
        features = embed_pictures(wide, pictures, device=encoder.mean.device, progress=advance)
    return _near(features, count)


def _near(features: NDArray[np.float32], count: int) -> Tensor:
    rows = unit_rows(features)
    among = spaced_rows(len(rows), _AMONG)
    own = np.full(len(rows), -1)
    own[among] = np.arange(len(among))
    with progress("near pictures", len(rows)) as advance:
        numbers, _ = nearest(rows, rows[among], count, without=own, progress=advance)
    return torch.from_numpy(among[numbers])
