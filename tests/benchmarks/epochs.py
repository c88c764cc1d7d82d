"""An epoch of tinyssl against one of lightly, from the same picture files, in turn."""

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.peers import METHODS, Peer, quiet
from tests.benchmarks.step import cached_size, loop_epoch
from tinyssl.build import settle
from tinyssl.config import load_recipe
from tinyssl.run import Run
from tinyssl.run_folder import RunFolder
from tinyssl.sources import read_pictures


def tinyssl_run(pictures: Path, folder: Path, recipe: str, settings: list[str]) -> Run:
    """A run with a warm cache."""
    loaded = load_recipe(recipe, settings)
    loaded.data.sources = [str(pictures)]
    loaded.data.cache_dir = str(folder / "cache")
    found = read_pictures(loaded)
    settled = settle(loaded, len(found.paths), found.array.shape[3])
    run = Run(settled, found, RunFolder(folder / "run"), None)
    run._compile()
    return run


def sample(paths: list[Path], count: int, folder: Path) -> Path:
    """A folder with copies of evenly spaced pictures."""
    folder.mkdir()
    for number in np.unique(np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)):
        shutil.copy(paths[number], folder / f"{number:06}{paths[number].suffix}")
    return folder


def measure(
    paths: list[Path], *, count: int, recipe: str, size: int, batch: int, rounds: int, device: str
) -> dict[str, Any]:
    """Pictures/s of an epoch of each and tinyssl's ratio to each peer, round by round."""
    quiet()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = sample(paths, count, folder / "pictures")
        settings = [
            "run.epochs=1", f"run.device={device}", f"optim.batch_size={batch}",
            f"augment.view_size={size}", "encoder.init=random", "data.channels=3",
            f"data.image_size={cached_size(size)}",
        ]  # fmt: skip
        run = tinyssl_run(pictures, folder / "run", recipe, settings)
        peers = {
            method: Peer(
                method, pictures, run.method.encoder.name, size, batch, device, run.plan.bf16
            )
            for method in METHODS
        }
        ours = run.plan.steps_per_epoch * run.plan.step_size
        loop_epoch(run)  # warm-up, as for the peers below
        for peer in peers.values():
            peer.epoch()
        rows: list[dict[str, float]] = []
        memory: dict[str, float] = {}
        if device == "cuda":  # torch does not count the memory of a recorded step
            loop_epoch(run)
            plain = tinyssl_run(pictures, folder / "off", recipe, [*settings, "run.compile=off"])
            _watched(lambda: loop_epoch(plain), "tinyssl", memory, device)
        for _ in range(rounds):
            row = {"tinyssl": ours / loop_epoch(run)}
            for method, peer in peers.items():
                seen: list[int] = []

                def epoch(peer: Peer = peer, seen: list[int] = seen) -> float:
                    seconds, pictures = peer.epoch()
                    seen.append(pictures)
                    return seconds

                row[method] = 1 / _watched(epoch, method, memory, device) * seen[0]
            rows.append(row)
    return {
        "recipe": recipe, "view_size": size, "batch": batch, "pictures": count, "device": device,
        "bf16": run.plan.bf16, "pictures_per_s": rows, "peak_mib": memory or "not measured on CPUs",
        "ratios": {method: spread([r["tinyssl"] / r[method] for r in rows]) for method in METHODS},
    }  # fmt: skip


def _watched(epoch: Any, name: str, memory: dict[str, float], device: str) -> float:
    """Seconds of an epoch; on a GPU also its peak of memory above what all methods hold."""
    if device != "cuda":
        return float(epoch())
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = float(epoch())
    memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """n, median and range."""
    return {
        "n": len(values),
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }
