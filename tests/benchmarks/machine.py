"""The machine of a measurement, for the head of every result file."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy
import timm
import torch

import tinyssl


def machine() -> dict[str, Any]:
    """Processor, GPU, versions and the command, ready for JSON."""
    return {
        "command": " ".join([Path(sys.executable).name, *sys.orig_argv[1:]]),
        "processor": _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {
            module.__name__: module.__version__ for module in (tinyssl, torch, timm, numpy)
        },
    }


def cores() -> int:
    """Number of cores that this process may use, which `taskset` can restrict."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")
