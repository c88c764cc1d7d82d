"""Convolutions on small maps against torch's own: the same outputs and gradients, another way."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tinyssl.backbones import BACKBONES
from tinyssl.encoder import create_encoder
from tinyssl.small_maps import SmallMapConv2d, quicken_small_maps

CHANNELS = 8


def depthwise(kernel: int, stride: int, **options: Any) -> nn.Conv2d:
    given = {"padding": kernel // 2, "groups": CHANNELS, "bias": False, **options}
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, **given)


def quickened(network: nn.Module) -> nn.Module:
    made = copy.deepcopy(network)
    quicken_small_maps(made)
    return made


def gradients(network: nn.Module, maps: Tensor) -> list[Tensor]:
    """The output, the gradient of the maps and those of all weights, of one uneven sum."""
    maps = maps.detach().clone(memory_format=torch.channels_last).requires_grad_()
    out = network(maps)
    network.zero_grad()
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    assert maps.grad is not None
    return [out.detach(), maps.grad, *(p.grad for p in network.parameters() if p.grad is not None)]


def same(one: nn.Module, other: nn.Module, maps: Tensor) -> None:
    for a, b in zip(gradients(one, maps), gradients(other, maps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def way(network: nn.Module, maps: Tensor) -> str:
    return type(network(maps).grad_fn).__name__


SIZES = [*product(range(1, 7), range(1, 7))]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_depthwise_convolutions_are_torchs_at_every_size(kernel: int, stride: int) -> None:
    plain = depthwise(kernel, stride)
    for height, width in SIZES:
        maps = torch.randn(3, CHANNELS, height, width)
        same(plain, quickened(plain), maps)
        small = "SmallDepthwise" in way(quickened(plain), maps)
        assert small == (max(height, width) < kernel)


@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_convolutions_of_small_maps_are_matrix_products(bias: bool) -> None:
    plain = nn.Conv2d(CHANNELS, 5, 1, bias=bias)
    for height, width in SIZES:
        maps = torch.randn(3, CHANNELS, height, width)
        same(plain, quickened(plain), maps)
        small = "Convolution" not in way(quickened(plain), maps)
        assert small == (height * width <= 16)


def test_pointwise_convolutions_that_skip_pixels() -> None:
    plain = nn.Conv2d(512, 512, 1, stride=2, bias=False).double()
    for height, width in SIZES:
        maps = torch.randn(3, 512, height, width, dtype=torch.float64)
        same(plain, quickened(plain), maps)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3, (2, 1)])
def test_full_convolutions_are_torchs_at_every_size(kernel: int, stride: Any) -> None:
    """Float64: sums of a thousand channels differ by more than other roundings."""
    plain = nn.Conv2d(512, 128, kernel, stride, kernel // 2, bias=False).double()
    for height, width in SIZES:
        maps = torch.randn(3, 512, height, width, dtype=torch.float64)
        same(plain, quickened(plain), maps)
        by_taps = "TapConvolution" in way(quickened(plain), maps)
        assert by_taps == (16 * plain(maps).shape[2:].numel() <= 256)


def test_full_convolutions_give_only_the_gradients_that_are_wanted() -> None:
    plain = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    maps = torch.randn(3, 256, 2, 2)
    quickened(plain)(maps).sum().backward()
    same(plain.requires_grad_(False), quickened(plain), maps)


@pytest.mark.parametrize(
    "plain",
    [
        depthwise(5, 1, bias=True),
        depthwise(5, 1, padding=1),
        depthwise(4, 1, padding=2),
        depthwise(5, 1, padding="same"),
        depthwise(5, 1, padding_mode="reflect"),
        depthwise(3, 1, dilation=2, padding=1),
        depthwise(7, 1),
        depthwise(5, 1, groups=2),
        nn.Conv2d(CHANNELS, 2 * CHANNELS, 5, padding=2, groups=CHANNELS, bias=False),
        nn.Conv2d(CHANNELS, CHANNELS, (3, 5), padding=(1, 2), groups=CHANNELS, bias=False),
        nn.Conv2d(CHANNELS, 4, 1, padding=1),
        nn.Conv2d(CHANNELS, 4, 1, groups=4),
        *(
            nn.Conv2d(512, 512, **{"kernel_size": 3, "padding": 1, "bias": False, **odd})
            for odd in (
                {"bias": True},
                {"padding": 0},
                {"groups": 2},
                {"padding_mode": "reflect"},
                {"dilation": 2},
                {"kernel_size": 2},
                {"kernel_size": (3, 1), "padding": (1, 0)},
            )
        ),
    ],
    ids=str,
)  # fmt: skip
def test_others_go_torchs_way(plain: nn.Module) -> None:
    maps = torch.randn(2, plain.in_channels, 3, 3)
    same(plain, quickened(plain), maps)
    assert "Convolution" in way(quickened(plain), maps)


def test_frozen_weights_and_autocast() -> None:
    plain = depthwise(5, 1).requires_grad_(False)
    maps = torch.randn(2, CHANNELS, 3, 3)
    same(plain, quickened(plain), maps)
    plain.requires_grad_()
    full = nn.Conv2d(CHANNELS, 2048, 3, padding=1, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        assert quickened(plain)(maps).dtype == torch.bfloat16
        assert quickened(full)(maps[:, :, :2, :2]).dtype == torch.bfloat16
    assert "TapConvolution" in way(quickened(full), maps[:, :, :2, :2])


def test_without_gradients_nothing_differs() -> None:
    full = nn.Conv2d(256, 256, 3, padding=1, bias=False)
    for plain in (depthwise(5, 1), nn.Conv2d(CHANNELS, 5, 1), full):
        maps = torch.randn(2, plain.in_channels, 1, 1)
        with torch.no_grad():
            assert torch.equal(plain(maps), quickened(plain)(maps))


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_the_same_gradients(name: str) -> None:
    """In float64, since batch norm of few pixels blows roundings up."""
    torch.manual_seed(0)
    plain = create_encoder(name).backbone.double().train()
    fast = quickened(plain)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    convolutions = [m for m in fast.modules() if isinstance(m, nn.Conv2d)]
    assert any(isinstance(m, SmallMapConv2d) for m in convolutions)
    maps = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    for a, b in zip(gradients(plain, maps), gradients(fast, maps), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)
