"""Batched augmentation on the pictures' device, each picture with its own random parameters.

Crop and flips are linear along each axis, so they compose into one matrix per picture and axis:
`view = Wy @ picture @ Wx^T`, two batched products, antialiased and exact. The matrices are mostly
zeros: a CPU is twice as fast resampling 8-bit pictures one by one, a GPU with kernels of `fused`.

b = batch, c = channels, H, W = height and width of the source, s = view size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tinyssl.colour import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    to_grayscale,
)
from tinyssl.compiling import missing

PRESETS: Mapping[str, Mapping[str, float]] = {
    "natural": {
        "hflip": 0.5, "vflip": 0.0, "rotate90": 0.0, "brightness": 0.4, "contrast": 0.4,
        "saturation": 0.4, "hue": 0.1, "jitter": 0.8, "grayscale": 0.2, "blur": 0.0,
    },
    "industrial": {
        "hflip": 0.5, "vflip": 0.5, "rotate90": 0.75, "brightness": 0.4, "contrast": 0.4,
        "saturation": 0.2, "hue": 0.0, "jitter": 0.8, "grayscale": 0.0, "blur": 0.0,
    },
    "aligned": {
        "hflip": 0.0, "vflip": 0.0, "rotate90": 0.0, "brightness": 0.4, "contrast": 0.4,
        "saturation": 0.2, "hue": 0.05, "jitter": 0.8, "grayscale": 0.1, "blur": 0.0,
    },
}  # fmt: skip

_CROP_TRIES = 10
MakeViews = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Parameters:
    """Augmentation parameters of a batch; each is (b,), one value per picture.

    Boxes are in pixels of the source. Factors are 1, hue 0 and sigma 0 where nothing changes.
    `turns` counts quarter turns anticlockwise.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    hflip: Tensor
    vflip: Tensor
    turns: Tensor
    sigma: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor

    def pack(self) -> Tensor:
        """All of them in one float tensor, (13, b)."""
        return torch.stack([getattr(self, name).float() for name in _NAMES])

    @classmethod
    def unpack(cls, packed: Tensor) -> Parameters:
        """The inverse of `pack`; turns and flags get their own types back."""
        made = {}
        for name, row in zip(_NAMES, packed.unbind(), strict=True):
            made[name] = row > 0 if name in ("hflip", "vflip", "gray") else row
        made["turns"] = made["turns"].long()
        return cls(**made)

    def of(self, own: slice) -> Parameters:
        """The parameters of some of the pictures."""
        return Parameters(*(getattr(self, name)[own] for name in _NAMES))


_NAMES = tuple(f.name for f in fields(Parameters))


@dataclass(eq=False, kw_only=True)
class Augment:
    """Random resized crop, flips, quarter turns, blur, colour, in this order.

    Args:
        view_size: pixels a side of the views.
        crop_scale: share of the source's area that a crop keeps.
        crop_ratio: width over height of a crop.
        hflip: probability of a left-right flip.
        vflip: probability of an upside-down flip.
        rotate90: probability of a turn by 90, 180 or 270 degrees, each as likely.
        brightness: factors are drawn from 1 - x to 1 + x, as for contrast and saturation.
        contrast: as brightness.
        saturation: as brightness; three channels only, as hue and grayscale.
        hue: shifts are drawn from -x to x, in turns of the colour circle.
        jitter: probability that a picture's brightness, contrast, saturation and hue change.
        grayscale: probability of losing all colour.
        blur: probability of a Gaussian blur.
        blur_sigma: its range, in pixels of the view.
        dtype: of the views that a GPU makes; a CPU's are float32.
    """

    view_size: int = field(kw_only=False)
    crop_scale: Sequence[float] = (0.2, 1.0)
    crop_ratio: Sequence[float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    rotate90: float = 0.0
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.0
    blur_sigma: Sequence[float] = (0.1, 2.0)
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.on_gpu: MakeViews = self.apply_packed

    def __call__(
        self,
        pictures: Tensor,
        generator: torch.Generator,
        own: slice | None = None,
        batch: int | None = None,
    ) -> Tensor:
        """Pictures (b, H, W, c) uint8 or uint16 to views (b, c, s, s) of floats in [0, 1].

        Args:
            pictures: a batch, or the slice `own` of a batch of `batch` pictures, which gets the
                same views as in the whole batch.
            generator: source of randomness.
            own: which of the batch's pictures these are; all when None.
            batch: size of the whole batch; that of `pictures` when None.
        """
        given, h, w, _ = pictures.shape
        drawn = self.draw(given if batch is None else batch, h, w, generator)
        parameters = drawn if own is None else drawn.of(own)
        if pictures.device.type == "cpu":
            return self.apply(pictures, parameters)
        # In one piece, and without waiting for it.
        packed = parameters.pack().to(pictures.device, non_blocking=True)
        return self.on_gpu(pictures, packed)

    def draw(self, batch: int, height: int, width: int, generator: torch.Generator) -> Parameters:
        """Draws every random parameter of a batch of (height, width) sources."""

        def uniform(low: float, high: float) -> Tensor:
            drawn = torch.rand(batch, generator=generator, device=generator.device)
            return low + (high - low) * drawn

        def happens(probability: float) -> Tensor:
            return uniform(0, 1) < probability

        top, left, crop_height, crop_width = self._draw_boxes(batch, height, width, generator)
        hflip, vflip = happens(self.hflip), happens(self.vflip)
        turns = torch.where(happens(self.rotate90), uniform(1, 4).long().clamp(max=3), 0)
        sigma = torch.where(happens(self.blur), uniform(*self.blur_sigma), 0.0)
        changed = happens(self.jitter)

        def factor(strength: float) -> Tensor:
            return torch.where(changed, uniform(max(0.0, 1 - strength), 1 + strength), 1.0)

        return Parameters(
            top, left, crop_height, crop_width, hflip, vflip, turns, sigma,
            brightness=factor(self.brightness),
            contrast=factor(self.contrast),
            saturation=factor(self.saturation),
            hue=torch.where(changed, uniform(-self.hue, self.hue), 0.0),
            gray=happens(self.grayscale),
        )  # fmt: skip

    def apply(self, pictures: Tensor, parameters: Parameters) -> Tensor:
        """Pictures (b, H, W, c) uint8 or uint16 to views (b, c, s, s) float32 in [0, 1]."""
        return self.colour(self._geometry(pictures, parameters), parameters)

    def apply_packed(self, pictures: Tensor, packed: Tensor) -> Tensor:
        """As `apply`, with packed parameters (13, b) on the pictures' device; returns `dtype`."""
        p = Parameters.unpack(packed)
        if not _has_fused(pictures):
            return self.apply(pictures, p).to(self.dtype)
        from tinyssl import fused

        views = self._geometry(pictures, p)
        return fused.colour(
            views, p.brightness, p.contrast, p.saturation, p.hue, p.gray, self.dtype
        )

    def compute_by(self, change: Callable[[MakeViews], MakeViews]) -> None:
        """Replaces how views are computed on a GPU, for example by a recorded CUDA graph."""
        self.on_gpu = change(self.on_gpu)

    def _draw_boxes(
        self, batch: int, height: int, width: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """torchvision's RandomResizedCrop: the first of ten tries that fits, or a central crop."""
        drawn = torch.rand(4, _CROP_TRIES, batch, generator=generator, device=generator.device)
        low, high = self.crop_scale
        area = height * width * (low + (high - low) * drawn[0])
        log_low, log_high = math.log(self.crop_ratio[0]), math.log(self.crop_ratio[1])
        ratio = torch.exp(log_low + (log_high - log_low) * drawn[1])
        tried_width = torch.round(torch.sqrt(area * ratio))
        tried_height = torch.round(torch.sqrt(area / ratio))
        fits = (tried_width <= width) & (tried_height <= height)
        fits &= (tried_width > 0) & (tried_height > 0)
        first = fits.to(torch.uint8).argmax(dim=0, keepdim=True)
        central_height, central_width = _central_crop(height, width, self.crop_ratio)
        found = fits.any(dim=0)

        def chosen(tried: Tensor) -> Tensor:
            return tried.gather(0, first)[0]

        crop_height = torch.where(found, chosen(tried_height), float(central_height))
        crop_width = torch.where(found, chosen(tried_width), float(central_width))
        room_y, room_x = height - crop_height, width - crop_width
        top = torch.where(found, (chosen(drawn[2]) * (room_y + 1)).floor(), (room_y / 2).floor())
        left = torch.where(found, (chosen(drawn[3]) * (room_x + 1)).floor(), (room_x / 2).floor())
        return top.clamp(max=room_y), left.clamp(max=room_x), crop_height, crop_width

    def _geometry(self, pictures: Tensor, p: Parameters) -> Tensor:
        views = _cropped(pictures, p, self.view_size)
        if self.rotate90 > 0:
            views = turn(views, p.turns)
        if self.blur > 0:
            matrix = blur_matrix(self.view_size, blur_radius(self.view_size), p.sigma)[:, None]
            views = matrix @ views @ matrix.mT
        return views

    def colour(self, views: Tensor, p: Parameters) -> Tensor:
        """Applies the colour operations, one after the other, to views (b, c, s, s)."""
        coloured = views.shape[1] == 3
        if self.jitter > 0 and self.brightness > 0:
            views = adjust_brightness(views, p.brightness)
        if self.jitter > 0 and self.contrast > 0:
            views = adjust_contrast(views, p.contrast)
        if coloured and self.jitter > 0 and self.saturation > 0:
            views = adjust_saturation(views, p.saturation)
        if coloured and self.jitter > 0 and self.hue > 0:
            views = adjust_hue(views, p.hue)
        if coloured and self.grayscale > 0:
            views = to_grayscale(views, p.gray)
        return views


def _has_fused(tensor: Tensor) -> bool:
    return tensor.is_cuda and triton_works()


@cache
def triton_works() -> bool:
    """Whether Triton, what it compiles with and a GPU of capability 7.0 are available."""
    if missing(torch.device("cuda")) is not None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability() >= (7, 0)


def _cropped(pictures: Tensor, p: Parameters, size: int) -> Tensor:
    """Crops, resizes and flips in the fastest way on the pictures' device."""
    if _has_fused(pictures):
        from tinyssl import fused

        return fused.crop(pictures, p.top, p.left, p.height, p.width, p.hflip, p.vflip, size)
    one_by_one = pictures.device.type == "cpu" and pictures.dtype == torch.uint8
    return (crop_one_by_one if one_by_one else crop_by_matrices)(pictures, p, size)


def crop_by_matrices(pictures: Tensor, p: Parameters, size: int) -> Tensor:
    """Crops, resizes and flips a whole batch by two batched products.

    Args:
        pictures: (b, H, W, c) uint8 or uint16.
        p: the boxes and flips.
        size: pixels a side of the views.

    Returns:
        (b, c, s, s) float32 in [0, 1].
    """
    b, h, w, c = pictures.shape
    rows = resize_matrix(h, size, p.top, p.height, p.vflip)
    rows = rows.div_(torch.iinfo(pictures.dtype).max)
    columns = resize_matrix(w, size, p.left, p.width, p.hflip)
    # Channels stay beside the axis that is not summed over: two plain batched products, not one
    # for each channel. Then they go first, where colour operations are fastest.
    high = (rows @ pictures.reshape(b, h, w * c).float()).view(b, size, w, c)
    planes = high.permute(0, 3, 1, 2).reshape(b, c * size, w)
    return (planes @ columns.mT).view(b, c, size, size)


def crop_one_by_one(pictures: Tensor, p: Parameters, size: int) -> Tensor:
    """As `crop_by_matrices` for uint8, each axis rounded to 8 bits as torchvision and Pillow do."""
    boxes = torch.stack([p.top, p.left, p.top + p.height, p.left + p.width], dim=1).long().tolist()
    vflip, hflip = p.vflip.tolist(), p.hflip.tolist()
    views = []
    for i, (top, left, bottom, right) in enumerate(boxes):
        crop = pictures[i : i + 1, top:bottom, left:right].permute(0, 3, 1, 2)
        view = interpolate(crop, (size, size), mode="bilinear", antialias=True)
        axes = [axis for axis, flag in ((2, vflip[i]), (3, hflip[i])) if flag]
        views.append(view.flip(axes) if axes else view)
    stacked = torch.cat(views).to(torch.float32, memory_format=torch.contiguous_format)
    return stacked.div_(255)


def resize_matrix(
    source: int, size: int, start: Tensor, length: Tensor, flip: Tensor | None = None
) -> Tensor:
    """Weights that resample pixels `start` to `start + length` of a line to `size` pixels.

    The triangle filter, widened by the reduction where the line shrinks: what torchvision and
    Pillow call bilinear with antialiasing.

    Args:
        source: pixels of the whole line.
        size: pixels of the result.
        start: (b,) first pixel of the crop.
        length: (b,) pixels of the crop.
        flip: (b,) True for lines to reverse; none when None.

    Returns:
        (b, size, source); rows sum to 1 and are 0 outside the crop.
    """
    start, length = start[:, None, None], length[:, None, None]
    scale = length / size
    support = scale.clamp(min=1)
    steps = torch.arange(size, device=start.device)[None, :, None]
    if flip is not None:
        steps = torch.where(flip[:, None, None], size - 1 - steps, steps)
    pixels = torch.arange(source, device=start.device)[None, None, :] + 0.5
    centre = start + (steps + 0.5) * scale
    inside = ((pixels > start) & (pixels < start + length)).float()
    weights = (pixels - centre).abs_().div_(-support).add_(1).clamp_(min=0).mul_(inside)
    return weights.div_(weights.sum(dim=2, keepdim=True))


def blur_radius(view_size: int) -> int:
    """Half of a blur kernel of about a tenth of the view (Chen et al., arXiv:2002.05709)."""
    return min(max(1, round(view_size * 0.05)), view_size - 1)


def blur_matrix(size: int, radius: int, sigma: Tensor) -> Tensor:
    """Gaussian blur of a line, its ends mirrored without repeating the last pixel.

    Args:
        size: pixels of the line, above `radius`.
        radius: the kernel has 2 * radius + 1 taps.
        sigma: (b,) in pixels; 0 leaves the line as it is.

    Returns:
        (b, size, size); rows sum to 1.
    """
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    taps = torch.exp(-0.5 * (offsets / sigma[:, None].clamp(min=1e-6)) ** 2)
    taps = taps / taps.sum(dim=1, keepdim=True)
    reached = torch.arange(size, device=sigma.device)[:, None] + offsets
    mirrored = (size - 1) - ((size - 1) - reached.abs()).abs()
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device)
    return matrix.scatter_add_(
        2, mirrored.expand(len(sigma), -1, -1), taps[:, None].expand(-1, size, -1)
    )


def turn(pictures: Tensor, turns: Tensor) -> Tensor:
    """Turns square pictures (b, c, s, s) by (b,) quarter turns anticlockwise."""
    turns = turns[:, None, None, None]
    half = torch.where(turns >= 2, pictures.flip(2, 3), pictures)
    return torch.where(turns % 2 == 1, half.mT.flip(2), half)


def cutmix(
    pictures: Tensor, generator: torch.Generator, *, alpha: float, probability: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Replaces a box of each picture by the same box of another one (Yun et al., arXiv:1905.04899).

    Args:
        pictures: (b, c, h, w).
        generator: source of randomness.
        alpha: boxes cover a share 1 - lambda of the area, lambda ~ Beta(alpha, alpha).
        probability: that a picture is mixed at all.

    Returns:
        Mixed pictures; (b,) position of each one's partner; (b,) share of the picture's own
        pixels, counted exactly and 1 where nothing was mixed.
    """
    b, _, h, w = pictures.shape
    device = generator.device
    cut = torch.sqrt(1 - _draw_beta(alpha, b, generator))
    cut = cut * (torch.rand(b, generator=generator, device=device) < probability)
    centre_y = torch.rand(b, generator=generator, device=device) * h
    centre_x = torch.rand(b, generator=generator, device=device) * w
    drawn = (
        torch.randperm(b, generator=generator, device=device),
        _inside(h, centre_y, cut * h),
        _inside(w, centre_x, cut * w),
    )
    partner, inside_y, inside_x = (x.to(pictures.device, non_blocking=True) for x in drawn)
    box = inside_y[:, None, :, None] & inside_x[:, None, None, :]
    weight = 1 - inside_y.sum(1) * inside_x.sum(1) / (h * w)
    return torch.where(box, pictures[partner], pictures), partner, weight


def _draw_beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Draws from Beta(alpha, alpha), which is symmetric, so 1 minus a draw is one as well.

    NumPy draws it, seeded by the generator: torch's own gamma sampler takes none in public.
    """
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    drawn = np.random.default_rng(int(seed)).beta(alpha, alpha, count)
    return torch.from_numpy(drawn).float().to(generator.device)


def _inside(size: int, centre: Tensor, length: Tensor) -> Tensor:
    """(b, size) bool: the pixels of a line that lie within `length` around `centre`."""
    middle = torch.arange(size, device=centre.device) + 0.5
    return (middle - centre[:, None]).abs() < length[:, None] / 2


def _central_crop(height: int, width: int, ratio: Sequence[float]) -> tuple[int, int]:
    """The largest central crop whose width over height is allowed."""
    if width / height < ratio[0]:
        return max(1, round(width / ratio[0])), width
    if width / height > ratio[1]:
        return height, max(1, round(height * ratio[1]))
    return height, width
