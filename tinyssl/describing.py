"""Descriptors alone as features: a baseline for trained networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tinyssl.components import pca_projection, standardization
from tinyssl.descriptors import Descriptors
from tinyssl.device import full_float32

COMPONENTS, WHITENING = 256, 0.25  # as in the recipes
_PICTURES_AT_ONCE = 16  # twice as fast as 64 on a CPU: intermediate results stay in its cache
_PROJECTED_AT_ONCE = 512  # descriptors are several times as wide as their components


class DescriptorFeatures:
    """`Descriptors`, standardized and projected like the features of the recipes.

    Args:
        shown: (n, h, w, c) uint8 or uint16 to fit the standardization and the projection on.
        mean: (c,) of pictures in [0, 1].
        std: (c,) of the same.
        device: to compute on.
    """

    def __init__(
        self, shown: NDArray[Any], mean: Sequence[float], std: Sequence[float],
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.descriptors = Descriptors(len(mean))
        self.device = torch.device(device)
        self.mean, self.std = (
            torch.tensor(values, dtype=torch.float32, device=self.device).view(-1, 1, 1)
            for values in (mean, std)
        )
        described = self._describe(shown)
        self.centre, self.scale = standardization(described, self.descriptors.widths)
        self.projection = pca_projection(self._standardized(described), COMPONENTS, WHITENING)

    def __call__(
        self, pictures: NDArray[Any], progress: Callable[[int], None] | None = None
    ) -> NDArray[np.float32]:
        """(n, h, w, c) to (n, k) float32, k at most 256.

        `progress` is called with the number of newly finished pictures.
        """
        features = np.empty((len(pictures), self.projection.shape[1]), np.float32)
        for start in range(0, len(pictures), _PROJECTED_AT_ONCE):
            some = slice(start, start + _PROJECTED_AT_ONCE)
            described = self._describe(pictures[some])
            features[some] = self._standardized(described) @ self.projection
            if progress is not None:
                progress(len(described))
        return features

    def _standardized(self, described: NDArray[np.float32]) -> NDArray[np.float32]:
        return ((described - self.centre) * self.scale).astype(np.float32)

    @torch.inference_mode()
    def _describe(self, pictures: NDArray[Any]) -> NDArray[np.float32]:
        most = float(np.iinfo(pictures.dtype).max)
        rows = []
        with full_float32():
            for start in range(0, len(pictures), _PICTURES_AT_ONCE):
                chunk = np.asarray(pictures[start : start + _PICTURES_AT_ONCE], np.float32)
                unit = torch.from_numpy(chunk).to(self.device).permute(0, 3, 1, 2) / most
                rows.append(self.descriptors(unit, (unit - self.mean) / self.std).cpu().numpy())
        return np.concatenate(rows)
