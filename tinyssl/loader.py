"""Cached pictures to batches of augmented views, in a fixed order for a given seed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Views = Callable[[Tensor, torch.Generator], Tensor]


def epoch_order(pictures: int, batch_size: int, seed: int, epoch: int) -> Tensor:
    """The batches of one epoch: equal sizes, no picture twice.

    The batch size is lowered until the batches come out equal, so an epoch leaves out fewer
    pictures than it has steps, others each time.

    Returns:
        (steps, b) picture numbers, b <= batch_size.
    """
    steps = steps_in_epoch(pictures, batch_size)
    size = pictures // steps
    order = torch.randperm(pictures, generator=generator_for(seed, epoch, stream=0))
    return order[: steps * size].view(steps, size)


def steps_in_epoch(pictures: int, batch_size: int) -> int:
    """Batches in an epoch; none has fewer than two pictures, which batch norm could not take."""
    return min(-(-pictures // batch_size), pictures // 2)


def generator_for(seed: int, position: int, stream: int) -> torch.Generator:
    """A generator that depends on nothing but these numbers, so a resumed run draws the same."""
    mixed = np.random.SeedSequence([seed, stream, position]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


class ResidentPictures:
    """Raw batches from the cache; on a GPU from its own memory where the cache fits there."""

    def __init__(self, array: np.ndarray[Any, Any], device: torch.device) -> None:
        self.array = array
        self.device = device
        self.resident = self._load() if device.type == "cuda" and self._fits() else None

    def batches(
        self, order: Iterable[Tensor], part: Callable[[int], slice] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches of some order, on the device.

        Args:
            order: the numbers of the pictures of each batch, (b,).
            part: which of b pictures to get; all when None.

        Yields:
            (index (b,), pictures (own, h, w, c) of the cache's dtype).
        """
        for index in order:
            own = index if part is None else index[part(len(index))]
            yield index.to(self.device, non_blocking=True), self._gather(own)

    def _gather(self, index: Tensor) -> Tensor:
        if self.resident is not None:
            return self.resident[index.to(self.device)]
        return torch.from_numpy(self.array[index.numpy()]).to(self.device)

    def _fits(self) -> bool:
        free, _ = torch.cuda.mem_get_info(self.device)
        return self.array.nbytes < free // 2

    def _load(self) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.array)).to(self.device)


class _PipelineBatches(Dataset[tuple[Tensor, Tensor]]):
    """One item is one whole batch, so that workers hand over few, large tensors."""

    def __init__(self, array: Any, order: Tensor, apply: Any, seeds: Tensor) -> None:
        self.array, self.order, self.apply, self.seeds = array, order, apply, seeds

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        index = self.order[step]
        pictures = self.array[index.numpy()]
        return index, self.apply(pictures, self.seeds[step].tolist())


def pipeline_batches(
    array: np.ndarray[Any, Any],
    order: Tensor,
    apply: Callable[[np.ndarray[Any, Any], list[int]], Tensor],
    seeds: Tensor,
    workers: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches whose views an albumentations pipeline makes picture by picture, in processes.

    Args:
        array: (n, h, w, c) cached pictures.
        order: (steps, b) picture numbers.
        apply: pictures and one seed each to float views (b, c, s, s).
        seeds: (steps, b) integer seeds, one for every picture.
        workers: processes; 0 works in this one.

    Yields:
        (index (b,), views (b, c, s, s)), on the CPU.
    """
    batches = _PipelineBatches(array, order, apply, seeds)
    yield from DataLoader(batches, batch_size=None, num_workers=workers)
