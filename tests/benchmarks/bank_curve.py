"""Cost of a step in the memory bank alone, by the number of pictures.

    python -m tests.benchmarks.bank_curve --out tests/benchmarks/results/bank-curve-cpu.json

A step scores a batch of embeddings, computes the loss and its gradient, and updates the bank, which
is everything that grows with n. Kinds of bank that would need more than `--memory` GB are left out.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from tests.benchmarks.machine import machine
from tinyssl.bank import MemoryBank
from tinyssl.budget import negatives_for
from tinyssl.losses import instance_discrimination
from tinyssl.machine import peak_memory

SIZES = (3_000, 30_000, 300_000, 1_000_000)
KINDS = (
    ("all rows", "float32"),
    ("all rows", "float16"),
    ("sampled", "float32"),
    ("sampled", "float16"),
)


class Steps:
    """The bank's part of a step, repeated on random embeddings."""

    def __init__(self, n: int, scored: str, dtype: str, batch: int, width: int, device: str):
        self.n, self.batch, self.sampled = n, batch, scored == "sampled"
        self.bank = MemoryBank(n, width, getattr(torch, dtype)).to(device)
        for rows in self.bank.rows.split(10_000):  # all at once would set the peak of memory
            rows.copy_(normalize(torch.randn(rows.shape, device=device), dim=1))
        self.z = normalize(torch.randn(batch, width, device=device), dim=1).requires_grad_()
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> None:
        device = self.z.device
        index = torch.randint(self.n, (self.batch,), generator=self.generator).unique().to(device)
        z, candidates, target = self.z[: len(index)], None, index
        if self.sampled:
            candidates = self.bank.candidates(index, min(16_384, self.n // 2), self.generator)
            target = torch.arange(len(index), device=device)
        scores = self.bank.scores(z, None if candidates is None else candidates.rows)
        correction = None if candidates is None else candidates.log_correction
        instance_discrimination(scores, target, 0.2, log_correction=correction).backward()
        self.bank.update_ema(index, z.detach(), 0.5, torch.ones(len(index), device=device))
        self.z.grad = None


def measure(
    n: int, scored: str, dtype: str, batch: int, width: int, rounds: int, device: str
) -> dict[str, Any]:
    """Median and range of a step in ms, and what it adds to the memory of the process in MiB."""
    before = _peak(device)
    steps = Steps(n, scored, dtype, batch, width, device)
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        steps()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    times = times[1:]  # the first is a warm-up
    return {
        "n": n,
        "scored": scored,
        "dtype": dtype,
        "auto": (negatives_for("auto", n, batch) is not None) == (scored == "sampled"),
        "ms_median": statistics.median(times),
        "ms_min": min(times),
        "ms_max": max(times),
        "rounds": rounds,
        "bank_mib": steps.bank.rows.nbytes / 2**20,
        "peak_mib": _peak(device) - before,
    }


def _peak(device: str) -> float:
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return (peak_memory() or 0) / 2**20


def needed_gb(n: int, scored: str, dtype: str, batch: int, width: int) -> float:
    """Rough need of a kind of bank in GB: rows, float32 copies of those scored, and scores."""
    rows = n if scored == "all rows" else 16_384
    copy = 4 * rows * width if scored == "sampled" or dtype == "float16" else 0
    own = n * width * (2 if dtype == "float16" else 4)
    return (own + copy + 4 * 4 * batch * rows) / 1e9


def curve(
    sizes: tuple[int, ...], batch: int, width: int, rounds: int, device: str, memory: float
) -> Iterator[dict[str, Any]]:
    """Measures all kinds of bank at all sizes."""
    for n in sizes:
        for scored, dtype in KINDS:
            if needed_gb(n, scored, dtype, batch, width) > memory:
                continue
            row = _measured_anew(n, scored, dtype, batch, width, rounds, device)
            print(
                f"{n:9,} {scored:8} {dtype}: {row['ms_median']:8.1f} ms "
                f"({row['ms_min']:.1f} to {row['ms_max']:.1f}), {row['peak_mib']:,.0f} MiB",
                flush=True,
            )
            yield row


def _measured_anew(*given: Any) -> dict[str, Any]:
    """Measures, on a CPU in a new process, since a process's peak of memory never falls."""
    if given[-1] != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return measure(*given)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=float, default=8.0, help="GB that one kind may take")
    given = parser.parse_args()
    sizes = tuple(int(n) for n in given.sizes.split(","))
    told = {"machine": machine(), "batch": given.batch, "width": given.width, "results": []}
    for row in curve(sizes, given.batch, given.width, given.rounds, given.device, given.memory):
        told["results"].append(row)
        given.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
