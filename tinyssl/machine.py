"""What a run was made on, and what it took."""

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
        device: that was trained on.
        seconds: of training.
    """
    gpu = device.type == "cuda"
    return {
        "tinyssl": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if gpu else str(device),
        "seconds": round(seconds, 1),
        "peak_memory_mb": _peak_memory_mb(),
        "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated(device) / 1e6) if gpu else None,
    }


def _processor(info: Path = Path("/proc/cpuinfo")) -> str:
    try:
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _peak_memory_mb() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6 if sys.platform == "darwin" else peak / 1e3)
