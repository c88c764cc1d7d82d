"""timm backbones as feature extractors, with their input normalization inside.

b = batch, c = channels, h, w = height and width, n = pictures.

A level is the output of a network at some depth, pooled over the picture. The last level is timm's
own features; those before it are the outputs of the stages. In small networks trained on few
pictures early levels keep information, textures above all, that the last one has lost. The
descriptors of `descriptors.py` can be added to the levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from tinyssl.backbones import (
    create_backbone,
    ends_in_its_last_stage,
    level_widths,
    levels_of,
    resolve_name,
    timm_statistics,
)
from tinyssl.components import near_projection, pca_projection, standardization
from tinyssl.descriptors import Descriptors
from tinyssl.device import full_float32, memory_told
from tinyssl.errors import JobError, UsageError, joined_lines
from tinyssl.rows import spaced_rows

Pooling = Literal["mean", "statistics"]
WhitenBy = Literal["all", "near"]

_PIXELS_AT_ONCE = 2**19  # in a batch on a CPU: a third faster than 2**20
_GPU_PIXELS_AT_ONCE = 2**24  # 256 pictures of 256 pixels a side
LOOKED_AT = 2000  # pictures that statistics of features are computed on
_LEAST_VARIANCE = 1e-5  # added to a map's: the square root has no gradient at 0


def _largest(maps: Tensor) -> Tensor:
    """Maxima of maps, (b, c). On a CPU `amax` takes ten times as long; ExecuTorch needs it."""
    if torch.compiler.is_exporting():
        return maps.amax((2, 3))
    return adaptive_max_pool2d(maps, 1).flatten(1)


class StatisticsPooling(nn.Module):
    """A stage's maps (b, c, h, w) to (b, c) or (b, 3c) float32.

    `mean` averages each map. `statistics` adds its standard deviation, as the statistics pooling
    of Snyder et al., "X-vectors" (ICASSP 2018), section 2.1, and its maximum: how much a map varies
    over a picture, and whether something, such as a small defect, is anywhere in it. Computed in
    float32, since means of many values differ little between pictures.
    """

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, stage: Tensor) -> Tensor:
        """Half precision is cast to float32 first."""
        maps = stage.float()
        means = maps.mean((2, 3), keepdim=True)
        if self.pooling == "mean":
            return means.flatten(1)
        apart = maps - means
        deviations = ((apart * apart).mean((2, 3)) + _LEAST_VARIANCE).sqrt()
        return torch.cat([means.flatten(1), deviations, _largest(maps)], dim=1)

    def widths(self, channels: int) -> list[int]:
        """Widths of the parts that `forward` returns for that many maps."""
        return [channels] if self.pooling == "mean" else [channels] * 3


class Encoder(nn.Module):
    """Pictures in [0, 1] to features: normalization, then a timm model without classifier.

    Args:
        backbone: timm model without classifier.
        name: its name in timm.
        stem: `standard` or `small`.
        mean: (c,) subtracted from pictures.
        std: (c,) that pictures are divided by.
        levels: number of levels, from the last one back; several are standardized, see `widen`.
        components: width of a projection of the features, see `widen`; 0 for none.
        pooling: of the stages' maps; the last level is pooled as timm does.
        descriptors: add those of the picture, see `Descriptors`, and standardize all features.

    Attributes:
        channels: c.
        width: of the features.
        part_widths: of features that are standardized together, such as the means of a stage.

    Raises:
        UsageError: the backbone has fewer levels.
    """

    mean: Tensor
    std: Tensor
    centre: Tensor
    scale: Tensor
    projection: Tensor

    def __init__(
        self, backbone: nn.Module, *, name: str, stem: str, mean: Tensor, std: Tensor,
        levels: int = 1, components: int = 0, pooling: Pooling = "mean", descriptors: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.name = name
        self.stem = stem
        self.channels = len(mean)
        self.backbone = backbone
        self.levels, self.components = levels, components
        self.pool = StatisticsPooling(pooling)
        self.descriptors = Descriptors(self.channels) if descriptors else None
        *stages, last = level_widths(backbone, name, levels)
        self.part_widths = [part for width in stages for part in self.pool.widths(width)] + [last]
        if self.descriptors is not None:
            self.part_widths += self.descriptors.widths
        whole = sum(self.part_widths)
        self.width = components or whole
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        if self.standardized:
            self.register_buffer("centre", torch.zeros(whole))
            self.register_buffer("scale", torch.ones(whole))
        if components:
            self.register_buffer("projection", torch.zeros(whole, components))

    @property
    def pooling(self) -> Pooling:
        """Of the stages' maps."""
        return self.pool.pooling

    @property
    def standardized(self) -> bool:
        """Whether features are standardized, as those of several kinds must be."""
        return self.levels > 1 or self.components > 0 or self.descriptors is not None

    def forward(self, pictures: Tensor) -> Tensor:
        """(b, c, h, w) floats in [0, 1] to (b, width)."""
        mean, std = self.mean.view(-1, 1, 1), self.std.view(-1, 1, 1)
        normalized = (pictures - mean) / std
        features = self._pooled(normalized)
        if self.descriptors is not None:
            described = self.descriptors(pictures, normalized)
            features = torch.cat([features.float(), described], dim=1)
        if self.standardized:
            features = (features.float() - self.centre) * self.scale
        # The projection may be of half precision, the standardized features never are.
        return features @ self.projection.to(features.dtype) if self.components else features

    def _pooled(self, normalized: Tensor) -> Tensor:
        """Every level, not standardized, one after the other."""
        backbone: Any = self.backbone
        if self.levels == 1:
            features: Tensor = backbone(normalized)
            return features
        last, maps = backbone.forward_intermediates(normalized)
        stages = maps[:-1] if ends_in_its_last_stage(backbone) else maps
        pooled = [self.pool(stage) for stage in stages[len(stages) + 1 - self.levels :]]
        return torch.cat([*pooled, backbone.forward_head(last).float()], dim=1)


def create_encoder(
    name: str,
    *,
    channels: int = 3,
    stem: str = "standard",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int | None = None,
    pretrained: bool = False,
    levels: int = 1,
    components: int = 0,
    pooling: Pooling = "mean",
    descriptors: bool = False,
    residuals: Literal["timm", "zero"] = "timm",
) -> Encoder:
    """Builds an encoder from a short name of `BACKBONES` or any timm model name.

    Args:
        name: which backbone.
        channels: of the pictures, 1 to 4.
        stem: `small` gives ResNets and MobileNets a stride-1 stem without pooling, for pictures
            of 64 pixels and less.
        mean: (channels,) subtracted from pictures in [0, 1]; timm's own for the model when None.
        std: (channels,) that pictures are divided by; timm's own for the model when None.
        seed: of the random weights; the global generator keeps its state.
        pretrained: take timm's weights from its hub.
        levels: of features, see `Encoder`.
        components: of their projection, see `Encoder`.
        pooling: of the levels before the last, see `StatisticsPooling`.
        descriptors: add those of the picture, see `Descriptors`.
        residuals: `zero` starts blocks with a skip as the identity, see `quiet_residuals`, unless
            the weights are pretrained.

    Raises:
        UsageError: unknown name, channels outside 1 to 4, no small stem for this model, or too
            many levels for it.
        JobError: the pretrained weights cannot be downloaded.
    """
    backbone = create_backbone(
        name, channels=channels, stem=stem, seed=seed, pretrained=pretrained, residuals=residuals
    )
    own_mean, own_std = timm_statistics(backbone, channels)
    return Encoder(
        backbone,
        name=resolve_name(name),
        stem=stem,
        mean=torch.tensor(own_mean if mean is None else list(mean), dtype=torch.float32),
        std=torch.tensor(own_std if std is None else list(std), dtype=torch.float32),
        levels=levels,
        components=components,
        pooling=pooling,
        descriptors=descriptors,
    )


def widen(
    encoder: Encoder,
    levels: int | Literal["all"],
    pictures: NDArray[Any],
    components: int = 0,
    whitening: float = 0.0,
    pooling: Pooling = "mean",
    descriptors: bool = False,
    whiten_by: WhitenBy = "all",
) -> Encoder:
    """The same network with the features of several levels, or a projection of them.

    Standardization and components are fitted on at most `LOOKED_AT` of the pictures; see
    `components.py`.

    Args:
        encoder: of one level, in its final mode; the result shares its weights.
        levels: number of levels from the last one back; 1 alone returns the encoder itself.
        pictures: (n, h, w, c) uint8 or uint16.
        components: number to keep, at most one less than the pictures fitted on; 0 keeps all
            features without a projection.
        whitening: of the components, 0 to 1/2.
        pooling: of the levels before the last, see `StatisticsPooling`.
        descriptors: add those of the picture, see `Descriptors`.
        whiten_by: the variance of `all` pictures (`pca_projection`), or that between `near` ones
            (`near_projection`).

    Raises:
        UsageError: the network has fewer levels.
    """
    count = levels_of(encoder.backbone, encoder.name, levels)
    if count == 1 and not components and not descriptors:
        return encoder
    wide = _with(encoder, count, pooling, 0, descriptors)
    features = embed_pictures(
        wide, pictures[spaced_rows(len(pictures), LOOKED_AT)], device=encoder.mean.device
    )
    centre, scale = standardization(features, wide.part_widths)
    if components:
        project = near_projection if whiten_by == "near" else pca_projection
        projection = project((features - centre) * scale, components, whitening)
        wide = _with(encoder, count, pooling, projection.shape[1], descriptors)
        wide.projection.copy_(torch.from_numpy(projection))
    wide.centre.copy_(torch.from_numpy(centre))
    wide.scale.copy_(torch.from_numpy(scale))
    return wide


def _with(
    encoder: Encoder, levels: int, pooling: Pooling, components: int, descriptors: bool
) -> Encoder:
    """The same network with other features, whose statistics are not set yet."""
    return Encoder(
        encoder.backbone, name=encoder.name, stem=encoder.stem,
        mean=encoder.mean, std=encoder.std, levels=levels, components=components, pooling=pooling,
        descriptors=descriptors,
    ).to(encoder.mean.device)  # fmt: skip


def check_sizes(encoder: Encoder, sizes: Iterable[int]) -> None:
    """Raises UsageError for a size that the network does not accept, as transformers may."""
    training = encoder.training
    encoder.eval()
    for size in sizes:
        try:
            with torch.no_grad():
                encoder(torch.zeros(1, encoder.channels, size, size))
        except Exception as error:  # timm's networks raise several types
            raise UsageError(
                f"encoder.name: {encoder.name} takes no pictures of {size} pixels "
                f"({joined_lines(error)}); set data.image_size and augment.view_size to what it "
                "takes, or choose another"
            ) from None
    encoder.train(training)


def embed_pictures(
    encoder: Encoder,
    pictures: NDArray[Any],
    *,
    batch_size: int | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
    finite: bool = True,
) -> NDArray[np.float32]:
    """Features of pictures in evaluation mode; the encoder's own mode is restored.

    Args:
        encoder: moved to `device`.
        pictures: (n, h, w, c) uint8 or uint16, a memory map too.
        batch_size: pictures at a time; when None at most 256, and half a million pixels on a CPU,
            32 times as many on a GPU.
        device: to compute on.
        progress: called with the number of newly finished pictures.
        finite: raise for features that are not; False to watch a run that may diverge.

    Returns:
        (n, width) float32.

    Raises:
        JobError: features are not finite numbers, or the GPU's memory is full.
    """
    modes = {module: module.training for module in encoder.modules()}
    encoder.to(device).eval()
    features = np.empty((len(pictures), encoder.width), np.float32)
    batch_size = batch_size or _at_once(pictures.shape[1] * pictures.shape[2], device)
    try:
        with (
            full_float32(),
            memory_told("end what else uses the GPU, or take the CPU"),
        ):
            for start in range(0, len(pictures), batch_size):
                chunk = pictures[start : start + batch_size]
                features[start : start + len(chunk)] = _embed_batch(encoder, chunk, device)
                if progress is not None:
                    progress(len(chunk))
    finally:
        for module, training in modes.items():
            module.training = training
    if finite:
        _refuse_non_finite(features, encoder.name)
    return features


def _at_once(pixels: int, device: torch.device | str) -> int:
    """Batch size for pictures of so many pixels.

    On a CPU larger batches are no faster, and slower where their maps exceed the memory that a
    process keeps: EfficientNet-Lite0 takes 6 GB for 256 pictures of 192 pixels a side. A GPU has no
    more than its own memory.
    """
    most = _PIXELS_AT_ONCE if torch.device(device).type == "cpu" else _GPU_PIXELS_AT_ONCE
    return min(max(1, most // pixels), 256)


def _refuse_non_finite(features: NDArray[np.float32], name: str) -> None:
    """Raises JobError where features (n, d) are infinite or NaN."""
    odd = int((~np.isfinite(features).all(axis=1)).sum())
    if odd:
        raise JobError(
            f"{name} gives features that are not finite numbers for {odd:,} of {len(features):,} "
            "pictures; its weights are damaged or it was trained to no end: take another one"
        )


@torch.inference_mode()
def _embed_batch(
    encoder: Encoder, pictures: NDArray[Any], device: torch.device | str
) -> NDArray[np.float32]:
    scale = float(np.iinfo(pictures.dtype).max)
    # Channels stay last in memory, the fastest layout for convolutions on CPUs.
    tensor = torch.from_numpy(pictures.astype(np.float32)).to(device).permute(0, 3, 1, 2) / scale
    features: NDArray[np.float32] = encoder(tensor).float().cpu().numpy()
    return features
