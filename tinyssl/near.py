"""Which pictures are near each other before anything is trained.

n = pictures, m = near pictures of each. Pictures are near by the cosine of principal components, in
part whitened, of features that are there already. Of more than 65,536 pictures that many, evenly
spaced, are there to be found.
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
    """The pictures whose descriptors, which need no training, are nearest to each picture's.

    Args:
        pictures: (n, h, w, c) uint8 or uint16.
        encoder: whose normalization and device are taken.
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
    """The pictures that the encoder, as it is, finds nearest to each; see `near_by_descriptors`.

    `levels` of the encoder's features are taken.
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
