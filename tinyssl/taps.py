"""Full convolutions as matrix products, one for each tap of the kernel.

On maps of few pixels oneDNN spends most of its time on putting the weights into the order of its
kernels, in each pass anew: on 512 maps of 2 pixels a side it reaches a fifth of a core's speed. A
matrix product reads a tap's weights where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class TapConvolution(torch.autograd.Function):
    """`apply(maps, weight, stride)`: torch's `conv2d` with half a kernel of zeros around the maps.

    Maps (n, c, height, width), weights (o, c, k, k) with an odd k, best in channels-last order, and
    the strides of both axes give maps (n, o, ...) in channels-last order. Inside, maps are
    (height, width, n, c), so that the pixels that a tap sees make the rows of a matrix.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        size, (width, _, kernel, _) = maps.shape[2:], weight.shape
        seen, ctx.size, ctx.stride = _pixels_first(maps), size, stride
        ctx.save_for_backward(seen, weight)
        sides = [(side - 1) // step + 1 for side, step in zip(size, stride, strict=True)]
        made = maps.new_zeros(*sides, len(maps), width)
        for tap in _taps(kernel, size, stride):
            made[tap.out] += seen[tap.into] @ weight[tap.weight].t()
        return _maps_first(made)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        seen, weight = ctx.saved_tensors
        grad = _pixels_first(grad)
        of_maps = torch.zeros_like(seen) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for tap in _taps(weight.shape[2], ctx.size, ctx.stride):
            rows = grad[tap.out]
            if of_maps is not None:
                of_maps[tap.into] += rows @ weight[tap.weight]
            if of_weight is not None:
                inputs = seen[tap.into].flatten(0, 2)
                torch.mm(rows.flatten(0, 2).t(), inputs, out=of_weight[tap.weight])
        return None if of_maps is None else _maps_first(of_maps), of_weight, None


class _Tap(NamedTuple):
    """Indices of a tap's weights, of the pixels it sees, and of those it contributes to."""

    weight: tuple[slice, slice, int, int]
    into: tuple[slice, slice]
    out: tuple[slice, slice]


def _taps(kernel: int, size: torch.Size, stride: tuple[int, int]) -> Iterator[_Tap]:
    """The taps that see a pixel of maps of this height and width, not padding alone."""
    down, across = (_spans(kernel, *axis) for axis in zip(size, stride, strict=True))
    every = slice(None)
    for (i, rows, rows_out), (j, columns, columns_out) in product(down, across):
        yield _Tap((every, every, i, j), (rows, columns), (rows_out, columns_out))


def _spans(kernel: int, side: int, step: int) -> list[tuple[int, slice, slice]]:
    """Taps along an axis, each with the pixels that it sees and those it contributes to."""
    found = []
    for tap in range(kernel):
        shift = tap - kernel // 2  # from a pixel of the output, times the step, to what is seen
        first = max(0, -(shift // step))
        last = (side - 1 - max(0, shift)) // step
        if first <= last:
            into = slice(first * step + shift, last * step + shift + 1, step)
            found.append((tap, into, slice(first, last + 1)))
    return found


def _pixels_first(maps: Tensor) -> Tensor:
    return maps.permute(2, 3, 0, 1).contiguous()


def _maps_first(pixels: Tensor) -> Tensor:
    return pixels.permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
