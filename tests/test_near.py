"""Near pictures are those that look alike, and never the picture itself."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tinyssl import near as module
from tinyssl.encoder import Encoder
from tinyssl.near import near_by_descriptors, near_by_start


def tiny_encoder(channels: int = 3) -> Encoder:
    """Its features are the means of the four quarters of a picture."""
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    backbone.num_features = 4 * channels  # type: ignore[assignment]
    mean, std = torch.full((channels,), 0.5), torch.full((channels,), 0.25)
    return Encoder(backbone, name="tiny", stem="standard", mean=mean, std=std)


def families(dtype: str = "uint8", channels: int = 3) -> NDArray[Any]:
    """(15, 32, 32, c): numbers i, i + 5 and i + 10 are the same picture but for some noise."""
    drawn = np.random.default_rng(0)
    blocks = drawn.integers(40, 216, (5, 8, 8, channels)).repeat(4, axis=1).repeat(4, axis=2)
    noisy = np.tile(blocks, (3, 1, 1, 1)) + drawn.integers(-8, 9, (15, 32, 32, channels))
    return (noisy * (257 if dtype == "uint16" else 1)).astype(dtype)


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 3), ("uint8", 1), ("uint16", 3)])
def test_near_by_descriptors_look_alike(dtype: str, channels: int) -> None:
    near = near_by_descriptors(families(dtype, channels), tiny_encoder(channels), 2)
    assert near.dtype == torch.int64
    expected = [{(i + 5) % 15, (i + 10) % 15} for i in range(15)]
    assert [set(row) for row in near.tolist()] == expected


def test_near_by_start_are_those_of_like_features() -> None:
    encoder = tiny_encoder().train()
    near = near_by_start(families(), encoder, 2, 1)
    expected = [{(i + 5) % 15, (i + 10) % 15} for i in range(15)]
    assert [set(row) for row in near.tolist()] == expected
    assert encoder.training


def test_of_too_many_some_can_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AMONG", 8)
    near = near_by_descriptors(families(), tiny_encoder(), 1)
    assert set(near.flatten().tolist()) <= {0, 2, 4, 6, 8, 10, 12, 14}
    assert all(number != own for own, (number,) in enumerate(near.tolist()))
    assert [near[i].item() for i in (0, 5, 3)] == [10, 0, 8]
