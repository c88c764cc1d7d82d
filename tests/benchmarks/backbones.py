"""Export of every backbone after a short training: parity, size and int8 speed on the CPU.

    python -m tests.benchmarks.backbones --out tests/benchmarks/results/export-backbones.json

Each backbone is pretrained on solar cells from random weights, gray or repeated to three channels,
and exported with --force, so that int8 models which would be refused are measured too. For latency
the float32 and int8 ONNX models take turns, with batch 1 and one thread, in one process.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import elpv_dataset
import numpy as np
import onnxruntime
from tinyssl.export.exporting import export
from tinyssl.export.int8 import MIN_CENTRED

from tests.benchmarks.machine import machine
from tinyssl.backbones import BACKBONES
from tinyssl.errors import JobError
from tinyssl.pretraining import pretrain

CASES = [(name, "standard", 1) for name in BACKBONES] + [
    ("mobilenetv3-small", "standard", 3),
    ("mobilenetv3-small", "small", 3),
    ("resnet18", "small", 1),
]


def measure(name: str, stem: str, channels: int, cells: Path, folder: Path, views: int) -> Any:
    size = 32 if stem == "small" else 96
    overrides = [
        f"encoder.name={name}", f"encoder.stem={stem}", f"data.channels={channels}",
        f"data.image_size={size}", f"augment.view_size={min(size, 64)}", f"run.views={views}",
        "augment.preset=industrial", "run.watch_every=0",
    ]  # fmt: skip
    run = pretrain(cells, "mobilenetv3-small", folder / "run", overrides=overrides)
    found: dict[str, Any] = {"backbone": name, "stem": stem, "channels": channels, "models": {}}
    for target in ("onnx-int8", "jetson"):
        try:
            made = export(run, target, folder / target, force=True)
        except JobError as error:  # float16 is never forced
            found[f"{target} refused"] = str(error)
            continue
        for file, variant in made.variants.items():
            found["models"][file] = {"mb": len(variant.content) / 1e6, **variant.manifest()}
    for file, model in found["models"].items():
        if "int8" in file:
            model["refused_without_force"] = model["parity"]["centred_cosine"] < MIN_CENTRED
    files = [folder / "onnx-int8" / file for file in ("encoder.onnx", "encoder.int8.onnx")]
    return found | latencies(files, (1, size, size, channels))


def latencies(files: Sequence[Path], shape: tuple[int, ...], rounds: int = 11) -> dict[str, Any]:
    """Median ms of both models, which take turns, over the rounds, and the ratios of rounds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [onnxruntime.InferenceSession(str(f), options) for f in files]
    picture = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    times: list[list[float]] = [[] for _ in files]
    for _ in range(rounds + 1):
        for kept, session in zip(times, sessions, strict=True):
            kept.append(1e3 * statistics.median(once(session, picture) for _ in range(30)))
    ratios = [a / b for a, b in zip(*(t[1:] for t in times), strict=True)]
    return {
        "float32_ms": statistics.median(times[0][1:]),
        "int8_ms": statistics.median(times[1][1:]),
        "int8_speedup_median": statistics.median(ratios),
        "int8_speedup_min": min(ratios),
        "int8_speedup_max": max(ratios),
        "rounds": rounds,
    }


def once(session: Any, picture: Any) -> float:
    start = time.perf_counter()
    session.run(None, {"pictures": picture})
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--views", type=int, default=8000, help="of each pretraining")
    parser.add_argument("--pictures", type=int, default=1000)
    given = parser.parse_args()
    images = sorted(Path(elpv_dataset.__file__).parent.rglob("cell*.png"))
    results = []
    for name, stem, channels in CASES:
        with tempfile.TemporaryDirectory() as folder:
            cells = Path(folder, "cells.txt")
            every = max(1, len(images) // given.pictures)
            cells.write_text("\n".join(map(str, images[::every])))
            found = measure(name, stem, channels, cells, Path(folder), given.views)
        results.append(found)
        told = [f"{f} {m['parity']['centred_cosine']:.4f}" for f, m in found["models"].items()]
        print(f"{name} {stem} {channels}: {', '.join(told)}, int8 {found['int8_ms']:.2f} ms, "
              f"float32 {found['float32_ms']:.2f} ms", flush=True)  # fmt: skip
        given.out.write_text(
            json.dumps({"machine": machine(), "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
