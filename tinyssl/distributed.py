"""Several processes that train one network: who they are, and what they tell each other.

`torchrun` starts them and says so in the environment. With one process every function here gives
back what it was given.

b = pictures of a step over all processes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tinyssl.errors import JobError, TinysslError, UsageError, first_line

# The others wait while one process reads the pictures, which takes hours for millions of them.
_PATIENCE = timedelta(hours=12)


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that `torchrun` started, if it did, and leaves them at the end.

    Raises:
        UsageError: they do not find each other.
        JobError: one of them has ended while this one needed it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not distributed.is_initialized():
        yield
        return
    with ExitStack() as held:
        if not distributed.is_initialized():
            _join()
            held.callback(distributed.destroy_process_group)
        held.enter_context(warnings.catch_warnings())
        # Of kernels of one pixel, whose two layouts are the same memory.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
        try:
            yield
        except RuntimeError as error:
            if not _tells_of_loss(error):
                raise
            raise JobError(
                "another process of this run has ended, and may have said why; --resume goes on "
                "from the last checkpoint"
            ) from error


def _join() -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        distributed.init_process_group(backend, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"WORLD_SIZE is set, but the processes do not find each other ({first_line(error)}); "
            "start with: torchrun --nproc-per-node=N -m tinyssl pretrain ..."
        ) from None


def _tells_of_loss(error: RuntimeError) -> bool:
    """Whether another process is gone; of gloo's errors the text alone says whose they are."""
    gloo = "/gloo/" in str(error) and not isinstance(error, TinysslError)
    return gloo or isinstance(error, distributed.DistError)


def world_size() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes and speaks."""
    return rank() == 0


def share(count: int) -> slice:
    """The part of `count` things that this process takes; parts differ by one at most."""
    parts, own = world_size(), rank()
    return slice(count * own // parts, count * (own + 1) // parts)


def share_weight(count: int) -> float:
    """What a mean over this process's share counts for in the plain mean over processes.

    1 where shares are equal; with it, gradients are those of the mean over all `count` pictures.
    """
    own = share(count)
    taken: int = own.stop - own.start
    return taken * world_size() / count


def gather(own: Tensor, count: int) -> Tensor:
    """Puts the shares of all processes together, without gradient.

    Every process adds its share to a buffer of zeros. That is twice the traffic of an all-gather,
    of some hundred kB a step, but takes unequal shares and gives all processes the same bits.

    Args:
        own: (rows of `share(count)`, ...).
        count: rows in all.

    Returns:
        (count, ...), on all processes the same.
    """
    if world_size() == 1:
        return own
    whole = own.new_zeros(count, *own.shape[1:])
    whole[share(count)] = own
    distributed.all_reduce(whole)
    return whole


def mean(values: Tensor) -> Tensor:
    """The mean over processes of a tensor that each has."""
    if world_size() == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / world_size()


def agree(wish: int | None) -> int | None:
    """A number above 0 that any process has, for all of them; None where none has one."""
    if world_size() == 1:
        return wish
    told = torch.tensor(wish or 0)
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return int(told) or None


def on_main(check: Callable[[], object]) -> None:
    """Runs `check` in the main process; where it raises a TinysslError, all raise that."""
    if world_size() == 1:
        check()
        return
    told: list[Any] = [None]
    if is_main():
        try:
            check()
        except TinysslError as error:
            told = [error]
    distributed.broadcast_object_list(told)
    if told[0] is not None:
        raise told[0]


def same_for_all(own: str) -> bool:
    """Whether all processes have the same text."""
    told: list[str | None] = [own] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(told, own)
    return len(set(told)) == 1


@contextmanager
def one_goes_first() -> Iterator[None]:
    """On every machine one process does what is inside before the others do."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if world_size() > 1 and not first:
        distributed.barrier()
    try:
        yield
    finally:
        if world_size() > 1 and first:
            distributed.barrier()


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as all processes train it: gradients are means over them.

    Buffers are not sent around at every step: the statistics of batch norms are each process's
    own, and those of the main one are saved (`encoder.batch_norm: synced` makes them common).
    """
    if world_size() == 1:
        return network
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # The name that replaces broadcast_buffers is younger than the oldest torch we take.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )
