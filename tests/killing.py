"""Jobs that are killed (SIGKILL) at chosen moments, in children of one process, and begun again.

A process of its own, so that torch is loaded once and forked before it has threads:

    python tests/killing.py DATA WORK KILLS SEED

Prints one JSON object: what was killed where, and what differs from a run that was never touched.
"""

import csv
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinyssl.checkpoint import load_checkpoint
from tinyssl.console import log
from tinyssl.pretraining import pretrain

QUICK = [
    "encoder.name=test_resnet", "data.image_size=16", "augment.view_size=16", "head.hidden=8",
    "head.width=8", "optim.batch_size=6", "run.epochs=3", "run.log_every=1", "run.watch_every=1",
    "run.workers=1", "run.device=cpu",
]  # fmt: skip
_FILES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir")
_TIMES = {"time", "pictures_per_s"}


def in_child(job: Callable[[], object], *, event: int = 0, seconds: float = 0) -> int:
    """Runs a job in a child that is killed at its n-th file event, or after some seconds.

    Returns:
        The child's exit status, -9 if it was killed.
    """
    child = os.fork()
    if child == 0:
        _work(job, event)
    if seconds:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _work(job: Callable[[], object], event: int) -> None:
    count = 0

    def kill(name: str, arguments: Any) -> None:
        nonlocal count
        if name in _FILES and not (name == "open" and str(arguments[0]).startswith("/proc")):
            count += 1
            if count == event:
                os.kill(os.getpid(), signal.SIGKILL)

    if event:
        sys.addaudithook(kill)
    try:
        job()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def count_events(job: Callable[[], object]) -> tuple[int, float]:
    """File events and seconds of a job that is left alone."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        counted = [0]

        def count(name: str, arguments: Any) -> None:
            counted[0] += name in _FILES and not str(arguments[0]).startswith("/proc")

        def counting() -> None:
            sys.addaudithook(count)
            job()
            os.write(writer, str(counted[0]).encode())

        _work(counting, 0)
    start = time.monotonic()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, "the job fails by itself"
    return int(os.read(reader, 20)), time.monotonic() - start


def go_on(data: str, out: Path) -> None:
    """What a person does after a power cut: resume, or begin again if there is nothing."""
    if (out / "recipe.yaml").is_file():
        pretrain(out=out, resume=True)
    else:
        pretrain(data, out=out, overrides=QUICK, overwrite=True)


def differences(one: Path, other: Path) -> list[str]:
    """Files of two runs that say other things, times aside."""
    found = []
    states = [load_checkpoint(run / "checkpoints" / "last.pt")["method"] for run in (one, other)]
    if any(not torch.equal(states[0][key], states[1][key]) for key in states[0]):
        found.append("last.pt")
    for name in ("encoder.safetensors", "encoder.json", "recipe.yaml", "skipped.csv"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    for name, read in (("metrics.jsonl", metrics), ("results.csv", results)):
        if read(one) != read(other):
            found.append(name)
    return found + [p.name for p in other.rglob(".*")]


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, without times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in _TIMES} for line in lines]


def results(run: Path) -> list[dict[str, str]]:
    """The rows of a run's `results.csv`, without times."""
    with (run / "results.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in _TIMES} for row in csv.DictReader(file)]


def main(data: str, work: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kills runs, three times each at most, until so many kills are done."""
    for handler in list(log.handlers):
        log.removeHandler(handler)
    draw = random.Random(seed)
    os.environ["TINYSSL_CACHE"] = str(work / "cache-whole")
    events, seconds = count_events(lambda: go_on(data, work / "whole"))
    told: dict[str, Any] = {"events": events, "kills": [], "failed": [], "differ": {}}
    number = 0
    while len(told["kills"]) < kills:
        number += 1
        run, cache = work / f"run{number}", work / f"cache{number}"
        os.environ["TINYSSL_CACHE"] = str(cache)
        for turn in range(min(3, kills - len(told["kills"]))):
            timed = (len(told["kills"]) + turn) % 3 == 2
            moment = {"seconds": draw.uniform(0, seconds)} if timed else {
                "event": draw.randint(1, events)
            }  # fmt: skip
            status = in_child(lambda: go_on(data, run), **moment)  # noqa: B023
            told["kills"].append([number, moment, status])
            if status not in (0, -9):
                told["failed"].append([number, status])
        if in_child(lambda: go_on(data, run)):  # noqa: B023
            told["failed"].append([number, "could not go on"])
        elif found := differences(work / "whole", run):
            told["differ"][number] = found
        left = [p.name for p in cache.iterdir()]
        if len(left) != 1 or left[0].startswith("."):
            told["differ"].setdefault(number, []).append(f"cache: {left}")
    return told


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
