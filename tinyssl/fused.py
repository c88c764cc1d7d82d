"""The augmentation's crop and colour as Triton kernels, for GPUs: three passes instead of sixty.

They compute the same as `augment.crop_by_matrices` and the operations of `colour`, which other
devices, and GPUs without Triton, use. b = batch, c = channels, s = view size.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512
_RED, _GREEN, _BLUE = (tl.constexpr(weight) for weight in (0.2989, 0.587, 0.114))  # as in colour


def crop(
    pictures: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor,
    hflip: Tensor, vflip: Tensor, size: int,
) -> Tensor:  # fmt: skip
    """Crops, resizes and flips: `augment.crop_by_matrices`.

    Args:
        pictures: (b, H, W, c) uint8 or uint16.
        top: (b,) of the boxes, as left, height and width.
        left: see top.
        height: see top.
        width: see top.
        hflip: (b,) bool, as vflip.
        vflip: see hflip.
        size: s.

    Returns:
        (b, c, s, s) float32 in [0, 1].
    """
    b, h, w, c = pictures.shape
    views = torch.empty((b, c, size, size), device=pictures.device)
    boxes = torch.stack([top, left, height, width, hflip.float(), vflip.float()])
    _crop[(b, triton.cdiv(size * size, _BLOCK), 1 if c == 3 else c)](
        pictures.contiguous(), boxes, views, 1 / torch.iinfo(pictures.dtype).max, b, h, w, size,
        _taps(h, size), _taps(w, size), C=c, BLOCK=_BLOCK,
    )  # fmt: skip
    return views


def colour(
    views: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor,
    gray: Tensor, dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Brightness and contrast and, of three channels, saturation, hue and grayscale.

    Args:
        views: (b, c, s, s) float32 in [0, 1].
        brightness: (b,) factor, as contrast and saturation.
        contrast: see brightness.
        saturation: see brightness.
        hue: (b,) shift in turns.
        gray: (b,) bool.
        dtype: of the result.

    Returns:
        (b, c, s, s) floats in [0, 1], channels last.
    """
    b, c, s, _ = views.shape
    views = views.contiguous()
    pixels, blocks = s * s, triton.cdiv(s * s, _BLOCK)
    factors = torch.stack([brightness, contrast, saturation, hue, gray.float()])
    partial = torch.empty((b, blocks), device=views.device)
    _partial_sums[(b, blocks)](views, factors, partial, pixels, blocks, C=c, BLOCK=_BLOCK)
    means = partial.sum(dim=1) / pixels  # in a fixed order, so that runs repeat
    made = torch.empty_like(views, dtype=dtype, memory_format=torch.channels_last)
    kernel: Any = _colour if c == 3 else _contrast
    kernel[(b, blocks, 1 if c == 3 else c)](views, factors, means, made, b, pixels, c, BLOCK=_BLOCK)
    return made


def _taps(source: int, size: int) -> int:
    """The most source pixels of a line that contribute to one resized pixel."""
    return int(2 * max(1.0, source / size)) + 1


@triton.jit
def _along(step, start, length, size):
    """Centre, support and first of the source pixels that a resized pixel draws from."""
    scale = length / size
    support = tl.maximum(scale, 1.0)
    centre = start + (step.to(tl.float32) + 0.5) * scale
    return centre, support, tl.floor(centre - support + 0.5).to(tl.int32)


@triton.jit
def _weight(pixel, centre, support, start, length):
    """The triangle filter within the box."""
    middle = pixel.to(tl.float32) + 0.5
    weight = tl.maximum(1.0 - tl.abs(middle - centre) / support, 0.0)
    return tl.where((middle > start) & (middle < start + length), weight, 0.0)


@triton.jit
def _crop(
    pictures, boxes, views, unit, b, h, w, size, taps_y, taps_x,
    C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Three channels are computed at once, since they share weights; others one by one."""
    picture, channel = tl.program_id(0), tl.program_id(2)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    top, left = tl.load(boxes + picture), tl.load(boxes + b + picture)
    height, width = tl.load(boxes + 2 * b + picture), tl.load(boxes + 3 * b + picture)
    hflip, vflip = tl.load(boxes + 4 * b + picture), tl.load(boxes + 5 * b + picture)
    row, column = at // size, at % size
    row = tl.where(vflip > 0, size - 1 - row, row)
    column = tl.where(hflip > 0, size - 1 - column, column)
    centre_y, support_y, first_y = _along(row, top, height, size)
    centre_x, support_x, first_x = _along(column, left, width, size)
    total = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    third = tl.zeros((BLOCK,), tl.float32)
    sum_y = tl.zeros((BLOCK,), tl.float32)
    sum_x = tl.zeros((BLOCK,), tl.float32)
    for tap in range(taps_x):
        sum_x += _weight(first_x + tap, centre_x, support_x, left, width)
    source = pictures + picture.to(tl.int64) * h * w * C + channel
    for tap_y in range(taps_y):
        y = first_y + tap_y
        weight_y = _weight(y, centre_y, support_y, top, height)
        sum_y += weight_y
        for tap_x in range(taps_x):
            x = first_x + tap_x
            weight = weight_y * _weight(x, centre_x, support_x, left, width)
            known = (weight > 0) & (y >= 0) & (y < h) & (x >= 0) & (x < w)
            pixel = source + (y * w + x) * C
            total += weight * tl.load(pixel, mask=known, other=0).to(tl.float32)
            if C == 3:
                second += weight * tl.load(pixel + 1, mask=known, other=0).to(tl.float32)
                third += weight * tl.load(pixel + 2, mask=known, other=0).to(tl.float32)
    scale = unit / (sum_y * sum_x)
    plane = views + (picture.to(tl.int64) * C + channel) * size * size + at
    inside = at < size * size
    tl.store(plane, total * scale, mask=inside)
    if C == 3:
        tl.store(plane + size * size, second * scale, mask=inside)
        tl.store(plane + 2 * size * size, third * scale, mask=inside)


@triton.jit
def _clip(values):
    return tl.minimum(tl.maximum(values, 0.0), 1.0)


@triton.jit
def _partial_sums(views, factors, partial, pixels, blocks, C: tl.constexpr, BLOCK: tl.constexpr):
    """Sums of the luma, or of the mean of the channels, of a block of brightened pixels."""
    picture, block = tl.program_id(0), tl.program_id(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    known = at < pixels
    brightness = tl.load(factors + picture)
    planes = views + picture.to(tl.int64) * C * pixels + at
    total = tl.zeros((BLOCK,), tl.float32)
    for channel in tl.static_range(C):
        values = _clip(tl.load(planes + channel * pixels, mask=known, other=0.0) * brightness)
        if C == 3:
            share = _RED if channel == 0 else (_GREEN if channel == 1 else _BLUE)
            total += values * share
        else:
            total += values / C
    tl.store(partial + picture * blocks + block, tl.sum(total, axis=0))


@triton.jit
def _contrast(views, factors, means, made, b, pixels, c, BLOCK: tl.constexpr):
    picture, channel = tl.program_id(0), tl.program_id(2)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = at < pixels
    brightness, contrast = tl.load(factors + picture), tl.load(factors + b + picture)
    mean = tl.load(means + picture)
    first = picture.to(tl.int64) * c * pixels
    values = tl.load(views + first + channel * pixels + at, mask=known, other=0.0)
    values = _clip(_clip(values * brightness) * contrast + (1 - contrast) * mean)
    tl.store(made + first + at * c + channel, values, mask=known)


@triton.jit
def _colour(views, factors, means, made, b, pixels, c, BLOCK: tl.constexpr):
    picture = tl.program_id(0)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = at < pixels
    brightness, contrast = tl.load(factors + picture), tl.load(factors + b + picture)
    saturation, hue = tl.load(factors + 2 * b + picture), tl.load(factors + 3 * b + picture)
    gray = tl.load(factors + 4 * b + picture)
    first = picture.to(tl.int64) * c * pixels
    planes = views + first + at
    red = _clip(tl.load(planes, mask=known, other=0.0) * brightness)
    green = _clip(tl.load(planes + pixels, mask=known, other=0.0) * brightness)
    blue = _clip(tl.load(planes + 2 * pixels, mask=known, other=0.0) * brightness)
    rest = (1 - contrast) * tl.load(means + picture)
    red, green = _clip(red * contrast + rest), _clip(green * contrast + rest)
    blue = _clip(blue * contrast + rest)
    rest = (1 - saturation) * (red * _RED + green * _GREEN + blue * _BLUE)
    red, green = _clip(red * saturation + rest), _clip(green * saturation + rest)
    blue = _clip(blue * saturation + rest)
    high, low = tl.maximum(tl.maximum(red, green), blue), tl.minimum(tl.minimum(red, green), blue)
    chroma = high - low
    beyond_red = tl.where(green == high, blue - red, red - green)
    sector = tl.where(red == high, green - blue, beyond_red) / tl.maximum(chroma, 1e-12)
    sector += tl.where(red == high, 0.0, tl.where(green == high, 2.0, 4.0)) + 6 * hue
    sector -= 6 * tl.floor(sector / 6)
    red = low + chroma * _clip(tl.abs(sector - 3) - 1)
    green = low + chroma * _clip(2 - tl.abs(sector - 2))
    blue = low + chroma * _clip(2 - tl.abs(sector - 4))
    luma = red * _RED + green * _GREEN + blue * _BLUE
    pixel = made + first + at * c
    tl.store(pixel, red + gray * (luma - red), mask=known)
    tl.store(pixel + 1, green + gray * (luma - green), mask=known)
    tl.store(pixel + 2, blue + gray * (luma - blue), mask=known)
