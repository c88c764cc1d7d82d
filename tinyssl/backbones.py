"""timm backbones: by name, for any number of channels, with their levels and weights.

A level is the output of a network at some depth, see `encoder.py`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from tinyssl.errors import JobError, UsageError, first_line
from tinyssl.lines import log

BACKBONES: Mapping[str, str] = {
    "mobilenetv3-small": "mobilenetv3_small_100",
    "mobilenetv3-large": "mobilenetv3_large_100",
    "mobilenetv2": "mobilenetv2_100",
    "mobilenetv4-small": "mobilenetv4_conv_small",
    "efficientnet-lite0": "tf_efficientnet_lite0",
    "resnet18": "resnet18",
}


def resolve_name(name: str) -> str:
    """timm's name for a short or timm name; raises UsageError with the closest known names."""
    timm_name = BACKBONES.get(name, name)
    if timm.is_model(timm_name):
        return timm_name
    known = [*BACKBONES, *timm.list_models()]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    meant = f"; did you mean {' or '.join(near)}?" if near else "."
    raise UsageError(
        f"unknown backbone {name!r}{meant} Allowed: {', '.join(BACKBONES)}, "
        "or any name of timm.list_models()"
    )


def create_backbone(
    name: str,
    *,
    channels: int,
    stem: str,
    seed: int | None,
    pretrained: bool,
    residuals: Literal["timm", "zero"],
) -> nn.Module:
    """A timm model without classifier; see `encoder.create_encoder` for arguments and errors."""
    timm_name = resolve_name(name)
    if channels not in (1, 2, 3, 4):
        raise UsageError(f"encoder: {channels} channels given, allowed are 1 to 4")
    backbone = _timm_model(timm_name, channels, seed, pretrained)
    if stem == "small":
        _shrink_stem(backbone, timm_name, seed)
    elif stem != "standard":
        raise UsageError(f"encoder.stem: got {stem!r}, allowed are standard and small")
    if residuals == "zero" and not pretrained:
        quiet_residuals(backbone)
    return backbone


def _timm_model(timm_name: str, channels: int, seed: int | None, pretrained: bool) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)  # and no GPU's
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
            torch.default_generator.manual_seed(0 if seed is None else seed)
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


def timm_statistics(backbone: nn.Module, channels: int) -> tuple[list[float], list[float]]:
    """Mean and std that timm's weights were trained with; their averages where c is not 3."""
    config: Mapping[str, Any] = backbone.pretrained_cfg  # type: ignore[assignment]
    mean, std = list(config["mean"]), list(config["std"])
    if channels == len(mean):
        return mean, std
    return [float(np.mean(mean))] * channels, [float(np.mean(std))] * channels


def freeze_batch_norm(module: nn.Module) -> None:
    """Puts batch norms in evaluation mode: statistics are fixed, scales and biases still train."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


def count_levels(backbone: nn.Module) -> int:
    """Number of feature levels of a timm model; 1 where it does not expose its stages."""
    stages: Any = getattr(backbone, "feature_info", None)
    if not stages or not hasattr(backbone, "forward_intermediates"):
        return 1
    return len(stages) + (0 if ends_in_its_last_stage(backbone) else 1)


def levels_of(backbone: nn.Module, name: str, wanted: int | Literal["all"]) -> int:
    """The number of levels that a setting means; raises UsageError where a model has fewer."""
    known = count_levels(backbone)
    count = known if wanted == "all" else wanted
    if not 1 <= count <= known:
        raise UsageError(f"encoder.levels: got {wanted}, {name} has 1 to {known}, or all")
    return count


def level_widths(backbone: Any, name: str, levels: int) -> list[int]:
    """Channels of each level, from the first one used to the last."""
    own = int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)
    if levels_of(backbone, name, levels) == 1:
        return [own]
    stages = [int(stage["num_chs"]) for stage in backbone.feature_info]
    stages = stages[: count_levels(backbone) - 1]
    return [*stages[len(stages) + 1 - levels :], own]


def ends_in_its_last_stage(backbone: nn.Module) -> bool:
    """Whether features come from the last stage; MobileNets have a convolution after it."""
    return not hasattr(backbone, "conv_head")
