"""timm backbones as feature extractors, with their input normalization inside.

b = batch, c = channels, h, w = height and width, n = pictures.

A level is the output of a network at some depth, pooled over the picture. The last level is timm's
own features; those before it are the outputs of the stages. In small networks trained on few
pictures early levels keep information, textures above all, that the last one has lost. The
descriptors of `descriptors.py` can be added to the levels.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from tinyssl.components import pca_projection, standardization
from tinyssl.descriptors import Descriptors
from tinyssl.errors import JobError, UsageError, first_line
from tinyssl.lines import log
from tinyssl.rows import spaced_rows

BACKBONES: Mapping[str, str] = {
    "mobilenetv3-small": "mobilenetv3_small_100",
    "mobilenetv3-large": "mobilenetv3_large_100",
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv4-small": "mobilenetv4_conv_small",
    "efficientnet-lite0": "tf_efficientnet_lite0",
    "resnet18": "resnet18",
}


Pooling = Literal["mean", "statistics"]

_PIXELS_AT_ONCE = 2**19  # in a batch on a CPU: a third faster than 2**20
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
        *stages, last = _level_widths(backbone, name, levels)
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
        return features @ self.projection if self.components else features

    def _pooled(self, normalized: Tensor) -> Tensor:
        """Every level, not standardized, one after the other."""
        backbone: Any = self.backbone
        if self.levels == 1:
            features: Tensor = backbone(normalized)
            return features
        last, maps = backbone.forward_intermediates(normalized)
        stages = maps[:-1] if _ends_in_its_last_stage(backbone) else maps
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
    timm_name = resolve_name(name)
    if channels not in (1, 2, 3, 4):
        raise UsageError(f"encoder: {channels} channels given, allowed are 1 to 4")
    backbone = _create_backbone(timm_name, channels, seed, pretrained)
    if stem == "small":
        _shrink_stem(backbone, timm_name, seed)
    elif stem != "standard":
        raise UsageError(f"encoder.stem: got {stem!r}, allowed are standard and small")
    if residuals == "zero" and not pretrained:
        quiet_residuals(backbone)
    own_mean, own_std = _timm_statistics(backbone, channels)
    return Encoder(
        backbone,
        name=timm_name,
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
        projection = pca_projection((features - centre) * scale, components, whitening)
        wide = _with(encoder, count, pooling, projection.shape[1], descriptors)
        wide.projection.copy_(torch.from_numpy(projection))
    wide.centre.copy_(torch.from_numpy(centre))
    wide.scale.copy_(torch.from_numpy(scale))
    return wide


def _with(
    encoder: Encoder, levels: int, pooling: Pooling, components: int, descriptors: bool
) -> Encoder:
    """The same network with other features, whose statistics are not set yet."""
    if levels == 1 and not components and not descriptors:
        return encoder
    return Encoder(
        encoder.backbone, name=encoder.name, stem=encoder.stem,
        mean=encoder.mean, std=encoder.std, levels=levels, components=components, pooling=pooling,
        descriptors=descriptors,
    ).to(encoder.mean.device)  # fmt: skip


def count_levels(backbone: nn.Module) -> int:
    """Number of feature levels of a timm model; 1 where it does not expose its stages."""
    stages: Any = getattr(backbone, "feature_info", None)
    if not stages or not hasattr(backbone, "forward_intermediates"):
        return 1
    return len(stages) + (0 if _ends_in_its_last_stage(backbone) else 1)


def levels_of(backbone: nn.Module, name: str, wanted: int | Literal["all"]) -> int:
    """The number of levels that a setting means; raises UsageError where a model has fewer."""
    known = count_levels(backbone)
    count = known if wanted == "all" else wanted
    if not 1 <= count <= known:
        raise UsageError(f"encoder.levels: got {wanted}, {name} has 1 to {known}, or all")
    return count


def check_sizes(encoder: Encoder, sizes: Iterable[int]) -> None:
    """Raises UsageError for a size that the network does not accept, as transformers may."""
    training = encoder.training
    encoder.eval()
    for size in sizes:
        try:
            with torch.no_grad():
                encoder(torch.zeros(1, encoder.channels, size, size))
        except Exception as error:  # timm's networks raise several types
            why = " ".join(str(error).split())
            raise UsageError(
                f"encoder.name: {encoder.name} takes no pictures of {size} pixels ({why}); set "
                "data.image_size and augment.view_size to what it takes, or choose another"
            ) from None
    encoder.train(training)


def _level_widths(backbone: Any, name: str, levels: int) -> list[int]:
    """Channels of each level, from the first one used to the last."""
    own = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)
    if levels_of(backbone, name, levels) == 1:
        return [own]
    stages = [int(stage["num_chs"]) for stage in backbone.feature_info]
    stages = stages[: count_levels(backbone) - 1]
    return [*stages[len(stages) + 1 - levels :], own]


def _ends_in_its_last_stage(backbone: nn.Module) -> bool:
    """Whether features come from the last stage; MobileNets have a convolution after it."""
    return not hasattr(backbone, "conv_head")


def resolve_name(name: str) -> str:
    """timm's name for a short or timm name; raises UsageError with the closest known names."""
    timm_name = BACKBONES.get(name, name)
    if timm.is_model(timm_name):
        return timm_name
    known = [*BACKBONES, *timm.list_models()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UsageError(
        f"unknown backbone {name!r}{meant} Allowed: {', '.join(BACKBONES)}, "
        "or any name of timm.list_models()"
    )


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
        batch_size: pictures at a time; when None 256 on a GPU, on a CPU half a million pixels.
        device: to compute on.
        progress: called with the number of newly finished pictures.
        finite: raise for features that are not; False to watch a run that may diverge.

    Returns:
        (n, width) float32.

    Raises:
        JobError: features are not finite numbers.
    """
    modes = {module: module.training for module in encoder.modules()}
    encoder.to(device).eval()
    features = np.empty((len(pictures), encoder.width), np.float32)
    batch_size = batch_size or _at_once(pictures.shape[1] * pictures.shape[2], device)
    try:
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
    process keeps: EfficientNet-Lite0 takes 6 GB for 256 pictures of 192 pixels a side.
    """
    if torch.device(device).type != "cpu":
        return 256
    return min(max(1, _PIXELS_AT_ONCE // pixels), 256)


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


def freeze_batch_norm(module: nn.Module) -> None:
    """Puts batch norms in evaluation mode: statistics are fixed, scales and biases still train."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


def _create_backbone(
    timm_name: str, channels: int, seed: int | None, pretrained: bool
) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        if pretrained:
            log.info(f"taking weights of {timm_name} from timm's hub, or from where it kept them")
        try:
            with _retries_untold():
                backbone: nn.Module = timm.create_model(
                    timm_name, pretrained=pretrained, num_classes=0, in_chans=channels
                )
        except Exception as error:
            why = first_line(error)
            if not pretrained:
                raise UsageError(f"timm cannot build {timm_name} here: {why}") from error
            raise JobError(
                f"pretrained weights of {timm_name} cannot be had from timm's hub "
                f"({why}); give encoder.init=PATH or encoder.init=random"
            ) from error
    return backbone


@contextmanager
def _retries_untold() -> Iterator[None]:
    """Silences the hub's client, which without a network logs retries for minutes."""
    client = logging.getLogger("huggingface_hub")
    before = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(before)


def timm_weights(name: str) -> str:
    """Names the weights on timm's hub for a backbone, with the licence that timm states."""
    found = timm.models.get_pretrained_cfg(resolve_name(name))
    if found is None:
        return "timm's weights"
    told = f"timm's {found.architecture}.{found.tag}, licence {found.license or 'not stated'}"
    if "in1k" in (found.tag or ""):
        told += "; trained on ImageNet-1k, whose own terms allow research only"
    return told


def _shrink_stem(backbone: Any, timm_name: str, seed: int | None) -> None:
    if isinstance(backbone, timm.models.ResNet) and isinstance(backbone.conv1, nn.Conv2d):
        old = backbone.conv1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0 if seed is None else seed)
            conv = nn.Conv2d(old.in_channels, old.out_channels, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        # timm's annotation knows other stems only
        setattr(backbone, "conv1", conv)  # noqa: B010
        setattr(backbone, "maxpool", nn.Identity())  # noqa: B010
    elif isinstance(getattr(backbone, "conv_stem", None), nn.Conv2d):
        backbone.conv_stem.stride = (1, 1)
    else:
        raise UsageError(
            f"encoder.stem=small is made for ResNets and MobileNets, not for {timm_name}; "
            "use encoder.stem=standard"
        )


def quiet_residuals(backbone: nn.Module) -> None:
    """Sets the scale of the last batch norm to 0 in every block with a skip of a MobileNet.

    The block then starts as the identity (Goyal et al., arXiv:1706.02677, section 5.1), as timm's
    ResNets do, but not its MobileNets and EfficientNets. Blocks with other norms are unchanged, and
    so are those whose last norm has an activation, which at 0 might block the gradient.
    """
    for block in backbone.modules():
        if getattr(block, "has_skip", False):
            norms = [part for part in block.modules() if isinstance(part, BatchNormAct2d)]
            if norms and isinstance(norms[-1].act, nn.Identity):
                nn.init.zeros_(norms[-1].weight)


def _timm_statistics(backbone: nn.Module, channels: int) -> tuple[list[float], list[float]]:
    """Mean and std that timm's weights were trained with; their averages where c is not 3."""
    config: Mapping[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    mean, std = list(config["mean"]), list(config["std"])
    if channels == len(mean):
        return mean, std
    return [float(np.mean(mean))] * channels, [float(np.mean(std))] * channels
