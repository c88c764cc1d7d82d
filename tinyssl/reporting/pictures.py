"""Small pictures that are embedded in the page.

n = pictures, s = their side, c = channels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyssl.picture import to_depth

# (pixels a side, quality), the best first; the first that fits is used.
_STEPS = ((96, 45), (80, 40), (64, 35), (48, 25))
_MAP_BYTES = 2_900_000  # base64 makes a third more of them
_SHEET_SIDE, _SHEET_QUALITY = 128, 72


def map_thumbnails(
    array: NDArray[Any], progress: Callable[[int], None], budget: int = _MAP_BYTES
) -> list[str]:
    """Data URIs for all pictures, as large as the budget allows.

    Args:
        array: (n, s, s, c) uint8 or uint16.
        progress: called with the number of newly finished pictures.
        budget: bytes in total.
    """
    sample = array[:: max(1, len(array) // 100)]
    fitting = [step for step in _STEPS if _mean_bytes(sample, *step) * len(array) <= budget]
    side, quality = fitting[0] if fitting else _STEPS[-1]
    uris = []
    for picture in array:
        uris.append(data_uri(encode(picture, side, quality)))
        progress(1)
    return uris


def sheet_uri(picture: NDArray[Any]) -> str:
    """A data URI of a picture (s, s, c) or of a view (c, s, s) in [0, 1], for sheets."""
    if np.issubdtype(picture.dtype, np.floating):
        picture = np.rint(picture.clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return data_uri(encode(picture, _SHEET_SIDE, _SHEET_QUALITY))


def data_uri(content: bytes) -> str:
    """WebP as a data URI."""
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"


def encode(picture: NDArray[Any], side: int, quality: int) -> bytes:
    """(s, s, c) as WebP of at most `side` pixels; gray, RGB, or the first channels of others."""
    eight = to_depth(picture, np.uint8)
    plain = eight[..., :3] if eight.shape[2] >= 3 else eight[..., 0]
    image = Image.fromarray(np.ascontiguousarray(plain))
    if image.width > side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()


def _mean_bytes(sample: NDArray[Any], side: int, quality: int) -> float:
    return float(np.mean([len(encode(picture, side, quality)) for picture in sample]))
