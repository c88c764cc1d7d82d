"""An epoch of tinyssl against one of lightly-train, each from its own command line.

Seconds of an epoch are those that additional epochs take, so that start-up, decoding into the cache
and writing at the end are excluded. tinyssl runs eight times as many additional epochs, on a GPU
eighty times, since start-up times vary by as much as many of its epochs take.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.epochs import sample, spread
from tests.benchmarks.step import cached_size
from tinyssl.backbones import resolve_name
from tinyssl.config import load_recipe

METHODS = ("simclr", "dino")
Command = Callable[[int, Path], list[str]]


def measure(
    paths: list[Path],
    *,
    count: int,
    recipe: str,
    size: int,
    batch: int,
    rounds: int,
    device: str,
    program: str | None,
) -> Any:
    """Pictures/s of each in turn and tinyssl's ratio to each peer; a string if there is no peer.

    Raises:
        CalledProcessError: a command failed.
    """
    if program is None:
        return "not run: --lightly-train names its program"
    more = {"tinyssl": 24 if device == "cpu" else 240}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = sample(paths, count, folder / "pictures")
        backbone = resolve_name(load_recipe(recipe).encoder.name)
        commands: dict[str, Command] = {
            "tinyssl": _tinyssl(pictures, recipe, size, batch, device, folder / "cache"),
        }
        for method in METHODS:
            commands[method] = _peer(program, method, pictures, backbone, size, batch, device)
        seen = count // batch * batch
        rows = [
            {
                key: seen / _epoch(command, folder / f"{key}{n}", more.get(key, 3))
                for key, command in commands.items()
            }
            for n in range(rounds)
        ]
    return {
        "recipe": recipe, "view_size": size, "batch": batch, "pictures": seen, "device": device,
        "pictures_per_s": rows,
        "ratios": {method: spread([r["tinyssl"] / r[method] for r in rows]) for method in METHODS},
    }  # fmt: skip


def _tinyssl(
    pictures: Path, recipe: str, size: int, batch: int, device: str, cache: Path
) -> Command:
    def command(epochs: int, out: Path) -> list[str]:
        return [
            sys.executable, "-m", "tinyssl", "pretrain", str(pictures), "--recipe", recipe,
            "--out", str(out), f"run.epochs={epochs}", "run.watch_every=0", f"run.device={device}",
            f"optim.batch_size={batch}", f"augment.view_size={size}", "data.channels=3",
            "encoder.init=random", f"data.image_size={cached_size(size)}",
            f"data.cache_dir={cache}",
        ]  # fmt: skip

    return command


def _peer(
    program: str, method: str, pictures: Path, backbone: str, size: int, batch: int, device: str
) -> Command:
    views = f"{{'image_size': [{size}, {size}]}}"
    precision = "32-true" if device == "cpu" else "bf16-mixed"

    def command(epochs: int, out: Path) -> list[str]:
        return [
            program, "pretrain", f"out={out}", f"data={pictures}", f"model=timm/{backbone}",
            f"method={method}", f"epochs={epochs}", f"batch_size={batch}",
            f"transform_args={views}", f"accelerator={device}", f"precision={precision}",
        ]  # fmt: skip

    return command


def _epoch(command: Command, out: Path, more: int) -> float:
    short, long = (
        _seconds(command(epochs, out.with_name(f"{out.name}-{epochs}"))) for epochs in (1, 1 + more)
    )
    return (long - short) / more


def _seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start
