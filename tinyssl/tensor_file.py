"""Safe reading of files of `torch.save`, without running code that they may contain."""

import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from tinyssl.errors import UsageError

# What torch's reader raises for damaged files and false sizes.
_BROKEN = (
    RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AssertionError, MemoryError,
    OverflowError, TypeError, AttributeError, RecursionError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def read_tensors(path: Path) -> Any:
    """Tensors, numbers, strings, lists and dicts that `torch.save` wrote, on the CPU.

    Raises:
        UsageError: not such a file, damaged, or it holds objects that could run code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the error is enough
            _refuse_bomb(path)
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            _refuse_odd_tensors(loaded)
            return loaded
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} is damaged or holds more than tensors, and is not opened, since it could run "
            "code; where you trust it, convert it to safetensors"
        ) from error
    except _BROKEN as error:
        reason = (str(error) or "cut short").partition("\n")[0]
        raise UsageError(f"{path} is damaged or not a file of tensors: {reason}") from error


def _refuse_bomb(path: Path) -> None:
    """Refuses compression, which torch never uses: a small file could fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        compressed = [m for m in archive.infolist() if m.compress_type != zipfile.ZIP_STORED]
        size = sum(member.file_size for member in archive.infolist())
    if compressed or size > path.stat().st_size:
        raise ValueError(f"it claims {size:,} bytes of tensors, compressed or not there")


def _refuse_odd_tensors(value: Any) -> None:
    """Refuses sparse, quantized and expanded tensors, which are too large or unsafe to modify."""
    if isinstance(value, torch.Tensor):
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not plain or value.is_quantized or value.untyped_storage().nbytes() < value.nbytes:
            raise ValueError("it holds a tensor that is sparse, quantized or not wholly there")
    elif isinstance(value, dict):
        for item in value.values():
            _refuse_odd_tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_odd_tensors(item)
