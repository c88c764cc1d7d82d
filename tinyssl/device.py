"""The device and the precision to train with."""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from threading import Lock
from typing import Any

import torch

from tinyssl.errors import JobError, UsageError, first_line

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt
_SMALLEST_BF16_VIEW = 32  # pixels a side, on a CPU


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, or else the CPU.

    Under `torchrun`, `auto` and `cuda` are a different device for each process.

    Raises:
        UsageError: not a device, not on this machine, or the same for several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    elif name.startswith("cuda:") and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"device {name!r} would be that of all {os.environ['LOCAL_WORLD_SIZE']} processes; "
            "give each its own with cuda or auto"
        )
    allowed = "allowed: auto, cpu, cuda, cuda:N"
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"device: got {name!r}, {allowed}")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"device {name!r} cannot be used here ({first_line(error)}); {allowed}"
        ) from None
    return device


def training_device(name: str) -> torch.device:
    """As `pick_device`; a GPU becomes the current one of the process.

    Triton kernels, streams and CUDA graphs use the current GPU, wherever their tensors are.
    """
    device = pick_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def _once(
    context: Callable[[], AbstractContextManager[None]],
) -> Callable[[], AbstractContextManager[None]]:
    """Enters a context once around all its uses at a time, as by threads of a server.

    Otherwise the first to end would put a setting back under the others, and the last would put
    back what the first had set.
    """
    lock, held, users = Lock(), ExitStack(), 0

    @wraps(context)
    @contextmanager
    def shared() -> Iterator[None]:
        nonlocal users
        with lock:
            if not users:
                held.enter_context(context())
            users += 1
        try:
            yield
        finally:
            with lock:
                users -= 1
                if not users:
                    held.close()

    return shared


@_once
@contextmanager
def torch_put_back() -> Iterator[None]:
    """Restores torch's random state and the cuDNN setting that a run changes."""
    before = torch.backends.cudnn.deterministic
    # Asking for the devices must not initialize CUDA.
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(range(torch.cuda.device_count()) if started else []):
        try:
            yield
        finally:
            torch.backends.cudnn.deterministic = before


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether to use bf16 autocast: `auto` does so on CUDA devices that support it.

    Those before Ampere (T4, V100) only emulate it. On CPUs it helped ResNets and hurt MobileNets,
    so there it has to be asked for.
    """
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def check_bf16(precision: str, device: torch.device, view_size: int) -> None:
    """Refuses bf16 where gradients would be wrong.

    oneDNN leaves parts of a weight's gradient unwritten where a convolution of stride 2 sees a map
    of 1 pixel (torch 2.14), and networks have strides of 32 in all.

    Raises:
        UsageError: bf16 on a CPU with views of fewer than 32 pixels.
    """
    if precision == "bf16" and device.type == "cpu" and view_size < _SMALLEST_BF16_VIEW:
        raise UsageError(
            f"run.precision=bf16 with augment.view_size={view_size}: on a CPU bf16 needs views of "
            f"at least {_SMALLEST_BF16_VIEW} pixels; give run.precision=fp32"
        )


@_once
@contextmanager
def full_float32() -> Iterator[None]:
    """Convolutions in float32 as on a CPU; by default a GPU rounds their input to 10 bits (TF32).

    Features would differ from those of the bundle, and descriptors see differences as small.
    """
    cudnn: Any = torch.backends.cudnn
    newer = hasattr(cudnn, "conv")  # than torch 2.8
    place, name = (cudnn.conv, "fp32_precision") if newer else (cudnn, "allow_tf32")
    before = getattr(place, name)
    setattr(place, name, "ieee" if newer else False)
    try:
        yield
    finally:
        setattr(place, name, before)


@contextmanager
def memory_told(advice: str) -> Iterator[None]:
    """Raises JobError, with what to do, where a GPU's memory is full."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        told = ". ".join(first_line(error).split(". ")[:2])  # the rest tells of torch's pools
        raise JobError(f"{told}; {advice}") from error


def keep_freed_memory() -> None:
    """Makes this process keep large blocks of freed memory instead of returning them.

    glibc returns each freed tensor of some MB to the system, which zeroes the pages anew for the
    next one: about a fifth of a training step's time on a CPU. Does nothing on other systems.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:  # musl has none
            set_option(_MMAP_MAX, 0)
            set_option(_TRIM_THRESHOLD, 2**31 - 1)
