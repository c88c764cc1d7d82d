"""YAML from strangers: plain values only, and no more of them than a person would write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tinyssl.files import read_limited

_LARGEST = 1 << 24  # bytes
_MOST = 100_000  # values


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not YAML, too large, names types, or grows by aliases of aliases.
    """
    try:
        found = yaml.safe_load(read_limited(path, _LARGEST).decode("utf-8"))
        refuse_growing(found)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply, or in itself") from None
    return found


def refuse_growing(value: Any) -> None:
    """Raises ValueError where aliases, counted as what they stand for, make too many values."""
    sizes: dict[int, int] = {}

    def size(part: Any) -> int:
        if not isinstance(part, dict | list):
            return 1
        if id(part) not in sizes:
            inner = part.values() if isinstance(part, dict) else part
            sizes[id(part)] = 1 + sum(map(size, inner))
        return sizes[id(part)]

    if size(value) > _MOST:
        raise ValueError(f"more than {_MOST:,} values")
