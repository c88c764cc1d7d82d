"""A network's training step with torch's convolutions and with `tinyssl.small_maps`, in turn.

    python -m tests.benchmarks.small_maps --out tests/benchmarks/results/small-maps-cpu.json

Measures forward and backward passes of the backbone alone, on one batch. Every pair also runs as on
a CPU without AVX-512; oneDNN and MKL read that when a process starts, hence one process for each.
"""

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.machine import machine
from tinyssl.device import keep_freed_memory
from tinyssl.encoder import create_encoder
from tinyssl.files import write_text
from tinyssl.small_maps import quicken_small_maps

BATCH, STEPS = 64, 6
CASES = [
    ("mobilenetv3-small", 64), ("mobilenetv3-small", 96), ("mobilenetv3-large", 64),
    ("mobilenetv2", 64), ("mobilenetv4-small", 64), ("efficientnet-lite0", 72), ("resnet18", 64),
    ("resnet18", 96), ("resnet18", 128),
]  # fmt: skip


def measure(name: str, size: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step by round, and the median, minimum and maximum of the ratios."""
    torch.manual_seed(0)
    plain = create_encoder(name).backbone.train().to(memory_format=torch.channels_last)
    quick = copy.deepcopy(plain)
    quicken_small_maps(quick)
    views = torch.rand(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
    steps(plain, views), steps(quick, views)
    pairs = [(steps(plain, views), steps(quick, views)) for _ in range(rounds)]
    ratios = [one / other for one, other in pairs]
    return {
        "backbone": name, "view_size": size, "batch": BATCH,
        "torch_ms": [one for one, _ in pairs], "small_maps_ms": [other for _, other in pairs],
        "ratio_median": statistics.median(ratios), "ratio_min": min(ratios),
        "ratio_max": max(ratios), "n": rounds,
    }  # fmt: skip


def steps(network: nn.Module, views: Tensor) -> float:
    """Mean milliseconds of a step."""
    start = time.perf_counter()
    for _ in range(STEPS):
        network(views).square().mean().backward()
        network.zero_grad()
    return (time.perf_counter() - start) / STEPS * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    keep_freed_memory()
    if given.out is None:
        print(json.dumps([measure(*case, given.rounds) for case in CASES]))
        return
    found = {}
    for isa in ("DEFAULT", "AVX2"):
        settings = {"ONEDNN_MAX_CPU_ISA": isa}
        if isa == "AVX2":
            settings["MKL_ENABLE_INSTRUCTIONS"] = isa
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __spec__.name, "--rounds", str(given.rounds)],
            env=os.environ | settings, check=True, capture_output=True,
        )  # fmt: skip
        found[f"instructions: {isa}"] = json.loads(ran.stdout)
    write_text(given.out, json.dumps({"machine": machine()} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
