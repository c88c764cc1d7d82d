"""Two processes train as one does: same weights, equal banks, resumed on another number."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.watched_runs import watched
from tinyssl import distributed
from tinyssl.build import _check_shares
from tinyssl.checkpoint import load_checkpoint
from tinyssl.device import pick_device
from tinyssl.errors import Interrupted, JobError, UsageError

SMALL = [
    "data.image_size=32", "augment.view_size=32", "encoder.name=test_resnet", "head.hidden=16",
    "head.width=8", "optim.batch_size=6", "run.epochs=3", "run.log_every=2", "run.watch_every=0",
    "run.workers=1",
]  # fmt: skip
# No batch norm that depends on which pictures a process has: two processes are then one.
ALIKE = [
    *SMALL,
    "encoder.batch_norm=frozen",
    "head.layers=1",
    "head.last_norm=false",
    "loss.near_weight=0.5",
]
MIXED = [
    *SMALL, "augment.cutmix=0.7", "bank.rule=gradient", "bank.negatives=4",
    "loss.distill_weight=1", "loss.near_weight=0.5",
]  # fmt: skip


def torchrun(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    environment = os.environ | {"PYTHONPATH": str(cwd)}
    return subprocess.run(
        [*command, "--nproc-per-node=2", *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All runs that the tests below look at: one start of two processes is what takes long."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "pictures").mkdir()
    (folder / "other").mkdir()
    generator = np.random.default_rng(0)
    for number in range(17):  # three steps of five: shares of two and three
        noise = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 40)).save(folder / "pictures" / f"{number:02}.png")
        Image.fromarray(255 - noise).save(folder / "other" / f"{number:02}.png")

    def call(name: str, settings: list[str], **more: Any) -> dict[str, Any]:
        job = {"out": str(folder / name), "data": str(folder / "pictures"), "overrides": settings}
        return job | more

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYSSL_CACHE", str(folder / "cache"))
        watched(**call("alone", ALIKE, keep=str(folder / "grown")))
        jobs = [
            call("both", ALIKE, differences=str(folder / "both.json"), keep=str(folder / "shrunk")),
            {"out": str(folder / "grown"), "resume": True},
            call("mixed", MIXED, differences=str(folder / "mixed.json")),
            call("stopped", ALIKE, stop=True),
            {"out": str(folder / "stopped"), "resume": True},
            call("unlike", ALIKE, others=str(folder / "other"), error=str(folder / "unlike.txt")),
            call("lost", ALIKE, die=True, error=str(folder / "lost.txt")),
        ]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        root = Path(__file__).parent.parent
        done = torchrun("-m", "tests.watched_runs", str(folder / "jobs.json"), cwd=root)
        assert (folder / "lost.txt").exists(), done.stderr  # the last job, which ends them all
        watched(out=str(folder / "shrunk"), resume=True)
        yield folder


def state(run: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_checkpoint(run / "checkpoints" / "last.pt")["method"]
    return found


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]  # the others are looks at the features


@pytest.mark.parametrize("name", ["both", "grown", "shrunk"])
def test_two_processes_train_as_one(runs: Path, name: str) -> None:
    """From the start, from one process's checkpoint, and one process from that of two."""
    one, other = state(runs / "alone"), state(runs / name)
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4, msg=key)
    first, second = metrics(runs / "alone"), metrics(runs / name)
    assert [line["step"] for line in first] == [line["step"] for line in second]
    for ours, theirs in zip(first, second, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)


def test_it_would_show_if_they_did_not(runs: Path) -> None:
    """The tolerance is far below what three epochs change."""
    alone, grown = state(runs / "alone")["bank.rows"], state(runs / "mixed")["bank.rows"]
    assert (alone - grown).abs().max() > 0.1


@pytest.mark.parametrize("name", ["both", "mixed"])
def test_banks_and_near_pictures_are_equal_after_every_step(runs: Path, name: str) -> None:
    apart = json.loads((runs / f"{name}.json").read_text())
    assert apart == [0.0] * 9


def test_a_signal_to_one_stops_all_after_the_same_step(runs: Path) -> None:
    log = (runs / "stopped" / "train.log").read_text()
    assert "stopped after step 1, saved" in log
    one, other = state(runs / "both"), state(runs / "stopped")
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_other_pictures_on_another_machine_are_refused(runs: Path) -> None:
    told = (runs / "unlike.txt").read_text()
    assert told.startswith("UsageError: the processes of this run find different pictures at ")
    assert not (runs / "unlike").exists()


def test_a_process_that_is_killed_is_told_of_by_the_others(runs: Path) -> None:
    told = (runs / "lost.txt").read_text()
    assert told.startswith("JobError: another process of this run has ended")
    assert "/gloo/" in told


@pytest.mark.parametrize(
    ("error", "leaves"),
    [
        (None, True),
        (UsageError("for all"), True),
        (Interrupted("for all", 15), True),
        (JobError("the main one's disk is full"), False),
        (KeyError("here"), False),
    ],
    ids=repr,
)
def test_who_fails_alone_does_not_wait_for_the_others(
    error: Exception | None, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With NCCL all have to leave, and they wait for the one that failed."""
    left = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: left.append(True))
    with pytest.raises(type(error)) if error else nullcontext(), distributed.joined():
        if error:
            raise error
    assert bool(left) == leaves


def test_why_processes_cannot_communicate_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    cause = "Last error:\nDuplicate GPU detected : rank 0 and rank 1 both on CUDA device 50000"
    with pytest.raises(JobError, match="on CUDA device 50000"), distributed.joined():
        raise torch.distributed.DistBackendError(f"NCCL error in: NCCLUtils.cpp:94, {cause}")


def test_one_process_speaks_and_writes(runs: Path) -> None:
    told = (runs / "both" / "train.log").read_text()
    assert told.count("2 processes share each batch of 5; batch norm: frozen") == 1
    assert told.count("done: ") == 1
    assert len((runs / "both" / "results.csv").read_text().splitlines()) == 4


def test_alone_everything_is_what_was_given() -> None:
    given = torch.arange(6.0)
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert distributed.share(6) == slice(0, 6)
    assert distributed.share_weight(6) == 1
    assert distributed.gather(given, 6) is given
    assert distributed.mean(given) is given
    assert (distributed.agree(15), distributed.agree(None)) == (15, None)
    network = torch.nn.Linear(1, 1)
    assert distributed.data_parallel(network, torch.device("cpu")) is network


@pytest.mark.parametrize("count", [4, 5, 11])
def test_shares_make_up_the_whole(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    taken, weights = [], []
    for number in range(3):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        taken += list(range(count))[distributed.share(count)]
        weights.append(distributed.share_weight(count))
    assert taken == list(range(count))
    assert sum(weights) == pytest.approx(3)


def test_one_gpu_is_not_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="'cuda:0' would be that of all 2 processes; give each"):
        pick_device("cuda:0")
    assert pick_device("cpu").type == "cpu"


def test_what_several_processes_cannot_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    cpu = torch.device("cpu")
    _check_shares(4, "train", cpu)
    with pytest.raises(UsageError, match="2 processes share steps of 3 pictures, each needs 2"):
        _check_shares(3, "train", cpu)
    with pytest.raises(UsageError, match="synced works on GPUs only"):
        _check_shares(64, "synced", cpu)


def test_wrong_use_is_told_by_all_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    run = ["pretrain", str(tmp_path), "--out", str(tmp_path / "used")]
    done = torchrun("-m", "tinyssl", *run, cwd=Path(__file__).parent.parent)
    assert done.returncode != 0
    assert "is not empty; go on with --resume" in done.stderr
    assert "a fault of tinyssl" not in done.stderr
