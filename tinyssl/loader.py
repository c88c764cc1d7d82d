"""Batches of cached pictures, in an order that is fixed by the seed."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tinyssl.errors import TinysslError

T = TypeVar("T")
R = TypeVar("R")


def epoch_order(pictures: int, batch_size: int, seed: int, epoch: int) -> Tensor:
    """The batches of one epoch: equal sizes, no picture twice.

    The batch size is lowered to make batches equal, so that an epoch omits fewer pictures than it
    has steps, and others each time.

    Returns:
        (steps, b) picture numbers, b <= batch_size; b = 3 for 3 pictures in batches of 2.
    """
    steps = steps_in_epoch(pictures, batch_size)
    size = pictures // steps
    order = torch.randperm(pictures, generator=generator_for(seed, epoch, stream=0))
    return order[: steps * size].view(steps, size)


def steps_in_epoch(pictures: int, batch_size: int) -> int:
    """Batches in an epoch, each of at least two pictures, as batch norm needs."""
    return min(-(-pictures // batch_size), pictures // 2)


def generator_for(seed: int, position: int, stream: int) -> torch.Generator:
    """A generator seeded by these numbers alone, so that a resumed run draws the same.

    Streams: 0 the order of pictures, 1 views, 2 CutMix, 3 a random bank, 4 sampled rows, 5 and 6
    pairs of views to compare; above 10 CutMix of further processes.
    """
    mixed = np.random.SeedSequence([seed, stream, position]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


class ResidentPictures:
    """Raw batches from the cache, or from GPU memory where all pictures fit.

    Args:
        array: (n, h, w, c) uint8 or uint16, usually a memory map.
        device: of the batches.
        gpu_share: share of the GPU's free memory that pictures may fill; None keeps none there,
            for those that are sent once.

    Attributes:
        told: where batches come from and why, in words.
    """

    def __init__(
        self, array: np.ndarray[Any, Any], device: torch.device, gpu_share: float | None = 0.5
    ) -> None:
        self.array, self.device = array, device
        self.resident: Tensor | None = None
        self.told = "pictures are read from the cache, batch by batch"
        if device.type == "cuda" and gpu_share is not None:
            gc.collect()  # what recorded steps of an earlier run hold
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info(device)
            fits, self.told = fits_budget(array.nbytes, free, gpu_share)
            self.resident = send_all(array, device) if fits else None

    def batches(
        self, order: Iterable[Tensor], part: Callable[[int], slice] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of an order, on the device.

        Args:
            order: picture numbers (b,) of each batch.
            part: slice of b pictures to return; all when None.

        Yields:
            (index (b,), pictures (own, h, w, c) of the cache's dtype).
        """
        batches = list(order)
        shares = batches if part is None else [index[part(len(index))] for index in batches]
        for index, pictures in zip(batches, self._gathered(shares), strict=True):
            yield index.to(self.device, non_blocking=True), pictures

    def _gathered(self, shares: list[Tensor]) -> Iterator[Tensor]:
        if self.resident is not None:
            for own in shares:
                yield rows_of(self.resident, own.to(self.device, non_blocking=True))
        elif self.device.type == "cuda":
            sender = _SideStream(self.array, self.device)
            for sent in ahead(shares, sender.send):
                yield sender.receive(sent)
        else:
            for own in shares:
                yield torch.from_numpy(self.array[own.numpy()]).to(self.device)


def rows_of(pictures: Tensor, index: Tensor) -> Tensor:
    """The pictures with these numbers; torch cannot index uint16 on a GPU."""
    if pictures.dtype == torch.uint16:
        return pictures.view(torch.int16)[index].view(torch.uint16)
    return pictures[index]


def send_all(array: np.ndarray[Any, Any], device: torch.device, rows: int = 1024) -> Tensor:
    """Copies an array to a device, `rows` at a time, so that no whole copy is on the host."""
    kind = torch.from_numpy(array[:0].copy()).dtype
    there = torch.empty(array.shape, dtype=kind, device=device)
    for first in range(0, len(array), rows):
        there[first : first + rows] = torch.from_numpy(np.array(array[first : first + rows]))
    return there


def fits_budget(needed: int, free: int, share: float) -> tuple[bool, str]:
    """Whether to keep pictures in GPU memory, and the reason in words.

    Args:
        needed: bytes of the pictures.
        free: bytes of free GPU memory.
        share: of the free bytes that pictures may fill, `run.gpu_share`.
    """
    sizes = f"{needed / 2**20:,.0f} MiB, run.gpu_share {share:g} of {free / 2**20:,.0f} MiB free"
    if needed <= free * share:
        return True, f"pictures lie in the GPU's memory ({sizes})"
    return False, f"pictures are read from the cache and sent ahead ({sizes})"


def ahead(items: Iterable[T], work: Callable[[T], R]) -> Iterator[R]:
    """Results in order; a thread computes the next one while the last is in use."""
    with ThreadPoolExecutor(1) as pool:
        waiting: Future[R] | None = None
        for item in items:
            started, waiting = waiting, pool.submit(work, item)
            if started is not None:
                yield started.result()
        if waiting is not None:
            yield waiting.result()


class _SideStream:
    """Sends batches to a GPU while it works, by two pinned buffers and a separate stream."""

    def __init__(self, array: np.ndarray[Any, Any], device: torch.device) -> None:
        self.array, self.device = array, device
        self.stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.buffers: list[Tensor | None] = [None, None]
        self.events: list[torch.cuda.Event | None] = [None, None]
        self.turn = 0

    def send(self, own: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        """Starts to send pictures, once the buffer's previous transfer is finished."""
        self.turn = 1 - self.turn
        last = self.events[self.turn]
        if last is not None:
            last.synchronize()
        pinned = self._buffer(len(own))
        # "clip" writes straight to `out`; indices are known to be in range.
        np.take(self.array, own.numpy(), axis=0, out=pinned.numpy(), mode="clip")
        with torch.cuda.stream(self.stream):
            sent = pinned.to(self.device, non_blocking=True)
            event = self.stream.record_event()
        self.events[self.turn] = event
        return sent, event

    def receive(self, sent: tuple[Tensor, torch.cuda.Event]) -> Tensor:
        """The pictures, for use on the current stream, without blocking the host."""
        pictures, event = sent
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        pictures.record_stream(current)
        return pictures

    def _buffer(self, count: int) -> Tensor:
        buffer = self.buffers[self.turn]
        if buffer is None or len(buffer) < count:
            kind = torch.from_numpy(self.array[:0].copy()).dtype
            buffer = torch.empty((count, *self.array.shape[1:]), dtype=kind, pin_memory=True)
            self.buffers[self.turn] = buffer
        return buffer[:count]


class _PipelineViews(Dataset[tuple[Tensor, Tensor] | TinysslError]):
    """One item is one whole batch, so that workers transfer few, large tensors.

    Its key is the numbers of the pictures and their seeds. A TinysslError is returned too: raised
    in a worker, its text would include a traceback.
    """

    def __init__(self, array: Any, apply: Any) -> None:
        self.array, self.apply = array, apply

    def __getstate__(self) -> dict[str, Any]:
        """For spawned workers, which map a file again: pickled, it would be sent whole."""
        state, array = dict(vars(self)), self.array
        name = getattr(array, "filename", None)
        if name is not None and array.nbytes == os.stat(name).st_size:
            state["array"] = (name, array.dtype, array.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if isinstance(self.array, tuple):
            name, dtype, shape = self.array
            self.array = np.memmap(name, dtype, "r", shape=shape)

    def __getitem__(self, key: tuple[list[int], list[int]]) -> tuple[Tensor, Tensor] | TinysslError:
        index, seeds = key
        try:
            return torch.tensor(index), self.apply(self.array[index], seeds)
        except TinysslError as error:
            return error


class PipelineBatches:
    """Batches of views that an albumentations pipeline makes, picture by picture, in processes.

    The processes stay from epoch to epoch: where they are spawned (macOS, Windows), each takes
    seconds to start.

    Args:
        array: (n, h, w, c) cached pictures.
        apply: pictures and one seed each to float views (b, c, s, s).
        workers: processes; 0 works in this one.
    """

    def __init__(
        self,
        array: np.ndarray[Any, Any],
        apply: Callable[[np.ndarray[Any, Any], list[int]], Tensor],
        workers: int,
    ) -> None:
        self.keys: list[tuple[list[int], list[int]]] = []
        self.loader = DataLoader(
            _PipelineViews(array, apply),
            batch_size=None,
            sampler=self.keys,
            num_workers=workers,
            worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # the global one is the run's
            persistent_workers=workers > 0,
        )

    def __call__(self, order: Tensor, seeds: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of an epoch, or of what is left of it.

        Args:
            order: (steps, b) picture numbers.
            seeds: (steps, b) integer seeds, one for every picture.

        Yields:
            (index (b,), views (b, c, s, s)), on the CPU.

        Raises:
            TinysslError: as `apply` does.
        """
        self.keys[:] = zip(order.tolist(), seeds.tolist(), strict=True)
        for made in self.loader:
            if isinstance(made, TinysslError):
                raise made
            yield made

    def close(self) -> None:
        """Ends the processes."""
        del self.loader


def _leave_signals(_worker: int) -> None:
    """Ignores signals to the process group, since the run stops its workers itself.

    A worker that died of a signal would end the run before it is saved. A second SIGTERM still
    kills a worker, so that a hanging one can be ended.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # of a closed terminal; not on Windows
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
