"""The pretraining loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from tinyssl import distributed
from tinyssl.augment import cutmix
from tinyssl.backbones import freeze_batch_norm
from tinyssl.bank import Candidates
from tinyssl.console import Advance, log
from tinyssl.errors import Interrupted, NonFinite
from tinyssl.loader import epoch_order, generator_for, steps_in_epoch
from tinyssl.method import Method, Mix

GRADIENT_NORM = "gradient_norm"  # key among the terms of a step; before clipping
Batches = Callable[[Tensor, int], Iterator[tuple[Tensor, Tensor]]]
Unread = list[tuple[Tensor, dict[str, Tensor]]]  # picture numbers and terms of steps
TakeStep = Callable[[Tensor, Tensor, int], dict[str, Tensor]]  # the last three of `train_step`


@dataclass(frozen=True)
class Plan:
    """The settings of the training loop, known before its first step."""

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
    def steps(self) -> int:
        """Of the whole run."""
        return self.steps_per_epoch * self.epochs

    @property
    def step_size(self) -> int:
        """Pictures in every step: `batch_size`, or less where that makes all steps equal."""
        return self.pictures // self.steps_per_epoch


@dataclass
class Progress:
    """The progress of a run; saved in checkpoints."""

    step: int = 0
    seconds: float = 0.0
    window: list[dict[str, float]] = field(default_factory=list)
    epoch_sums: dict[str, float] = field(default_factory=dict)


@dataclass
class Hooks:
    """Callbacks of the loop, which itself handles no files and no terminal.

    In processes other than the main one only `advance` and `stop_signal` do anything.
    """

    log_step: Callable[[dict[str, Any]], None]
    log_epoch: Callable[[dict[str, Any]], None]
    save: Callable[[Progress], None]
    watch: Callable[[], dict[str, float]]
    advance: Advance
    stop_signal: Callable[[], int | None]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups without weight decay for biases and scales of norms."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], max_norm: float | None) -> Tensor:
    """Scales all gradients to a total norm of at most `max_norm`; None does not clip.

    Like `torch.nn.utils.clip_grad_norm_`, which rewrites every gradient even when nothing is
    clipped. On a GPU this does so too, since comparing the norm would synchronize.

    Returns:
        The norm before clipping.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if max_norm is not None and (norm.is_cuda or norm > max_norm):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


@torch.no_grad()
def start_bank(method: Method, batches: Iterator[tuple[Tensor, Tensor]], frozen: bool) -> None:
    """Fills the bank by one pass over the pictures ("feature calibrate", arXiv:2404.19289).

    In training mode, since with the running statistics of an untrained network all features would
    be nearly equal. `batches` are as in `fit`.
    """
    _set_train(method, frozen)
    for index, pictures in batches:
        own = method.project(pictures)
        method.bank.fill(index, distributed.gather(own, len(index)))


def fit(
    method: Method,
    batches: Batches,
    plan: Plan,
    progress: Progress,
    hooks: Hooks,
    take_step: TakeStep,
) -> None:
    """Trains `method` from `progress` to the end of `plan`.

    `batches` yields the numbers of all pictures of a step, (b,), and the views of those that are
    this process's share. `take_step` is `train_step` of the method and the plan, or does the same.

    Raises:
        NonFinite: a loss or a gradient is not finite; the last checkpoint is from an earlier step.
        Interrupted: a signal arrived; the run was saved after the step.
    """
    steps = plan.steps_per_epoch
    first_epoch, offset = divmod(progress.step, steps)
    unread: Unread = []
    for epoch in range(first_epoch, plan.epochs):
        _set_train(method, plan.frozen_batch_norm)
        order = epoch_order(plan.pictures, plan.batch_size, plan.seed, epoch)[offset:]
        start = time.monotonic()
        for index, views in batches(order, progress.step):
            terms = take_step(index, views, progress.step)
            unread.append((index, terms))
            progress.step += 1
            if progress.step % plan.log_every == 0:
                _read(unread, progress)
                _log(progress, plan, hooks, time.monotonic() - start)
            hooks.advance(len(index))
            if progress.step % steps and (signum := _stop_wished(progress, plan, hooks, index)):
                progress.seconds += time.monotonic() - start
                _read(unread, progress)
                _save_and_stop(progress, hooks, signum)
        _read(unread, progress)
        progress.seconds += time.monotonic() - start
        offset = 0
        _end_epoch(epoch + 1, progress, plan, hooks)


def train_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    index: Tensor,
    views: Tensor,
    step: int,
) -> dict[str, Tensor]:
    """One optimizer step and one update of the bank.

    Args:
        method: encoder, head, bank and losses.
        optimizer: of encoder and head.
        plan: the run's course.
        index: (b,) picture numbers, of all processes.
        views: (own, c, s, s) augmented views in [0, 1] of this process's share of them.
        step: number of this step; with the plan's seed it determines all random draws.

    Returns:
        The detached loss terms, whose mean over processes is that of the batch, and
        `gradient_norm`, the norm of all gradients before clipping.

    Raises:
        NonFinite: the loss or a gradient is not finite; nothing was updated. Not on a GPU, where
            checking would synchronize; `fit` finds it when it reads the terms.
    """
    mix, views, candidates = draw_for_step(method, index, views, plan, step)
    set_rate(optimizer, float(plan.lrs[step]))
    return optimize(method, optimizer, index, views, plan, mix, candidates, step)


def draw_for_step(
    method: Method, index: Tensor, views: Tensor, plan: Plan, step: int
) -> tuple[Mix | None, Tensor, Candidates | None]:
    """The random draws of a step: how views are mixed, the mixed views, the rows to score."""
    mix = candidates = None
    if plan.cutmix > 0:
        mix, views = _mix(views, plan, step)
    if plan.negatives is not None:
        generator = generator_for(plan.seed, step, stream=4)
        candidates = method.bank.candidates(index, plan.negatives, generator)
    return mix, views, candidates


def set_rate(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    """Sets the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimize(
    method: Method,
    optimizer: torch.optim.Optimizer,
    index: Tensor,
    views: Tensor,
    plan: Plan,
    mix: Mix | None,
    candidates: Candidates | None,
    step: int = 0,
) -> dict[str, Tensor]:
    """A step after its draws, at the current rate; see `train_step`. `step` is for errors."""
    count, own = len(index), distributed.share(len(index))
    scored = None if candidates is None else candidates.starting_at(own.start, count)
    with torch.autocast(views.device.type, torch.bfloat16, enabled=plan.bf16):
        z = method.project(views)
    terms = method.losses(z, index[own], scored, mix)
    terms = {name: term * distributed.share_weight(count) for name, term in terms.items()}
    loss = torch.stack(list(terms.values())).sum()
    torch.autograd.backward(loss)
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    norm = clip_gradients(parameters, plan.clip_norm)
    if not norm.is_cuda:
        _refuse_now(loss, norm, index, step)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    weight = None if mix is None else distributed.gather(mix.weight, count)
    method.update_bank(index, distributed.gather(z.detach(), count), candidates, weight)
    return {name: term.detach() for name, term in terms.items()} | {GRADIENT_NORM: norm}


def _mix(views: Tensor, plan: Plan, step: int) -> tuple[Mix, Tensor]:
    """Mixes views by CutMix, with partners within the share of the process."""
    generator = generator_for(plan.seed, step, stream=2 + 10 * distributed.rank())
    views, partner, weight = cutmix(
        views, generator, alpha=plan.cutmix_alpha, probability=plan.cutmix
    )
    return Mix(partner, weight), views


def _stop_wished(progress: Progress, plan: Plan, hooks: Hooks, index: Tensor) -> int | None:
    """A signal to stop, which several processes agree on.

    On GPUs, where steps are short, not checked after every step. On CPUs ten steps may exceed the
    30 seconds that `torchrun` waits after Ctrl-C, and agreeing takes less than a millisecond.
    """
    if index.is_cuda and distributed.world_size() > 1 and progress.step % plan.log_every:
        return None
    return distributed.agree(hooks.stop_signal())


def _refuse_now(loss: Tensor, norm: Tensor, index: Tensor, step: int) -> None:
    """Raises before weights and bank are updated; the norm is common to all processes."""
    values = {"gradient's norm": float(norm)}
    if distributed.world_size() == 1:
        values = {"loss": float(loss.detach())} | values
    _refuse_non_finite(values, step + 1, index)


def _refuse_non_finite(values: Mapping[str, float], step: int, index: Tensor) -> None:
    for name, value in values.items():
        if not np.isfinite(value):
            raise NonFinite(f"the {name} is {value}", step, index.tolist())


def _save_and_stop(progress: Progress, hooks: Hooks, signum: int) -> NoReturn:
    hooks.save(progress)
    distributed.agree(signum)  # no process ends before the main one has saved
    raise Interrupted(f"stopped after step {progress.step:,}", signum)


def _set_train(method: Method, frozen_batch_norm: bool) -> None:
    method.train()
    if frozen_batch_norm:
        freeze_batch_norm(method.encoder)


def _read(unread: Unread, progress: Progress) -> None:
    """Copies the terms of the last steps from the device at once, which synchronizes."""
    if not unread:
        return
    stacked = torch.stack([torch.stack(list(terms.values())) for _, terms in unread])
    first = progress.step - len(unread) + 1
    rows = distributed.mean(stacked).tolist()
    for step, ((index, terms), row) in enumerate(zip(unread, rows, strict=True), first):
        values = dict(zip(terms, row, strict=True))
        values["loss"] = sum(value for name, value in values.items() if name != GRADIENT_NORM)
        told = {"loss": values["loss"], "gradient's norm": values[GRADIENT_NORM]}
        _refuse_non_finite(told, step, index)
        progress.window.append(values)
        for name, value in values.items():
            if name != GRADIENT_NORM:
                progress.epoch_sums[name] = progress.epoch_sums.get(name, 0.0) + value
    unread.clear()


def _log(progress: Progress, plan: Plan, hooks: Hooks, elapsed: float) -> None:
    names = progress.window[0]
    means = {name: float(np.mean([v[name] for v in progress.window])) for name in names}
    seconds = progress.seconds + elapsed
    rate = progress.step * plan.step_size / max(seconds, 1e-9)
    hooks.log_step(
        {"step": progress.step, "epoch": (progress.step - 1) // plan.steps_per_epoch + 1}
        | means
        | {
            "lr": float(plan.lrs[progress.step - 1]),
            "pictures_per_s": round(rate, 1),
            "time": round(seconds, 3),
        }
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
    if not last and (signum := distributed.agree(hooks.stop_signal())):
        _save_and_stop(progress, hooks, signum)
    if last or epoch % plan.save_every == 0:
        hooks.save(progress)
