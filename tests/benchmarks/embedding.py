"""Speed of `tinyssl embed`, from picture files to the result, relative to the encoder alone.

    python -m tests.benchmarks.embedding RUN PICTURES --out results/embed-cpu.json

In one process and in turn: the whole job (reading, decoding, resizing, features, parts, the final
file) against as many forward passes alone of one prepared batch.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.benchmarks.machine import machine
from tinyssl.data import load_pictures
from tinyssl.embedding import embed_paths
from tinyssl.extraction import Extractor, open_extractor
from tinyssl.scanning import scan


def whole_job(extractor: Extractor, paths: list[Path], batch: int, workers: int) -> float:
    """Seconds from picture files to the feature file."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        embed_paths(extractor, paths, Path(folder) / "f.npz", batch_size=batch, workers=workers)
        return time.perf_counter() - start


def bare(extractor: Extractor, pictures: np.ndarray, count: int) -> float:
    """Seconds of the encoder alone on `count` pictures."""
    start = time.perf_counter()
    for _ in range(0, count, len(pictures)):
        extractor.features(pictures)
    return (time.perf_counter() - start) * count / (-(-count // len(pictures)) * len(pictures))


def decode_only(extractor: Extractor, paths: list[Path]) -> float:
    """Seconds of reading, decoding and resizing in one thread."""
    start = time.perf_counter()
    for path in paths:
        extractor.read(path)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("pictures")
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cached", action="store_true", help="decode into the cache beforehand")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    logging.getLogger("tinyssl").setLevel(logging.WARNING)
    extractor = open_extractor(given.run, device=given.device)
    found = scan([given.pictures])
    paths = [
        found[i] for i in np.linspace(0, len(found) - 1, min(given.count, len(found)), dtype=int)
    ]
    if given.cached:
        load_pictures(
            paths, size=extractor.size, rule=extractor.rule, channels=extractor.channels,
            max_pixels=extractor.max_pixels,
        )  # fmt: skip
    ready = np.stack([extractor.read(path)[1] for path in paths[: given.batch]])
    extractor.features(ready)
    rows = []
    for _ in range(given.rounds):
        seconds = bare(extractor, ready, len(paths))
        job = whole_job(extractor, paths, given.batch, given.workers)
        rows.append({"bare_per_s": len(paths) / seconds, "job_per_s": len(paths) / job})
        print(rows[-1])
    ratio = statistics.median(row["job_per_s"] / row["bare_per_s"] for row in rows)
    result = {
        "machine": machine(),
        "pictures": len(paths),
        "batch": given.batch,
        "cached": given.cached,
        "image_size": extractor.size,
        "rounds": rows,
        "ratio_median": ratio,
        "decode_per_s_one_thread": len(paths) / decode_only(extractor, paths),
    }
    print({k: v for k, v in result.items() if k.endswith(("median", "thread"))})
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
