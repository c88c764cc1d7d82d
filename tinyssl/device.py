"""Which device to train on, and in which precision."""

import torch

from tinyssl.errors import UsageError


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, or else the CPU.

    Raises:
        UsageError: not a device, or not one of this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"device {name!r} cannot be used here ({reason}); allowed: auto, cpu, cuda, cuda:N"
        ) from None
    return device


def use_bf16(precision: str, device: torch.device) -> bool:
    """bf16 autocast where it is known to help: `auto` takes it on CUDA devices that have it.

    On CPUs it helped ResNets and hurt MobileNets, so there it has to be asked for.
    """
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision == "bf16"
