"""Two augmented views of pictures, as pictures, to compare their features."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyssl.augment import Augment
from tinyssl.loader import generator_for
from tinyssl.rows import spaced_rows
from tinyssl.watch import VIEWED

_AT_ONCE = 32  # pictures; all 500 at 512 pixels would take 7 GB


def two_views(
    pictures: NDArray[Any], augment: Augment, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two views of each of some pictures, always the same ones.

    Args:
        pictures: (n, h, w, c) uint8 or uint16; at most `VIEWED`, evenly spaced, are taken.
        augment: makes views of s pixels a side.
        seed: of the draws.

    Returns:
        Two arrays (m, s, s, c) of the pictures' dtype, in the same order.
    """
    sample = torch.from_numpy(pictures[spaced_rows(len(pictures), VIEWED)])
    most = np.iinfo(pictures.dtype).max

    count = len(sample)
    parts = -(-count // _AT_ONCE)
    bounds = [count * part // parts for part in range(parts + 1)]

    def views(stream: int) -> NDArray[Any]:
        made = []
        for own in map(slice, bounds, bounds[1:]):
            part = augment(sample[own], generator_for(seed, 0, stream), own, count)
            whole = part.mul_(most).round_().permute(0, 2, 3, 1)
            made.append(whole.numpy().astype(pictures.dtype))
        return np.concatenate(made)

    return views(5), views(6)
