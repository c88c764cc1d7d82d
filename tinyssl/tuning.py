"""Fine-tuning of a whole network on few labels, with layer-wise rates and averaged weights.

b = batch, k = classes, c = channels, s = view size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tinyssl.backbones import freeze_batch_norm
from tinyssl.errors import JobError
from tinyssl.schedule import warmup_cosine

Views = Callable[[NDArray[np.int64], int], Tensor]


@dataclass(frozen=True)
class Course:
    """How a network is tuned, whatever the number of steps.

    Attributes:
        batch_size: views a step.
        lr: peak learning rate of the encoder's last layer.
        head_lr: of the head, relative to the last layer's.
        layer_decay: rate of each layer relative to that of the next one.
        weight_decay: AdamW's, of matrices and filters.
        smoothing: label smoothing, the share of each target that is spread over all classes.
        average: share of the steps that the running mean of the weights spans; 0 keeps the last.
        frozen_batch_norm: keep the encoder's batch-norm statistics.
        seed: of the order of the pictures.
    """

    batch_size: int
    lr: float
    head_lr: float
    layer_decay: float
    weight_decay: float
    smoothing: float
    average: float
    frozen_batch_norm: bool
    seed: int

    def steps(self, views: int) -> int:
        """Number of steps for a number of views."""
        return max(1, round(views / self.batch_size))


def layer_depths(backbone: nn.Module) -> dict[str, int]:
    """Number of layers after that of each parameter: 0 for the last layer.

    Layers are timm's groups; a model without groups counts as one layer.
    """
    matcher: Any = getattr(backbone, "group_matcher", None)
    names = [name for name, _ in backbone.named_parameters()]
    if matcher is None:
        return dict.fromkeys(names, 0)
    layers = group_parameters(backbone, matcher(coarse=True), reverse=True)
    last = max(layers[name] for name in names)
    return {name: last - layers[name] for name in names}


def parameter_rates(backbone: nn.Module, head: nn.Module, course: Course) -> list[dict[str, Any]]:
    """Parameter groups per layer and kind for the optimizer; `share` scales the learning rate.

    Biases and scales of norms are not decayed, nor is the head, which starts at the minimum of a
    regularised fit. AdamW moves all weights at the same speed, and a fit on some dozen pictures has
    thousands of small weights, which would drown in noise at the encoder's own rate.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    depths = layer_depths(backbone)
    for name, parameter in backbone.named_parameters():
        groups.setdefault((depths[name], parameter.ndim > 1), []).append(parameter)
    found: list[dict[str, Any]] = [
        {
            "params": parameters,
            "share": course.layer_decay**depth,
            "weight_decay": course.weight_decay if decayed else 0.0,
        }
        for (depth, decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]
    return [
        *found,
        {"params": list(head.parameters()), "share": course.head_lr, "weight_decay": 0.0},
    ]


def picture_order(pictures: int, batch_size: int, steps: int, seed: int) -> NDArray[np.int64]:
    """Batches from concatenated permutations, so that all pictures are used equally often.

    Returns:
        (steps, b) picture numbers.
    """
    generator = np.random.default_rng(seed)
    rounds = -(-steps * batch_size // pictures)
    laid = np.concatenate([generator.permutation(pictures) for _ in range(rounds)])
    return laid[: steps * batch_size].reshape(steps, batch_size)


def mean_decay(share: float, steps: int) -> float:
    """Decay of a running mean over a share of the steps; 0 where that is at most one step."""
    return max(0.0, 1 - 1 / max(share * steps, 1.0))


class WeightEMA:
    """A running mean of a module's floating-point state: `mean <- d mean + (1 - d) value`."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.mean = {key: value.clone() for key, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Moves the mean towards the module's current state."""
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.mean[key].lerp_(value, 1 - self.decay)
            else:
                self.mean[key].copy_(value)


def tune(
    encoder: nn.Module,
    backbone: nn.Module,
    head: nn.Module,
    views: Views,
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    course: Course,
    steps: int,
    advance: Callable[[int], None],
) -> None:
    """Trains encoder and head in place; they end with averaged weights, in evaluation mode.

    Args:
        encoder: views (b, c, s, s) to features.
        backbone: the part of the encoder that has parameters and layers.
        head: features to logits (b, k).
        views: picture numbers (b,) and the step to augmented views on the encoder's device.
        labels: (n,) from 0.
        weights: (n,) of each picture in the loss; their mean is 1.
        course: of the training.
        steps: number of steps, the first tenth of which is warm-up.
        advance: called with the number of views of each finished step.

    Raises:
        JobError: the loss is not finite.
    """
    network = nn.Sequential(encoder, head)
    groups = parameter_rates(backbone, head, course)
    optimizer = torch.optim.AdamW(groups, lr=1.0, fused=True)
    lrs = warmup_cosine(steps, steps // 10, course.lr)
    average = WeightEMA(network, mean_decay(course.average, steps))
    network.train()
    if course.frozen_batch_norm:
        freeze_batch_norm(network)
    device = next(network.parameters()).device
    order = picture_order(len(labels), course.batch_size, steps, course.seed)
    for step, chosen in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = float(lrs[step]) * group["share"]
        target = torch.from_numpy(labels[chosen]).to(device)
        weight = torch.from_numpy(weights[chosen]).float().to(device)
        logits = network(views(chosen, step))
        errors = cross_entropy(logits, target, reduction="none", label_smoothing=course.smoothing)
        loss = (weight * errors).mean()
        if not torch.isfinite(loss):
            raise JobError(f"the loss is {float(loss.detach())} at step {step}; lower network.lr")
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(network)
        advance(len(chosen))
    network.load_state_dict(average.mean)
    network.eval()
