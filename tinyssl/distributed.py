"""Training of one network by several processes.

`torchrun` starts them and sets environment variables. With a single process every function here
returns its input.

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

from tinyssl.errors import (
    Interrupted,
    JobError,
    TinysslError,
    UsageError,
    first_line,
    joined_lines,
)

# The others wait while one process decodes the pictures, which takes hours for millions.
_PATIENCE = timedelta(hours=12)
_TOLD = 400  # characters of an error: NCCL's ends with its cause, such as two processes on one GPU


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that `torchrun` started, if it did, until the end of the body.

    Raises:
        UsageError: they cannot connect.
        JobError: another process ended too early, or they cannot communicate.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not distributed.is_initialized():
        yield
        return
    with ExitStack() as held:
        if not distributed.is_initialized():
            _join()
            held.push(_leave)
        held.enter_context(warnings.catch_warnings())
        # Told of 1 x 1 kernels, whose two layouts are the same in memory.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
        try:
            yield
        except RuntimeError as error:
            if not _tells_of_loss(error):
                raise
            raise JobError(
                "another process of this run has ended, and may have said why, or does not answer "
                f"({joined_lines(error)[:_TOLD]}); --resume goes on from the last checkpoint"
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


def _leave(kind: type[BaseException] | None, *_: object) -> None:
    """Leaves the group, unless this process may be the only one that failed.

    NCCL waits until all leave, and the others may be waiting for this one. When it ends, `torchrun`
    ends them. Wrong use and signals are common to all.
    """
    if kind is None or issubclass(kind, UsageError | Interrupted):
        distributed.destroy_process_group()


def _tells_of_loss(error: RuntimeError) -> bool:
    """Whether another process is out of reach; errors of gloo are known by their text only."""
    gloo = "/gloo/" in str(error) and not isinstance(error, TinysslError)
    return gloo or isinstance(error, distributed.DistError)


def world_size() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and logs."""
    return rank() == 0


def share(count: int) -> slice:
    """The slice of `count` items that this process takes; sizes differ by one at most."""
    parts, own = world_size(), rank()
    return slice(count * own // parts, count * (own + 1) // parts)


def share_weight(count: int) -> float:
    """Weight of a mean over this process's share in the plain mean over processes.

    1 where shares are equal. Weighted so, gradients are those of the mean over all pictures.
    """
    own = share(count)
    taken: int = own.stop - own.start
    return taken * world_size() / count


def gather(own: Tensor, count: int) -> Tensor:
    """Concatenates the shares of all processes, without gradient.

    Every process adds its share to a buffer of zeros. That is twice the traffic of an all-gather,
    of some hundred kB a step, but allows unequal shares and is identical on all processes.

    Args:
        own: (rows of `share(count)`, ...).
        count: rows in all.

    Returns:
        (count, ...), the same on all processes.
    """
    if world_size() == 1:
        return own
    whole = own.new_zeros(count, *own.shape[1:])
    whole[share(count)] = own
    distributed.all_reduce(whole)
    return whole


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over processes."""
    if world_size() == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / world_size()


def as_on_main(values: Tensor) -> None:
    """Overwrites a tensor by that of the main process."""
    if world_size() > 1:
        distributed.broadcast(values, 0)


def agree(wish: int | None) -> int | None:
    """The largest number, above 0, of all processes; None where none has one."""
    if world_size() == 1:
        return wish
    told = torch.tensor(wish or 0)
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    return int(told) or None


def on_main(check: Callable[[], object]) -> None:
    """Runs `check` in the main process; a TinysslError is raised in all of them."""
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
    """On every machine one process runs the body before the others do."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if world_size() > 1 and not first:
        distributed.barrier()
    try:
        yield
    finally:
        if world_size() > 1 and first:
            distributed.barrier()


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with gradients averaged over processes.

    Buffers are not broadcast: each process has its own batch-norm statistics, and those of the
    main one are saved (`encoder.batch_norm: synced` makes them common).
    """
    if world_size() == 1:
        return network
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # The replacement of broadcast_buffers is newer than the oldest torch supported.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(
            network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
        )
