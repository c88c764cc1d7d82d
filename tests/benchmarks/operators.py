"""Time of a whole step by operator."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.step import loop_epoch, make_run


def top(recipe: str, pictures: int, channels: int, device: str, count: int = 5) -> dict[str, Any]:
    """The operators with the most time of their own in an epoch of the loop, and their shares."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(recipe, pictures, channels, Path(folder), device)
        loop_epoch(run)  # warm-up
        kinds = [ProfilerActivity.CPU]
        if device == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        with profile(activities=kinds) as found:
            loop_epoch(run)
    key = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = sorted(found.key_averages(), key=lambda row: -getattr(row, key))
    total = sum(getattr(row, key) for row in rows)
    return {
        "recipe": recipe, "channels": channels, "device": device,
        "threads": torch.get_num_threads(),
        "operators": [
            {"name": row.key, "share": getattr(row, key) / total, "calls": row.count}
            for row in rows[:count]
        ],
    }  # fmt: skip
