"""Hand-crafted descriptors of a picture: histograms of gradients, textures and colours.

A network trained on two thousand pictures captures little of edge directions by position and of
fine texture; these histograms do. They use basic operations only, which every converter supports,
and resize pictures to one size first, so that they are comparable.

b = batch, c = channels, h, w = height and width, n = pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d

from tinyssl.augment import resize_matrix
from tinyssl.colour import luma

_SIDE = 128  # pixels; gradients and half of the patterns are those of 64
_SHADES = 32  # pixels a side, for colours
_GRIDS = (8, 4)  # cells a side
_ANGLES = 9
_PATTERNS = 256
_HUES, _SATURATIONS, _VALUES, _LEVELS = 8, 4, 4, 16
# In standard deviations of pixels: weaker differences are noise, or without a direction.
_NOISE, _EVEN = 0.02, 0.1
_AROUND = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))


class Descriptors(nn.Module):
    """Oriented gradients in cells, colours, and binary patterns of two sizes; in this order.

    Args:
        channels: c; three are red, green and blue.

    Attributes:
        widths: of the parts.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        colours = _HUES * _SATURATIONS * _VALUES if channels == 3 else channels * _LEVELS
        shapes = [cells * cells * _ANGLES for cells in _GRIDS]
        self.widths = [*shapes, colours, _PATTERNS, _PATTERNS]

    def forward(self, pictures: Tensor, normalized: Tensor) -> Tensor:
        """Pictures (b, c, h, w) in [0, 1], and normalized, to (b, sum of widths) from 0 to 1.

        Float32 even under autocast, whose precision is as coarse as the noise threshold.
        """
        kind = pictures.device.type
        if torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self._described(pictures, normalized)
        return self._described(pictures, normalized)

    def _described(self, pictures: Tensor, normalized: Tensor) -> Tensor:
        coloured = pictures.shape[1] == 3
        whole = sized(_gray(normalized.float()), _SIDE)
        half = avg_pool2d(whole, 2)
        shades = sized((pictures if coloured else normalized).float(), _SHADES).flatten(2)
        directions = oriented(half)
        parts = [shapes(directions, cells) for cells in _GRIDS]
        parts.append(colours(shades) if coloured else levels(shades))
        parts += [patterns(whole, 2), patterns(half, 1)]
        return torch.cat(parts, dim=1)


def oriented(gray: Tensor) -> Tensor:
    """Gradient magnitude by direction: (b, 1, h, w) to (b, 9, h - 2, w - 2).

    As in histograms of oriented gradients (Dalal & Triggs, CVPR 2005, section 6.2), with unsigned
    directions. Each of the nine bins collects what lies within 20 degrees of it, decreasing with
    the distance: `|g| * max(|cos(a - a_k)| - cos 20, 0) / (1 - cos 20)`, which needs no arc
    tangent.
    """
    numbers = torch.arange(_ANGLES + 2, device=gray.device)
    right_and_down = (numbers - _ANGLES) * (math.pi / 2)  # the last two
    angles = torch.where(numbers < _ANGLES, numbers * (math.pi / _ANGLES), right_and_down)
    filters = torch.zeros(_ANGLES + 2, 1, 3, 3, device=gray.device)
    filters[:, 0, 1, 2], filters[:, 0, 2, 1] = angles.cos(), angles.sin()
    along = conv2d(gray, filters - filters.flip(2, 3))
    length = _length(along[:, _ANGLES:].square().sum(dim=1, keepdim=True))
    least = math.cos(math.pi / _ANGLES)
    return (_absolute(along[:, :_ANGLES]) - least * length).relu() / (1 - least)


def shapes(directions: Tensor, cells: int) -> Tensor:
    """Contrast-normalized means in cells: (b, 9, h, w) to (b, cells^2 * 9).

    A cell is divided by the root mean square over itself and its neighbours of the length of their
    nine values (Dalal & Triggs, section 6.4).
    """
    down, across = (_shares(length, cells, directions.device) for length in directions.shape[2:])
    means = down @ directions @ across.mT
    beside = _beside(cells, directions.device)
    strength = beside @ means.square().sum(dim=1, keepdim=True) @ beside.mT
    return (means / (strength + _EVEN**2).sqrt()).clamp(0, 1).flatten(1)


def patterns(gray: Tensor, step: int) -> Tensor:
    """Square roots of the shares of the 256 local binary patterns: (b, 1, h, w) to (b, 256).

    Ojala et al., "Multiresolution gray-scale and rotation invariant texture classification with
    local binary patterns" (PAMI 2002), section 2: which of a pixel's eight neighbours are at least
    as bright. A neighbour that is darker by less than the noise counts in part, so that rounding
    changes little. The shares of 256 patterns are computed as one product of the 16 patterns of the
    first four neighbours and the 16 of the last four.

    Args:
        gray: in standard deviations.
        step: 2 takes every second pixel of every second line.
    """
    filters = torch.zeros(8, 1, 3, 3, device=gray.device)
    filters[:, 0, 1, 1] = -1
    for number, (y, x) in enumerate(_AROUND):
        filters[number, 0, y, x] = 1
    bright = (conv2d(gray, filters / _NOISE, stride=step) + 1).clamp(0, 1).flatten(2)
    sides = torch.stack([1 - bright, bright], dim=2)  # b, 8, 2, n
    pairs = (sides[:, ::2, :, None] * sides[:, 1::2, None]).flatten(2, 3)  # b, 4, 4, n
    fours = (pairs[:, ::2, :, None] * pairs[:, 1::2, None]).flatten(2, 3)  # b, 2, 16, n
    first, last = fours.unbind(dim=1)
    return _roots(first @ last.mT / bright.shape[2])


def colours(pixels: Tensor) -> Tensor:
    """Square roots of the shares of hues, saturations and values: (b, 3, n) to (b, 128).

    Saturation and value as in HSV. The hue is the direction in the plane of equal brightness, with
    red at 0 and green at a third of a turn. It counts for the bins within 45 degrees, decreasing
    with the distance; a pixel without hue counts for all bins equally. Saturations and values are
    shared linearly by the two nearest bins.
    """
    red, green, blue = pixels.unbind(dim=1)
    high = torch.maximum(torch.maximum(red, green), blue)
    least = red - (red - green).relu()
    chroma = high - (least - (least - blue).relu())
    across, up = red - (green + blue) / 2, (green - blue) * (math.sqrt(3) / 2)
    angles = torch.arange(_HUES, device=pixels.device).view(1, -1, 1) * (2 * math.pi / _HUES)
    along = across[:, None] * angles.cos() + up[:, None] * angles.sin()
    length = _length(across * across + up * up)[:, None]
    hues = (along - math.cos(2 * math.pi / _HUES) * length).relu() + 1e-4
    hues = hues / hues.sum(dim=1, keepdim=True)
    rest = _outer(_binned(chroma / (high + 1e-3), _SATURATIONS), _binned(high, _VALUES))
    return _roots(hues @ rest.mT / pixels.shape[2])


def levels(pixels: Tensor) -> Tensor:
    """Square roots of the shares of 16 levels in each channel: (b, c, n) to (b, 16 c).

    Normalized pixels, from 2.5 standard deviations below the mean to 2.5 above it.
    """
    shares = [_binned(one, _LEVELS).mean(dim=2) for one in (pixels / 5 + 0.5).clamp(0, 1).unbind(1)]
    return _roots(torch.stack(shares, dim=1))


def _gray(pictures: Tensor) -> Tensor:
    """The luma of three channels, the mean of others: (b, 1, h, w)."""
    return luma(pictures) if pictures.shape[1] == 3 else pictures.mean(dim=1, keepdim=True)


def sized(pictures: Tensor, side: int) -> Tensor:
    """Pictures (b, c, h, w) resized to `side` pixels, by the filter that makes views."""
    for length in pictures.shape[2:]:
        if not isinstance(length, int) or length != side:  # in a graph of any size it is no int
            start = torch.zeros(1, device=pictures.device)
            pictures = resize_matrix(length, side, start, start + length)[0] @ pictures
        pictures = pictures.mT
    return pictures


def _absolute(values: Tensor) -> Tensor:
    """Without Abs, which the CoreML provider of onnxruntime lacks, as Min, Equal and Floor."""
    return torch.maximum(values, values * -1)


def _length(squares: Tensor) -> Tensor:
    """The square root, without its infinite gradient at 0."""
    return squares.clamp(min=1e-20).sqrt()


def _roots(shares: Tensor) -> Tensor:
    return (shares.flatten(1) + 1e-7).sqrt()


def _binned(values: Tensor, count: int) -> Tensor:
    """Soft assignment of values in [0, 1] to bins: (b, n) to (b, count, n)."""
    bins = torch.arange(count, device=values.device).view(1, -1, 1)
    return (1 - _absolute(values[:, None] * (count - 1) - bins)).relu()


def _outer(first: Tensor, second: Tensor) -> Tensor:
    """(b, i, n) and (b, j, n) to (b, i * j, n)."""
    return (first[:, :, None] * second[:, None]).flatten(1, 2)


def _shares(length: int, cells: int, device: torch.device) -> Tensor:
    """Overlap of each of `length` pixels of a line with each cell: (cells, length)."""
    edges = torch.arange(length + 1, device=device) * (cells / length)
    numbers = torch.arange(cells, device=device)[:, None]
    inside = (edges - numbers).clamp(0, 1)
    return inside.diff(dim=1)


def _beside(cells: int, device: torch.device) -> Tensor:
    """Averages a cell with the ones before and after it: (cells, cells)."""
    numbers = torch.arange(cells, device=device)
    near = ((numbers[:, None] - numbers).abs() <= 1).float()
    return near / near.sum(dim=1, keepdim=True)
