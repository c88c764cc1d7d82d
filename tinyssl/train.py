"""The pretraining loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tinyssl.augment import cutmix
from tinyssl.console import Advance, log
from tinyssl.encoder import freeze_batch_norm
from tinyssl.errors import Interrupted, NonFinite
from tinyssl.loader import epoch_order, generator_for, steps_in_epoch
from tinyssl.method import Method, Mix

Batches = Callable[[Tensor, int], Iterator[tuple[Tensor, Tensor]]]
Watch = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Plan:
    """Everything about a run's course that is known before its first step."""

    pictures: int
    batch_size: int
    epochs: int
    lrs: np.ndarray[Any, Any]
    seed: int
    negatives: int | None
    cutmix: float
    cutmix_alpha: float
    clip_norm: float | None
    frozen_batch_norm: bool
    bf16: bool
    log_every: int
    watch_every: int
    save_every: int

    @property
    def steps_per_epoch(self) -> int:
        return steps_in_epoch(self.pictures, self.batch_size)

    @property
    def step_size(self) -> int:
        """Pictures in every step; `batch_size` or a little less."""
        return self.pictures // self.steps_per_epoch


@dataclass
class Progress:
    """Where a run stands; all of it goes into the checkpoint."""

    step: int = 0
    seconds: float = 0.0
    window: list[dict[str, float]] = field(default_factory=list)
    epoch_sums: dict[str, float] = field(default_factory=dict)


@dataclass
class Hooks:
    """What the loop calls at its seams, so that it knows no files and no terminal."""

    log_step: Callable[[dict[str, Any]], None]
    log_epoch: Callable[[dict[str, Any]], None]
    save: Callable[[Progress], None]
    watch: Watch
    advance: Advance
    stop_signal: Callable[[], int | None]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Splits parameters so that biases and the scales of norms are not decayed."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> None:
    """Scales all gradients to a common norm of `max_norm` where it is above that.

    As `torch.nn.utils.clip_grad_norm_`, which writes every gradient anew even when nothing is to
    be clipped.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm > max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


@torch.no_grad()
def start_bank(method: Method, batches: Iterator[tuple[Tensor, Tensor]], frozen: bool) -> None:
    """Fills the bank by one pass over the pictures ("feature calibrate", arXiv:2404.19289).

    In training mode: with the running statistics of an untrained network all features would be
    nearly the same.
    """
    _set_train(method, frozen)
    for index, pictures in batches:
        method.bank.fill(index, method.project(pictures))


def fit(
    method: Method,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    plan: Plan,
    progress: Progress,
    hooks: Hooks,
) -> None:
    """Trains `method` from `progress` to the end of `plan`.

    Raises:
        NonFinite: a loss or a gradient; the last checkpoint is from before that step.
        Interrupted: a signal came; the run was saved after the step.
    """
    steps = plan.steps_per_epoch
    first_epoch, offset = divmod(progress.step, steps)
    for epoch in range(first_epoch, plan.epochs):
        _set_train(method, plan.frozen_batch_norm)
        order = epoch_order(plan.pictures, plan.batch_size, plan.seed, epoch)[offset:]
        start = time.monotonic()
        for index, views in batches(order, progress.step):
            terms = train_step(method, optimizer, index, views, plan, progress.step)
            progress.step += 1
            _record(progress, terms, plan, hooks, time.monotonic() - start)
            hooks.advance(len(index))
            if hooks.stop_signal() is not None and progress.step % steps:
                progress.seconds += time.monotonic() - start
                hooks.save(progress)
                _stop(progress, hooks)
        progress.seconds += time.monotonic() - start
        offset = 0
        _end_epoch(epoch + 1, progress, plan, hooks)
        if hooks.stop_signal() is not None and epoch + 1 < plan.epochs:
            _stop(progress, hooks)


def train_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    index: Tensor,
    views: Tensor,
    plan: Plan,
    step: int,
) -> dict[str, Tensor]:
    """One optimizer step and one move of the bank.

    Args:
        method: encoder, head, bank and losses.
        optimizer: of encoder and head.
        index: (b,) picture numbers.
        views: (b, c, s, s) augmented views in [0, 1].
        plan: the run's course.
        step: number of this step; with the plan's seed it decides every random draw.

    Returns:
        The detached loss terms.

    Raises:
        NonFinite: the loss or a gradient is not finite; nothing was changed by it.
    """
    generator = generator_for(plan.seed, step, stream=2)
    mix = None
    if plan.cutmix > 0:
        views, partner, weight = cutmix(
            views, generator, alpha=plan.cutmix_alpha, probability=plan.cutmix
        )
        mix = Mix(partner, weight)
    candidates = None
    if plan.negatives is not None:
        candidates = method.bank.candidates(index, plan.negatives, generator)
    for group in optimizer.param_groups:
        group["lr"] = float(plan.lrs[step])

    with torch.autocast(views.device.type, torch.bfloat16, enabled=plan.bf16):
        z = method.project(views)
    terms = method.losses(z, index, candidates, mix)
    loss = torch.stack(list(terms.values())).sum()
    torch.autograd.backward(loss)
    _refuse_non_finite(loss, optimizer, index, step)
    if plan.clip_norm is not None:
        clip_gradients([p for g in optimizer.param_groups for p in g["params"]], plan.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    method.update_bank(index, z.detach(), candidates, mix)
    return {name: term.detach() for name, term in terms.items()}


def _refuse_non_finite(
    loss: Tensor, optimizer: torch.optim.Optimizer, index: Tensor, step: int
) -> None:
    """Before the weights and the bank take any harm from it."""
    gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    # One transfer from the device for both.
    values = torch.stack([loss.detach().float(), nn.utils.get_total_norm(gradients).float()])
    for name, value in zip(("loss", "gradient's norm"), values.tolist(), strict=True):
        if not np.isfinite(value):
            raise NonFinite(f"the {name} is {value} at step {step + 1}", index.tolist())


def _stop(progress: Progress, hooks: Hooks) -> None:
    signum = hooks.stop_signal()
    assert signum is not None
    raise Interrupted(f"stopped after step {progress.step:,}", signum)


def _set_train(method: Method, frozen_batch_norm: bool) -> None:
    method.train()
    if frozen_batch_norm:
        freeze_batch_norm(method.encoder)


def _record(
    progress: Progress,
    terms: dict[str, Tensor],
    plan: Plan,
    hooks: Hooks,
    elapsed: float,
) -> None:
    values = {name: float(term) for name, term in terms.items()}
    values["loss"] = sum(values.values())
    progress.window.append(values)
    for name, value in values.items():
        progress.epoch_sums[name] = progress.epoch_sums.get(name, 0.0) + value
    if progress.step % plan.log_every == 0:
        means = {name: float(np.mean([v[name] for v in progress.window])) for name in values}
        lr = float(plan.lrs[progress.step - 1])
        seconds = progress.seconds + elapsed
        rate = progress.step * plan.step_size / max(seconds, 1e-9)
        hooks.log_step(
            {"step": progress.step, "epoch": (progress.step - 1) // plan.steps_per_epoch + 1}
            | means
            | {"lr": lr, "pictures_per_s": round(rate, 1), "time": round(seconds, 3)}
        )
        progress.window.clear()


def _end_epoch(epoch: int, progress: Progress, plan: Plan, hooks: Hooks) -> None:
    row: dict[str, Any] = {"epoch": epoch, "time": progress.seconds}
    row |= {name: total / plan.steps_per_epoch for name, total in progress.epoch_sums.items()}
    row["lr"] = float(plan.lrs[progress.step - 1])
    row["pictures_per_s"] = progress.step * plan.step_size / max(progress.seconds, 1e-9)
    progress.epoch_sums.clear()
    last = epoch == plan.epochs
    if last or (plan.watch_every and epoch % plan.watch_every == 0):
        watched = hooks.watch()
        row |= watched
        hooks.log_step({"step": progress.step, "epoch": epoch} | watched)
        told = ", ".join(f"{name} {value:.4g}" for name, value in watched.items())
        log.info(f"epoch {epoch}/{plan.epochs}: loss {row['loss']:.4f}, {told}")
    hooks.log_epoch(row)
    if last or epoch % plan.save_every == 0:
        hooks.save(progress)
