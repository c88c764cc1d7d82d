"""Faster training on CPUs of convolutions on small maps.

Views of 64 pixels leave maps of 2 and 4 pixels a side in a network's last stages. There oneDNN is
slow: it computes the gradient of depthwise weights fast only for kernels of 3 on maps at least as
large (others take a tenth of a small network's training step with AVX-512, and nearly half of it
with AVX2), and reorders the weights of full convolutions in each pass (a third of a ResNet-18's).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tinyssl.taps import TapConvolution

_LINEAR_PIXELS = 16  # of a map, up to which a pointwise convolution is slower than F.linear
_CHANNELS_FOR_PIXEL = 16  # of the output, from which taps are faster


def quicken_small_maps(network: nn.Module) -> None:
    """Makes convolutions on small maps train faster on a CPU, in place.

    Weights and their names do not change, nor do outputs and gradients except for rounding. Does
    nothing on a GPU or where torch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in network.modules():
        if type(module) is nn.Conv2d and module.weight.device.type == "cpu":
            module.__class__ = SmallMapConv2d


class SmallMapConv2d(nn.Conv2d):
    """A convolution with faster equivalents for small maps."""

    def _conv_forward(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        trained = torch.is_grad_enabled() and self._is_centred()
        by_own_rules = trained and bias is None and not torch.is_autocast_enabled("cpu")
        made: Tensor
        if trained and self._is_linear(maps):
            made = F.linear(maps.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        elif by_own_rules and self._is_small_depthwise(maps):
            made = _SmallDepthwise.apply(maps, weight, self.stride)
        elif by_own_rules and self._is_small_full(maps):
            made = TapConvolution.apply(maps, weight, self.stride)
        else:
            made = super()._conv_forward(maps, weight, bias)
        return made

    def _is_centred(self) -> bool:
        """Whether the kernel is square and odd, and zeros around the maps keep it on each pixel."""
        height, width = self.kernel_size
        return (
            height == width
            and height % 2 == 1
            and self.padding == (height // 2, height // 2)
            and self.padding_mode == "zeros"
            and self.dilation == (1, 1)
        )

    def _is_linear(self, maps: Tensor) -> bool:
        """Whether a matrix product gives the same, and sooner as it needs no reordered weights."""
        pixels = maps.shape[2:].numel()
        pointwise = self.kernel_size == (1, 1) and (self.stride == (1, 1) or pixels == 1)
        return pointwise and self.groups == 1 and pixels <= _LINEAR_PIXELS

    def _is_small_depthwise(self, maps: Tensor) -> bool:
        return (
            self.kernel_size in ((3, 3), (5, 5))
            and max(maps.shape[2:]) < self.kernel_size[0]
            and self.groups == self.in_channels == self.out_channels
        )

    def _is_small_full(self, maps: Tensor) -> bool:
        """Whether there are more weights to reorder than pixels to copy for each tap."""
        height, width = (
            (side - 1) // step + 1 for side, step in zip(maps.shape[2:], self.stride, strict=True)
        )
        channels = math.sqrt(self.in_channels * self.out_channels)
        return (
            self.kernel_size != (1, 1)
            and self.groups == 1
            and channels >= _CHANNELS_FOR_PIXEL * height * width
        )


class _SmallDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(maps, weight)
        ctx.stride = stride
        return F.conv2d(maps, weight, None, stride, weight.shape[2] // 2, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        maps, weight = ctx.saved_tensors
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            padding = [weight.shape[2] // 2] * 2
            of_maps = _gradients(grad, maps, weight, ctx.stride, padding, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(grad, maps, weight, ctx.stride)
        return of_maps, of_weight, None


def _weight_gradient(grad: Tensor, maps: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
    """The gradient of kernels, assembled from blocks of 3 x 3 taps on padded maps.

    Taps that lie outside of small maps see padding only, so their gradient is 0.
    """
    kernel = weight.shape[2]
    starts = [0] if kernel == 3 else [1] if max(maps.shape[2:]) <= 2 else [0, 2]
    first = starts[0]
    padded = F.pad(maps, [kernel // 2 - first] * 4)
    height, width = (
        step * (size - 1) + 3 for step, size in zip(stride, grad.shape[2:], strict=True)
    )
    taps = weight[:, :, :3, :3]
    made = torch.zeros_like(weight)
    for top in starts:
        for left in starts:
            seen = padded[:, :, top - first :, left - first :][:, :, :height, :width]
            seen = seen.contiguous(memory_format=torch.channels_last)
            found = _gradients(grad, seen, taps, stride, [0, 0], [False, True, False])[1]
            made[:, :, top : top + 3, left : left + 3] = found
    return made


def _gradients(
    grad: Tensor, maps: Tensor, weight: Tensor, stride: Any, padding: list[int], wanted: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of maps, weights and bias, as far as wanted."""
    return torch.ops.aten.convolution_backward(  # type: ignore[no-any-return]
        grad, maps, weight, None, stride, padding, [1, 1], False, [0, 0], len(weight), wanted
    )
