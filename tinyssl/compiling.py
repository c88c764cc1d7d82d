"""Decides whether to compile network and loss, and whether to replay steps as CUDA graphs."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinyssl.errors import UsageError

# Compiling takes a minute or two and saves a replayed step a few ms at most.
WORTH_STEPS = 50_000


def settle_compile(setting: str, device: torch.device, steps: int) -> tuple[bool, str]:
    """Whether to compile, and the reason in words.

    Args:
        setting: `run.compile`: auto, on, graphs or off.
        device: of the network.
        steps: number that the run has left.

    Raises:
        UsageError: on or graphs, where that is not possible.
    """
    lacking = missing(device)
    if setting == "graphs" and device.type != "cuda":
        raise UsageError("run.compile=graphs records CUDA graphs; on a CPU take on or off")
    if setting == "on":
        if lacking is not None:
            raise UsageError(f"run.compile=on, but there is no {lacking}; take auto or off")
        return True, "run.compile=on"
    if setting in ("graphs", "off"):
        return False, f"run.compile={setting}"
    if device.type != "cuda":
        return False, "auto: it pays on GPUs"
    if lacking is not None:
        return False, f"auto: there is no {lacking}"
    reason = f"auto: {steps:,} steps, worth it from {WORTH_STEPS:,}"
    return steps >= WORTH_STEPS, reason


def settle_recording(setting: str, device: torch.device, processes: int, bank_device: str) -> bool:
    """Whether to replay steps as CUDA graphs: on a GPU, unless `run.compile` is off.

    Args:
        setting: `run.compile`.
        device: of the network.
        processes: of the run; several communicate within a step.
        bank_device: `bank.device`; a bank on the host synchronizes within a step.

    Raises:
        UsageError: `run.compile` is graphs, and these steps cannot be recorded.
    """
    alone = processes == 1 and bank_device == "run"
    if setting == "graphs" and not alone:
        raise UsageError(
            "run.compile=graphs records the steps of one process with its bank on the GPU; take "
            "auto or off, or bank.device=run in one process"
        )
    return setting != "off" and device.type == "cuda" and alone


def compiled(
    network: nn.Module, losses: Callable[..., Any], setting: str
) -> tuple[nn.Module, Callable[..., Any]]:
    """The same functions, compiled at their first call.

    With the setting `auto`, what cannot be compiled runs uncompiled.
    """
    if setting == "auto":
        torch._dynamo.config.suppress_errors = True
    fast: Any = torch.compile(network)
    return fast, torch.compile(losses)


def missing(device: torch.device) -> str | None:
    """What compiling for a device needs and is not installed; None if nothing."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "triton"
    given = [os.environ.get("CC"), os.environ.get("CXX")]
    if not any(shutil.which(name) for name in [*given, "g++", "gcc", "clang", "cc"] if name):
        return "C++ compiler"
    # Debian's own Python has them in the second place only, one that was moved in the first only.
    places = (sysconfig.get_path("include"), sysconfig.get_config_var("INCLUDEPY"))
    if not any(Path(place, "Python.h").exists() for place in places if place):
        return "Python.h (python3-dev)"
    return None
