"""Files that torch wrote, read without ever running what they may hold."""

import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from tinyssl.errors import UsageError

# What torch's reader raises for broken bytes, and for sizes that are only claimed.
_BROKEN = (
    RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AssertionError, MemoryError,
    OverflowError, TypeError, AttributeError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_tensors(path: Path) -> Any:
    """What `torch.save` wrote of tensors, numbers, strings, lists and dicts, on the CPU.

    Raises:
        UsageError: not such a file, damaged, or it holds objects that could run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # told of odd bytes; the error says it all
            _refuse_bomb(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} is damaged or holds more than tensors, and is not opened, since it could run "
            "code; where you trust it, convert it to safetensors"
        ) from error
    except _BROKEN as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{path} is damaged or not a file of tensors: {reason}") from error


def _refuse_bomb(path: Path) -> None:
    """torch stores what it saves; compressed, a small file could fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        compressed = [m for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
        size = sum(member.file_size for member in archive.infolist())
    if compressed or size > path.stat().st_size:
        raise ValueError(f"it claims {size:,} bytes of tensors, compressed or not there")
