"""Which pictures a step sees: every one once an epoch, the same after a resumed start."""

import os
import pickle
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.making import LikeGpu
from tinyssl.errors import UsageError
from tinyssl.loader import (
    PipelineBatches,
    ResidentPictures,
    _leave_signals,
    _PipelineViews,
    ahead,
    epoch_order,
    fits_budget,
    generator_for,
    send_all,
    steps_in_epoch,
)


@pytest.mark.parametrize(("n", "batch"), [(2, 64), (3, 2), (10, 3), (64, 64), (65, 64), (1969, 64)])
def test_epoch_shows_nearly_all_and_none_twice(n: int, batch: int) -> None:
    order = epoch_order(n, batch, seed=0, epoch=0)
    steps, size = order.shape
    assert steps == steps_in_epoch(n, batch)
    assert 2 <= size <= max(batch, 3)
    assert order.unique().numel() == order.numel()
    assert order.min() >= 0
    assert order.max() < n
    assert n - order.numel() < steps


def test_order_depends_on_seed_and_epoch_only() -> None:
    first = epoch_order(50, 8, seed=1, epoch=2)
    torch.manual_seed(123)
    assert torch.equal(first, epoch_order(50, 8, seed=1, epoch=2))
    assert not torch.equal(first, epoch_order(50, 8, seed=1, epoch=3))
    assert not torch.equal(first, epoch_order(50, 8, seed=2, epoch=2))


def test_generators_of_streams_and_positions_differ() -> None:
    drawn = {
        float(torch.rand(1, generator=generator_for(seed, position, stream), dtype=torch.double))
        for seed in range(3)
        for position in range(5)
        for stream in range(4)
    }
    assert len(drawn) == 3 * 5 * 4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resident_batches_are_the_rows_asked_for(dtype: Any) -> None:
    array = np.arange(10 * 4 * 4 * 1).reshape(10, 4, 4, 1).astype(dtype)
    order = torch.tensor([[3, 1], [9, 0]])
    found = list(ResidentPictures(array, torch.device("cpu")).batches(order))
    assert [index.tolist() for index, _ in found] == order.tolist()
    for index, pictures in found:
        np.testing.assert_array_equal(pictures.numpy(), array[index.numpy()])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_array_that_cannot_be_written_to_is_sent_in_parts(dtype: Any) -> None:
    array = np.arange(10 * 4).reshape(10, 2, 2, 1).astype(dtype)
    array.flags.writeable = False
    for rows in (3, 5, 100):
        np.testing.assert_array_equal(send_all(array, torch.device("cpu"), rows).numpy(), array)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_batches_of_pictures_that_lie_in_a_gpus_memory(dtype: Any) -> None:
    most = np.iinfo(dtype).max
    array = np.random.default_rng(0).integers(0, most, (10, 4, 4, 1), dtype, endpoint=True)
    reader = ResidentPictures(array, torch.device("cpu"))
    reader.resident = send_all(array, reader.device)
    with LikeGpu():
        found = list(reader.batches(torch.tensor([[3, 1], [9, 0]])))
    for index, pictures in found:
        np.testing.assert_array_equal(pictures.numpy(), array[index.numpy()])


def test_a_share_of_each_batch() -> None:
    array = np.arange(10 * 4).reshape(10, 2, 2, 1).astype(np.uint8)
    order = torch.tensor([[3, 1, 5], [9, 0, 2]])
    reader = ResidentPictures(array, torch.device("cpu"))
    for index, pictures in reader.batches(order, lambda count: slice(1, count)):
        assert len(index) == 3
        np.testing.assert_array_equal(pictures.numpy(), array[index[1:].numpy()])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("gpu_share", [0.0, 0.5, None], ids=["sent ahead", "resident", "once"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_batches_on_a_gpu_are_the_same(gpu_share: float | None, dtype: Any) -> None:
    array = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype)
    order = [torch.randperm(64)[:size] for size in (8, 16, 8, 16, 3)]
    reader = ResidentPictures(array, torch.device("cuda"), gpu_share)
    assert (reader.resident is None) == (not gpu_share)
    for index, pictures in reader.batches(order):
        np.testing.assert_array_equal(pictures.cpu().numpy(), array[index.cpu().numpy()])


def test_pictures_that_are_sent_once_are_not_kept_on_a_gpu() -> None:
    """As before training by views of a pipeline; that takes no GPU to tell."""
    reader = ResidentPictures(np.zeros((4, 8, 8, 3), np.uint8), torch.device("cuda"), None)
    assert reader.resident is None
    assert reader.told == "pictures are read from the cache, batch by batch"


def test_the_budget_is_told() -> None:
    mib = 2**20
    fits, told = fits_budget(300 * mib, 1000 * mib, 0.5)
    assert fits
    assert told == "pictures lie in the GPU's memory (300 MiB, run.gpu_share 0.5 of 1,000 MiB free)"
    fits, told = fits_budget(600 * mib, 1000 * mib, 0.5)
    assert not fits
    assert "sent ahead (600 MiB" in told


def test_one_is_made_ahead_of_the_one_in_use() -> None:
    made: list[int] = []
    turn = threading.Event()

    def work(item: int) -> int:
        made.append(item)
        turn.set()
        return 10 * item

    found = []
    for result in ahead(range(4), work):
        if result < 30:
            assert turn.wait(10)
            while len(made) < result // 10 + 2:
                time.sleep(0.001)
        assert len(made) <= result // 10 + 2
        found.append(result)
    assert found == [0, 10, 20, 30]
    assert list(ahead([], work)) == []


def test_what_fails_ahead_is_raised_in_its_turn() -> None:
    results = ahead([2, 1, 0], lambda number: 1 // number)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def scaled(pictures: NDArray[Any], seeds: list[int], *, by: float) -> Tensor:
    shift = torch.tensor(seeds)[:, None, None, None]
    return torch.from_numpy(np.array(pictures)).permute(0, 3, 1, 2) * by + shift


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a single core
@pytest.mark.parametrize("workers", [0, 2])
def test_pipeline_batches_keep_order_and_seeds(workers: int) -> None:
    array = np.arange(6 * 2 * 2).reshape(6, 2, 2, 1).astype(np.uint8)
    order, seeds = torch.tensor([[4, 2], [0, 5], [1, 3]]), torch.arange(6).view(3, 2)
    apply = partial(scaled, by=0.5)
    batches = PipelineBatches(array, apply, workers)
    found = list(batches(order, seeds))
    assert torch.equal(torch.stack([index for index, _ in found]), order)
    for step, (index, views) in enumerate(found):
        expected = scaled(array[index.numpy()], seeds[step].tolist(), by=0.5)
        assert torch.equal(views, expected)
    rest = list(batches(order[1:], seeds[1:]))
    assert all(torch.equal(views, found[step][1]) for step, (_, views) in enumerate(rest, 1))


def worker(pictures: NDArray[Any], seeds: list[int]) -> Tensor:
    return torch.full((len(pictures), 1, 1, 1), float(os.getpid()))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
def test_workers_stay_until_they_are_closed_and_draw_no_random_numbers() -> None:
    array, order = np.zeros((4, 2, 2, 1), np.uint8), torch.arange(4).view(2, 2)
    before = torch.get_rng_state()
    batches = PipelineBatches(array, worker, 1)
    found = {int(views[0]) for _ in range(2) for _, views in batches(order, order)}
    assert len(found) == 1
    assert found != {os.getpid()}
    batches.close()
    with pytest.raises(ProcessLookupError):
        os.kill(found.pop(), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_what_workers_get_can_be_pickled_for_spawned_processes() -> None:
    albumentations = pytest.importorskip("albumentations")
    from tinyssl.pipeline import apply_pipeline

    crop = albumentations.Compose([albumentations.RandomCrop(4, 4)])
    apply = pickle.loads(pickle.dumps(partial(apply_pipeline, crop, view_size=4)))
    assert apply(np.zeros((2, 8, 8, 3), np.uint8), [0, 1]).shape == (2, 3, 4, 4)


def test_a_mapped_file_is_sent_to_workers_by_its_name(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (1000, 8, 8, 3), np.uint8)
    array.tofile(tmp_path / "pictures.bin")
    mapped = np.memmap(tmp_path / "pictures.bin", np.uint8, "r", shape=array.shape)
    for given, most in ((mapped, 10_000), (mapped[8:], None), (array, None)):
        sent = pickle.dumps(_PipelineViews(given, partial(scaled, by=1)))
        assert most is None or len(sent) < most
        _, views = pickle.loads(sent)[[4, 5, 6, 7], [4, 5, 6, 7]]
        assert torch.equal(views, scaled(given[4:8], [4, 5, 6, 7], by=1))


def refused(pictures: NDArray[Any], seeds: list[int]) -> Tensor:
    raise UsageError("this picture does not fit")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_refuses_is_told_as_it_is(workers: int) -> None:
    array, order = np.zeros((4, 2, 2, 1), np.uint8), torch.arange(4).view(2, 2)
    with pytest.raises(UsageError, match=r"^this picture does not fit$"):
        list(PipelineBatches(array, refused, workers)(order, order))


def signalled(pictures: NDArray[Any], seeds: list[int]) -> Tensor:
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(os.getpid(), signum)
    return scaled(pictures, seeds, by=1)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later
def test_workers_leave_signals_to_the_run() -> None:
    array, order = np.zeros((4, 2, 2, 1), np.uint8), torch.arange(4).view(1, 4)
    assert len(list(PipelineBatches(array, signalled, 1)(order, order))) == 1


def test_a_worker_that_hangs_is_ended_by_a_second_signal() -> None:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(signum) for signum in signals]
    try:
        _leave_signals(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for signum, handler in zip(signals, before, strict=True):
            signal.signal(signum, handler)
