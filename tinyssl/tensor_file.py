"""Files that torch wrote, read without ever running what they may hold."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from tinyssl.errors import UsageError

_BROKEN = (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AssertionError)


def read_tensors(path: Path) -> Any:
    """What `torch.save` wrote of tensors, numbers, strings, lists and dicts, on the CPU.

    Raises:
        UsageError: not such a file, damaged, or it holds objects that could run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # told of odd bytes; the error says it all
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} is damaged or holds more than tensors, and is not opened, since it could run "
            "code; where you trust it, convert it to safetensors"
        ) from error
    except _BROKEN as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{path} is damaged or not a file of tensors: {reason}") from error
