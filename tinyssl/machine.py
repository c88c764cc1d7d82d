"""The machine of a run, and the time and memory it took."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from tinyssl import __version__

MACHINE = "machine.json"


def machine_facts(device: torch.device, seconds: float) -> dict[str, Any]:
    """Versions, processor, device and peak memory of this process; JSON-ready.

    Args:
        device: of the training.
        seconds: of training.
    """
    gpu, peak = device.type == "cuda", peak_memory()
    return {
        "tinyssl": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if gpu else str(device),
        "seconds": round(seconds, 1),
        "peak_memory_mb": peak and round(peak / 1e6),
        "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated(device) / 1e6) if gpu else None,
    }


def processor() -> str:
    """The processor's name, as far as the system provides it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_memory() -> int | None:
    """Peak memory of this process in bytes; None where the system does not provide it."""
    try:
        # The peak of getrusage starts at that of the parent process.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        lines = dict(line.split(":", 1) for line in status.splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        pass
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
