"""Descriptors against naive versions of the same, pixel by pixel."""

import cmath
import colorsys
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tests.making import precision_of_convolutions
from tinyssl.describing import DescriptorFeatures
from tinyssl.descriptors import (
    Descriptors,
    colours,
    levels,
    oriented,
    patterns,
    shapes,
    sized,
)


def gray(seed: int, height: int, width: int) -> Tensor:
    """Deviations in steps far above the noise, so that no comparison is in doubt."""
    drawn = np.random.default_rng(seed).integers(0, 8, (2, 1, height, width))
    return torch.from_numpy(drawn).float() / 4


def test_gradients_go_to_the_directions_beside_theirs() -> None:
    pictures = gray(0, 7, 9)
    found = oriented(pictures)
    least = math.cos(math.radians(20))
    for y in range(5):
        for x in range(7):
            right = float(pictures[0, 0, y + 1, x + 2] - pictures[0, 0, y + 1, x])
            down = float(pictures[0, 0, y + 2, x + 1] - pictures[0, 0, y, x + 1])
            length, angle = math.hypot(right, down), math.atan2(down, right)
            for k in range(9):
                near = abs(math.cos(angle - k * math.pi / 9))
                expected = length * max(near - least, 0) / (1 - least)
                assert float(found[0, k, y, x]) == pytest.approx(expected, abs=1e-4)


def test_cells_are_means_over_the_strength_around_them() -> None:
    directions = torch.rand(2, 9, 12, 8, generator=torch.Generator().manual_seed(0))
    found = shapes(directions, 4).view(2, 9, 4, 4)
    means = directions.view(2, 9, 4, 3, 4, 2).mean((3, 5))
    for row in range(4):
        for column in range(4):
            near = means[:, :, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].square()
            strength = (near.sum(1).mean((1, 2)) + 0.1**2).sqrt()
            expected = (means[:, :, row, column] / strength[:, None]).clamp(max=1)
            torch.testing.assert_close(found[:, :, row, column], expected)


def test_cells_may_share_pixels() -> None:
    """Of 5 pixels in 2 cells the middle one counts half in each."""
    line = torch.arange(5.0).view(1, 1, 1, 5).expand(1, 9, 5, 5) + 1
    found = shapes(line, 2).view(9, 2, 2)[0, 0]
    means = torch.tensor([1 + 2 + 1.5, 1.5 + 4 + 5]) / 2.5
    strength = (9 * means.square().mean() + 0.1**2).sqrt()
    torch.testing.assert_close(found, means / strength)


@pytest.mark.parametrize("step", [1, 2])
def test_patterns_are_counted(step: int) -> None:
    pictures = gray(1, 12, 9)
    found = patterns(pictures, step)
    around = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    for picture, shares in zip(pictures[:, 0], found.square(), strict=True):
        counts = np.zeros(256)
        for y in range(1, 11, step):
            for x in range(1, 8, step):
                bits = [bool(picture[y + i, x + j] >= picture[y, x]) for i, j in around]
                first, second = (
                    8 * one[0] + 4 * one[1] + 2 * one[2] + one[3] for one in (bits[:4], bits[4:])
                )
                counts[16 * first + second] += 1
        np.testing.assert_allclose(shares.numpy(), counts / counts.sum() + 1e-7, atol=1e-6)


def test_patterns_hardly_change_by_rounding() -> None:
    even = torch.zeros(1, 1, 16, 16)
    shaken = even + 1e-6 * torch.randn(even.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(patterns(even, 1), patterns(shaken, 1), atol=1e-2, rtol=0)
    assert float(patterns(even, 1).square().max()) == pytest.approx(1, abs=1e-4)


def test_colours_are_shares_of_hue_saturation_and_value() -> None:
    pixels = torch.rand(1, 3, 40, generator=torch.Generator().manual_seed(2))
    pixels[0, :, 0] = 0.5  # without a hue
    counts = np.zeros((8, 4, 4))
    for red, green, blue in pixels[0].T.tolist():
        _, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
        saturation *= value / (value + 1e-3)
        plane = sum(
            x * cmath.rect(1, k * 2 * math.pi / 3) for k, x in enumerate((red, green, blue))
        )
        near = [math.cos(cmath.phase(plane) - k * math.pi / 4) for k in range(8)]
        hues = [abs(plane) * max(one - math.sqrt(0.5), 0) + 1e-4 for one in near]
        for i in range(8):
            for j in range(4):
                for k in range(4):
                    rest = max(1 - abs(3 * saturation - j), 0) * max(1 - abs(3 * value - k), 0)
                    counts[i, j, k] += hues[i] / sum(hues) * rest / 40
    np.testing.assert_allclose(colours(pixels)[0].square(), counts.ravel(), atol=1e-5)
    assert float(colours(pixels).square().sum()) == pytest.approx(1, abs=1e-3)


def test_levels_are_shares_of_each_channel() -> None:
    pixels = 2 * torch.randn(2, 2, 50, generator=torch.Generator().manual_seed(3))
    found = levels(pixels).square().view(2, 2, 16)
    at = (pixels / 5 + 0.5).clamp(0, 1) * 15
    for number in range(16):
        expected = (1 - (at - number).abs()).clamp(min=0).mean(2)
        torch.testing.assert_close(found[:, :, number], expected + 1e-7)


@pytest.mark.parametrize(("height", "width"), [(5, 128), (128, 40), (128, 128), (333, 200)])
def test_pictures_are_resized_as_torch_does(height: int, width: int) -> None:
    pictures = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(7))
    expected = interpolate(pictures, (128, 128), mode="bilinear", antialias=True)
    torch.testing.assert_close(sized(pictures, 128), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [8, 33, 128, 200])
@pytest.mark.parametrize("fill", [None, 0.0, 1.0])
def test_every_picture_has_them(channels: int, size: int, fill: float | None) -> None:
    pictures = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(4))
    if fill is not None:
        pictures[:] = fill
    descriptors = Descriptors(channels)
    found = descriptors(pictures, (pictures - 0.5) / 0.25)
    assert found.shape == (2, sum(descriptors.widths))
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all())
    assert 0 <= float(found.min()) <= float(found.max()) <= 1.001


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_even_and_gray_pictures_have_gradients(channels: int) -> None:
    pictures = torch.rand(3, channels, 40, 40, generator=torch.Generator().manual_seed(4))
    pictures[0], pictures[1] = 0.5, pictures[1, :1]
    pictures.requires_grad_()
    Descriptors(channels)(pictures, (pictures - 0.5) / 0.25).sum().backward()
    assert pictures.grad is not None
    assert bool(torch.isfinite(pictures.grad).all())
    assert bool(pictures.grad[1:].flatten(1).any(dim=1).all())


def test_autocast_changes_nothing() -> None:
    pictures = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    descriptors = Descriptors(3)
    expected = descriptors(pictures, (pictures - 0.5) / 0.25)
    with torch.autocast("cpu", torch.bfloat16):
        found = descriptors(pictures, (pictures - 0.5) / 0.25)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_cells_tell_a_picture_from_its_mirror_image_and_levels_do_not() -> None:
    pictures = torch.rand(1, 1, 128, 128, generator=torch.Generator().manual_seed(5))
    pictures[:, :, 64:] *= 0.2
    both = torch.cat([pictures, pictures.flip(2)])
    parts = Descriptors(1)(both, both / 0.3).split(Descriptors(1).widths, dim=1)
    apart = [float((part[0] - part[1]).norm() / part.norm()) for part in parts]
    assert min(apart[:2]) > 3 * apart[2]  # upside down: other cells, the same levels


def test_features_of_their_own_are_standardized_components() -> None:
    shown = np.random.default_rng(6).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    features = DescriptorFeatures(shown, [0.5] * 3, [0.25] * 3)
    found = features(shown)
    assert found.shape == (20, 19)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found[:5], features(shown[:5]), atol=1e-4)
    seen: list[str] = []
    features.descriptors.register_forward_hook(lambda *_: seen.append(precision_of_convolutions()))
    features(shown)
    assert set(seen) == {"ieee"}
