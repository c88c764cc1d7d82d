"""Which pictures are near each other before anything is trained: by their descriptors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyssl.describing import DescriptorFeatures
from tinyssl.encoder import LOOKED_AT, Encoder
from tinyssl.neighbours import nearest, unit_rows
from tinyssl.rows import spaced_rows

_AMONG = 1 << 16  # pictures to choose from: all pairs of a million would take hours of a CPU


def near_pictures(pictures: NDArray[Any], encoder: Encoder, count: int) -> Tensor:
    """The pictures whose descriptors are nearest to each picture's.

    By the cosine of the principal components of `descriptors.Descriptors`, which need no training.
    Of more than 65,536 pictures that many, evenly spaced, are there to be found.

    Args:
        pictures: (n, h, w, c) uint8 or uint16.
        encoder: whose normalization and device are taken.
        count: m, below n.

    Returns:
        (n, m) int64 numbers of other pictures, nearest first.
    """
    shown = pictures[spaced_rows(len(pictures), LOOKED_AT)]
    mean, std = encoder.mean.tolist(), encoder.std.tolist()
    describe = DescriptorFeatures(shown, mean, std, encoder.mean.device)
    rows = unit_rows(describe(pictures))
    among = spaced_rows(len(pictures), _AMONG)
    own = np.full(len(pictures), -1)
    own[among] = np.arange(len(among))
    numbers, _ = nearest(rows, rows[among], count, without=own)
    return torch.from_numpy(among[numbers])
