"""Speed of tinyssl in one command: every figure with n and spread, and the machine.

    python -m tests.benchmarks.speed --out tests/benchmarks/results/speed-cpu.json
    python -m tests.benchmarks.speed --out ... --device cuda --recipe resnet18 --size 224
    python -m tests.benchmarks.speed --out ... --only step,epoch --pictures 512 --rounds 3

Pictures are those of the package elpv-dataset, or of --data, in class folders if quality is to be
measured. What is compared runs in turn in one process, so that a loaded machine widens the spread
more than it shifts the ratios. The file is rewritten after every part.
"""

import argparse
import json
import logging
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import bank_curve, commands, epochs, operators, quality_time, reading, step
from tests.benchmarks.machine import machine
from tinyssl.demo import elpv
from tinyssl.scanning import scan

NOT_RUN = "not yet run: needs a GPU"


def parts(
    given: argparse.Namespace, paths: list[Path], names: list[str]
) -> dict[str, Callable[[], Any]]:
    """The measurements by name, in the order in which they run."""
    gpu = given.device == "cuda"
    few = given.pictures if gpu else min(given.pictures, 1024)
    larger = (
        f"augment.view_size={given.size}", f"optim.batch_size={given.batch}",
        f"data.image_size={step.cached_size(given.size)}",
    )  # fmt: skip
    ways = given.compile.split(",") if gpu else ["off"]
    compiling = [(f"run.compile={way}",) for way in ways]
    return {
        "step": lambda: [
            step.measure(given.recipe, few, channels, given.rounds, given.device, settings + how)
            for settings in ((), larger)
            for channels in (1, 3)
            for how in compiling
        ],
        "epoch": lambda: epochs.measure(
            paths, count=given.pictures, recipe=given.recipe, size=given.size, batch=given.batch,
            rounds=given.rounds, device=given.device,
        ),
        "quality": lambda: quality_time.measure(
            paths, names, recipe=given.recipe, size=given.size, batch=given.batch,
            epochs=given.epochs, seeds=given.seeds, device=given.device,
        ),
        "commands": lambda: commands.measure(
            paths, count=few, recipe=given.recipe, size=given.size, batch=given.batch,
            rounds=given.rounds, device=given.device, program=given.lightly_train,
        ),
        "start": lambda: reading.start_up(paths, given.rounds, given.device),
        "reading": lambda: reading.reading(
            paths, given.pictures, given.rounds, os.cpu_count() or 1
        ),
        "bank": lambda: list(
            bank_curve.curve(given.bank, 128, 512, given.rounds, given.device, given.memory)
        ),
        "profile": lambda: operators.top(given.recipe, few, 3, given.device),
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--only", default="", help="parts, with commas; all when empty")
    parser.add_argument("--data", help="a folder of pictures instead of the demo's")
    parser.add_argument("--recipe", default="mobilenetv3-small")
    parser.add_argument("--size", type=int, default=96, help="pixels a side of views")
    parser.add_argument("--batch", type=int, default=128, help="pictures a step")
    parser.add_argument("--compile", default="off,on,graphs", help="of steps on a GPU")
    parser.add_argument("--epochs", type=int, default=5, help="of SimCLR, quality only")
    parser.add_argument("--seeds", type=int, default=2, help="quality only")
    parser.add_argument("--lightly-train", help="its program, in an environment of its own")
    parser.add_argument("--pictures", type=int, default=2624)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=float, default=8.0, help="GB that one bank may take")
    parser.add_argument(
        "--bank", type=lambda text: tuple(map(int, text.split(","))), default=bank_curve.SIZES,
        help="numbers of pictures for the bank's curve",
    )  # fmt: skip
    return parser.parse_args()


def main() -> None:
    given = arguments()
    logging.getLogger("tinyssl").setLevel(logging.WARNING)
    paths, names = _pictures(given.data)
    told: dict[str, Any] = {"machine": machine() | {"peers": _peers()}, "cuda": NOT_RUN}
    if given.device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("no GPU here; its figures stay: " + NOT_RUN)
        del told["cuda"]
    measures = parts(given, paths, names)
    wanted = given.only.split(",") if given.only else list(measures)
    if unknown := set(wanted) - set(measures):
        raise SystemExit(f"no {', '.join(sorted(unknown))} among the parts: {', '.join(measures)}")
    for name in wanted:
        told[name] = measures[name]()
        print(f"{name}: {json.dumps(told[name])}", flush=True)
        given.out.write_text(json.dumps(told, indent=1) + "\n")


def _pictures(data: str | None) -> tuple[list[Path], list[str]]:
    if data is None:
        return elpv()
    paths = scan([data])
    return paths, [path.parent.name for path in paths]


def _peers() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ("lightly", "torchvision", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    main()
