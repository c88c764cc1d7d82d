"""Colour operations on batches of pictures in [0, 1], each picture with its own amount.

b = batch, c = channels, h, w = height and width.
"""

import torch
from torch import Tensor

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, rounded as torchvision has it


def adjust_brightness(pictures: Tensor, factor: Tensor) -> Tensor:
    """Pictures (b, c, h, w) in [0, 1] times their (b,) factors, clipped to [0, 1]."""
    return (pictures * factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(pictures: Tensor, factor: Tensor) -> Tensor:
    """Blends pictures (b, c, h, w) in [0, 1] with their mean gray; (b,) factor 1 changes nothing.

    With three channels the mean is that of the luma, with others that of all values.
    """
    factor = factor[:, None, None, None]
    mean = pictures.mean(dim=(2, 3), keepdim=True)
    mean = luma(mean) if pictures.shape[1] == 3 else mean.mean(dim=1, keepdim=True)
    return (pictures * factor).add_((1 - factor) * mean).clamp_(0, 1)


def adjust_saturation(pictures: Tensor, factor: Tensor) -> Tensor:
    """Blends pictures (b, 3, h, w) in [0, 1] with their luma; (b,) factor 1 changes nothing."""
    return _towards_luma(pictures, 1 - factor).clamp_(0, 1)


def adjust_hue(pictures: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of pictures (b, 3, h, w) in [0, 1] by (b,) shares of the colour circle.

    HSV, whose inverse is `low + chroma * clip(t, 0, 1)` with the triangle waves `t = |h - 3| - 1`,
    `2 - |h - 2|` and `2 - |h - 4|` for red, green and blue, h in sextants (Smith, "Color gamut
    transform pairs", 1978).
    """
    red, green, blue = pictures.unbind(dim=1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    # 0 or 1 as floats, and lerp: on CPUs `torch.where` takes ten times as long as arithmetic.
    not_red, not_green = (high - red).sign_(), (high - green).sign_()
    beyond_red = torch.lerp(blue - red, red - green, not_green)
    sector = torch.lerp(green - blue, beyond_red, not_red).div_(chroma.clamp(min=1e-12))
    sector = sector.addcmul_(not_red, not_green.add_(1), value=2)
    sector = sector.add_(6 * shift[:, None, None])
    sector = sector.sub_((sector / 6).floor_(), alpha=6)  # remainder_ takes three times as long
    turned = torch.empty_like(pictures)
    for plane, (centre, sign, offset) in enumerate(((3, 1, -1), (2, -1, 2), (4, -1, 2))):
        wave = (sector - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(low, chroma, wave, out=turned[:, plane])
    return turned


def to_grayscale(pictures: Tensor, flags: Tensor) -> Tensor:
    """Replaces the flagged, (b,) bool, of pictures (b, 3, h, w) by their luma."""
    return _towards_luma(pictures, flags.to(pictures.dtype))


def _towards_luma(pictures: Tensor, share: Tensor) -> Tensor:
    """Blends pictures (b, 3, h, w) with their luma by (b,) shares, as one product of matrices."""
    luma_row = torch.stack([share * weight for weight in _LUMA], dim=1)[:, None]
    mixing = (1 - share)[:, None].expand(-1, 3).diag_embed() + luma_row
    return (mixing @ pictures.flatten(2)).view_as(pictures)


def luma(pictures: Tensor) -> Tensor:
    """(b, 3, h, w) to (b, 1, h, w), ITU-R BT.601."""
    red, green, blue = pictures.unbind(dim=1)
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]).unsqueeze(1)
