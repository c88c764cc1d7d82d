"""Builds the parts of a run from the sections of its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from timm.layers.norm_act import convert_sync_batchnorm  # torch's own loses timm's activations
from torch import Tensor, nn

from tinyssl import distributed
from tinyssl.augment import Augment
from tinyssl.backbones import timm_weights
from tinyssl.bank import MemoryBank
from tinyssl.budget import epochs_for, negatives_for, views_for
from tinyssl.config import Loss, Recipe, Views, load_recipe
from tinyssl.console import log
from tinyssl.data import Pictures
from tinyssl.device import pick_device, use_bf16
from tinyssl.encoder import Encoder, create_encoder
from tinyssl.errors import UsageError
from tinyssl.heads import projection_head
from tinyssl.loader import steps_in_epoch
from tinyssl.method import Method
from tinyssl.schedule import warmup_cosine
from tinyssl.small_maps import quicken_small_maps
from tinyssl.train import Plan, parameter_groups
from tinyssl.weights import load_weights

_MOST_STEPS = 100_000_000  # their learning rates are made beforehand


def settle(recipe: Recipe, pictures: int, channels: int) -> Recipe:
    """Resolves every `auto` that depends on the pictures, so that the saved recipe is exact."""
    epochs = recipe.run.epochs
    views = views_for(recipe.run.views, pick_device(recipe.run.device).type)
    if epochs == "auto":
        epochs, reason = epochs_for(pictures, views)
        log.info(f"epochs: {epochs} ({reason})")
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"channels": channels}),
            "run": recipe.run.model_copy(update={"epochs": epochs, "views": views}),
        }
    )


def build_encoder(recipe: Recipe, pictures: Pictures, *, filled: bool = True) -> Encoder:
    """The encoder that a recipe starts from, with its input normalization.

    With `filled=False` a checkpoint will fill it, and the weights to start from may be gone.
    """
    section = recipe.encoder
    channels = pictures.array.shape[3]
    common: dict[str, Any] = {"channels": channels, "stem": section.stem, "seed": recipe.run.seed}
    if not filled:
        return create_encoder(section.name, **common)
    if section.init == "pretrained":
        encoder = create_encoder(section.name, pretrained=True, **common)
        log.info(f"weights: {timm_weights(section.name)}")
        return encoder
    if section.init == "random":
        mean, std = pictures.statistics()
        start = section.residuals
        return create_encoder(section.name, mean=mean, std=std, residuals=start, **common)
    encoder = create_encoder(section.name, **common)
    log.info(load_weights(encoder, section.init))
    return encoder


def augment_from(recipe: Recipe, dtype: torch.dtype = torch.float32) -> Augment:
    """The batched augmentation of a recipe; a GPU's views are of `dtype`."""
    return augment_of(recipe.augment, recipe.augment.view_size, dtype)


def augment_of_run(run: str | Path) -> Augment | None:
    """The augmentation of a run; None where a user's pipeline made the views, or it is unknown.

    A run may have been passed on without its recipe, or be a fine-tuned one.
    """
    try:
        recipe = load_recipe(Path(run) / "recipe.yaml")
    except UsageError:
        return None
    return augment_from(recipe) if recipe.augment.pipeline is None else None


def augment_of(section: Views, view_size: int, dtype: torch.dtype = torch.float32) -> Augment:
    """The batched augmentation that a section describes, for views of `view_size` pixels."""
    settings = {key: getattr(section, key) for key in Views.model_fields if key != "preset"}
    return Augment(view_size, dtype=dtype, **settings)


def make_plan(recipe: Recipe, pictures: int, device: torch.device) -> Plan:
    """The course of a run, from its settled recipe.

    Raises:
        UsageError: too few pictures a step for several processes, batch norm synced on CPUs, or
            more than 100 million steps.
    """
    optim, run = recipe.optim, recipe.run
    assert isinstance(run.epochs, int)
    batch = min(optim.batch_size, pictures)
    if batch < optim.batch_size:
        log.info(f"batch: {batch} (optim.batch_size {optim.batch_size}, but {pictures} pictures)")
    steps = steps_in_epoch(pictures, batch)
    _check_shares(pictures // steps, recipe.encoder.batch_norm, device)
    if steps * run.epochs > _MOST_STEPS:
        raise UsageError(
            f"run.epochs {run.epochs:,} of {steps:,} steps is more than {_MOST_STEPS:,} steps; "
            "lower run.epochs or run.views"
        )
    if recipe.augment.cutmix == 1:
        log.warning(
            "augment.cutmix=1 mixes all views, but the memory bank follows only those that are not "
            "mixed, so it hardly changes; give less, such as 0.5"
        )
    warmup = round(min(optim.warmup_epochs * steps, steps * run.epochs // 5))
    return Plan(
        pictures=pictures,
        batch_size=batch,
        epochs=run.epochs,
        lrs=warmup_cosine(steps * run.epochs, warmup, optim.base_lr * batch / 256),
        seed=run.seed,
        negatives=negatives_for(recipe.bank.negatives, pictures, batch),
        cutmix=recipe.augment.cutmix,
        cutmix_alpha=recipe.augment.cutmix_alpha,
        clip_norm=optim.clip_norm,
        frozen_batch_norm=recipe.encoder.batch_norm == "frozen",
        bf16=use_bf16(run.precision, device),
        log_every=run.log_every,
        watch_every=run.watch_every,
        save_every=run.save_every,
    )


def _check_shares(step_size: int, batch_norm: str, device: torch.device) -> None:
    processes = distributed.world_size()
    if processes == 1:
        return
    if step_size < 2 * processes:  # batch norm cannot take one picture
        raise UsageError(
            f"{processes} processes share steps of {step_size} pictures, each needs 2; raise "
            "optim.batch_size or start fewer"
        )
    if batch_norm == "synced" and device.type == "cpu":
        raise UsageError("encoder.batch_norm=synced works on GPUs only; take train or frozen")


def build_method(
    recipe: Recipe, encoder: Encoder, pictures: int, device: torch.device | str = "cpu"
) -> Method:
    """Encoder, head, bank and losses of a recipe, on the device; the bank may be on the host."""
    head = recipe.head
    projection: nn.Module = projection_head(
        encoder.width, head.hidden, head.width, head.layers, head.last_norm
    )
    if recipe.encoder.batch_norm == "synced" and distributed.world_size() > 1:
        encoder.backbone = convert_sync_batchnorm(encoder.backbone)  # type: ignore[no-untyped-call]
        projection = convert_sync_batchnorm(projection)  # type: ignore[no-untyped-call]
    method = Method(
        encoder,
        projection,
        MemoryBank(pictures, head.width, getattr(torch, recipe.bank.dtype)),
        temperature=recipe.loss.temperature,
        distill_weight=recipe.loss.distill_weight,
        distill_temperature=recipe.loss.distill_temperature,
        bank_rule=recipe.bank.rule,
        bank_momentum=recipe.bank.momentum,
        bank_lr=recipe.bank.lr,
        near_weight=recipe.loss.near_weight,
        near=_room_for_near(recipe.loss, pictures, device),
    )
    encoder.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    quicken_small_maps(encoder)
    method.head.to(device)
    method.bank.to("cpu" if recipe.bank.device == "host" else device)
    return method


def _room_for_near(section: Loss, pictures: int, device: torch.device | str) -> Tensor | None:
    """A buffer for the numbers of near pictures, to be found or read from a checkpoint."""
    count = min(section.near_pictures, pictures - 1)
    wanted = section.near_weight > 0 and count > 0
    return torch.zeros(pictures, count, dtype=torch.int64, device=device) if wanted else None


def build_optimizer(recipe: Recipe, method: Method) -> torch.optim.Optimizer:
    """SGD or AdamW over encoder and head; norms and biases are not decayed."""
    section = recipe.optim
    groups = parameter_groups(method, section.weight_decay)
    if section.name == "adamw":
        betas = (section.momentum, 0.999)
        capturable = groups[0]["params"][0].is_cuda  # so that its steps can be recorded
        return torch.optim.AdamW(
            groups, lr=section.base_lr, betas=betas, fused=True, capturable=capturable
        )
    # Fused: half the time of a step over some 200 small tensors, on CPUs too.
    return torch.optim.SGD(groups, lr=section.base_lr, momentum=section.momentum, fused=True)
