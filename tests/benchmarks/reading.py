"""Time before the first step: start-up of the command, scan and cache of pictures."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from tests.benchmarks.epochs import sample, spread
from tinyssl.data import load_pictures
from tinyssl.scanning import scan


def start_up(paths: list[Path], rounds: int, device: str) -> dict[str, Any]:
    """Seconds of `tinyssl --help`, and from the command to its first step with a warm cache."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = sample(paths, 256, folder / "pictures")
        helps, firsts = [], []
        for number in range(rounds + 1):
            helps.append(_seconds(lambda: _command("--help")))
            out = folder / str(number)
            firsts.append(_first_step(pictures, out, folder / "cache", device))
    return {"help_s": spread(helps[1:]), "first_step_s": spread(firsts[1:])}


def _command(*arguments: str) -> None:
    command = [sys.executable, "-m", "tinyssl", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def _first_step(pictures: Path, out: Path, cache: Path, device: str) -> float:
    """Seconds until the line of the first step is written; the run is then stopped.

    Raises:
        CalledProcessError: the run ended before.
    """
    settings = [f"data.cache_dir={cache}", "run.log_every=1", f"run.device={device}"]
    command = [sys.executable, "-m", "tinyssl", "pretrain", str(pictures), "--out", str(out)]
    start = time.perf_counter()
    process = subprocess.Popen([*command, *settings], stderr=subprocess.DEVNULL)
    while not (out / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.005)
    seconds = time.perf_counter() - start
    if not (out / "metrics.jsonl").exists():
        raise subprocess.CalledProcessError(process.returncode, command)
    process.terminate()
    process.wait()
    return seconds


def reading(paths: list[Path], count: int, rounds: int, workers: int) -> dict[str, Any]:
    """Pictures/s of the scan, the cache, and Pillow alone on as many threads, in turn.

    Pillow alone decodes and resizes; the cache also reads headers first, keeps depth and
    orientation, hashes the bytes and writes the result.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = sample(paths, count, folder / "pictures")
        rows = [_read_once(pictures, folder / str(n), workers) for n in range(rounds + 1)][1:]
    return {
        "pictures": count,
        "workers": workers,
        "pictures_per_s": rows,
        "cache_over_pillow": spread([row["cache"] / row["pillow"] for row in rows]),
    }


def _read_once(pictures: Path, cache: Path, workers: int, size: int = 128) -> dict[str, float]:
    found = scan([pictures])

    def ours() -> None:
        load_pictures(found, size=size, rule="crop", cache_dir=cache, workers=workers)

    seconds = {
        "scan": _seconds(lambda: scan([pictures])),
        "cache": _seconds(ours),
        "pillow": _seconds(lambda: _plain(found, size, workers)),
    }
    return {key: len(found) / value for key, value in seconds.items()}


def _plain(paths: list[Path], size: int, workers: int) -> None:
    def one(path: Path) -> None:
        with Image.open(path) as image:
            image.resize((size, size), Image.Resampling.BILINEAR)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, paths))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
