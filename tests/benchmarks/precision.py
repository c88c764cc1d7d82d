"""A network's training step on a CPU in float32 and with bf16 autocast, in turn.

    python -m tests.benchmarks.precision --out tests/benchmarks/results/precision-cpu.json

Forward and backward of the backbone alone, on one batch, with tinyssl's convolutions on small maps.
`run.precision=auto` goes by what this found, see `tinyssl.device.use_bf16`.
"""

import argparse
import json
import statistics
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

BATCH, STEPS = 64, 4
CASES = [
    ("resnet18", "standard", 64), ("resnet18", "standard", 96), ("resnet18", "small", 32),
    ("mobilenetv3-small", "standard", 64), ("efficientnet-lite0", "standard", 72),
]  # fmt: skip


def measure(name: str, stem: str, size: int, threads: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step, round by round, and the median, least and most of the ratios."""
    torch.set_num_threads(threads)
    network = create_encoder(name, stem=stem, seed=0).train()
    network.to(memory_format=torch.channels_last)
    quicken_small_maps(network)
    views = torch.rand(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
    pairs = [(steps(network, views, False), steps(network, views, True)) for _ in range(rounds + 1)]
    ratios = [full / half for full, half in pairs[1:]]
    return {
        "backbone": name, "stem": stem, "view_size": size, "batch": BATCH, "threads": threads,
        "fp32_ms": [full for full, _ in pairs[1:]], "bf16_ms": [half for _, half in pairs[1:]],
        "ratio_median": statistics.median(ratios), "ratio_min": min(ratios),
        "ratio_max": max(ratios), "n": rounds,
    }  # fmt: skip


def steps(network: nn.Module, views: Tensor, bf16: bool) -> float:
    """Milliseconds of one, a mean of some."""
    start = time.perf_counter()
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = network(views)
        features.float().square().mean().backward()
        network.zero_grad()
    return (time.perf_counter() - start) / STEPS * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    given = parser.parse_args()
    keep_freed_memory()
    found = [measure(*case, threads, given.rounds) for threads in given.threads for case in CASES]
    about = {"cpu_has_bf16": torch.cpu.get_capabilities().get("avx512_bf16", False)}
    write_text(given.out, json.dumps({"machine": machine()} | about | {"results": found}, indent=1))


if __name__ == "__main__":
    main()
