"""Two augmented views of pictures as pictures again, to look at what features make of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyssl.augment import Augment
from tinyssl.loader import generator_for
from tinyssl.rows import spaced_rows
from tinyssl.watch import VIEWED


def two_views(
    pictures: NDArray[Any], augment: Augment, seed: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Two views of each of some pictures, the same ones at every look.

    Args:
        pictures: (n, h, w, c) uint8 or uint16; at most `VIEWED`, evenly spaced, are taken.
        augment: makes views of s pixels a side.
        seed: of the draws.

    Returns:
        Two arrays (m, s, s, c) of the pictures' dtype, in the same order.
    """
    sample = torch.from_numpy(pictures[spaced_rows(len(pictures), VIEWED)])
    most = np.iinfo(pictures.dtype).max

    def views(stream: int) -> NDArray[Any]:
        made = augment(sample, generator_for(seed, 0, stream))
        return (made * most).round().permute(0, 2, 3, 1).numpy().astype(pictures.dtype)

    return views(5), views(6)
