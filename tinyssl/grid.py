"""Sheets of pictures: originals beside their augmented views, and contact sheets."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from tinyssl.files import atomic, refuse_unmarked, writable
from tinyssl.opening import OWN
from tinyssl.picture import resize, to_depth


def refuse_other_sheet(path: Path, inputs: Iterable[str | Path]) -> None:
    """Raises UsageError where a sheet cannot be written, or would replace a file that is none.

    Args:
        path: of the PNG.
        inputs: files that must not be replaced.
    """
    refuse_unmarked(writable(path, ".png", inputs), OWN.encode())


def write_sheet(path: Path, sheet: Image.Image) -> None:
    """Writes a PNG that `refuse_other_sheet` knows again, atomically.

    Raises:
        JobError: it cannot be written.
    """
    ours, encoded = PngInfo(), io.BytesIO()
    ours.add_text("Software", OWN)
    sheet.save(encoded, "PNG", pnginfo=ours)
    with atomic(path) as file:
        file.write(encoded.getbuffer())


def picture_grid(originals: NDArray[Any], views: NDArray[Any], gap: int = 4) -> Image.Image:
    """One row per picture: the original, a wider gap, then its views.

    Args:
        originals: (n, h, w, c) uint8 or uint16, 1 to 4 channels: 2 show the first, 4 the first 3.
        views: (n, v, c, s, s) floats in [0, 1].
        gap: pixels between views, on white.
    """
    n, count, _, side, _ = views.shape
    width = (count + 1) * (side + gap) + 3 * gap
    sheet = np.full((n * (side + gap) + gap, width, 3), 255, np.uint8)
    for row in range(n):
        top = gap + row * (side + gap)
        original = resize(to_depth(originals[row], np.uint8), side, "squash")
        sheet[top : top + side, gap : gap + side] = _rgb(original)
        for column in range(count):
            left = side + 4 * gap + column * (side + gap)
            view = np.rint(views[row, column].clip(0, 1) * 255).astype(np.uint8)
            sheet[top : top + side, left : left + side] = _rgb(view.transpose(1, 2, 0))
    return Image.fromarray(sheet)


def contact_sheet(
    pictures: Sequence[NDArray[Any]], captions: Sequence[str], columns: int = 8, gap: int = 6
) -> Image.Image:
    """Pictures side by side, row by row, each with its caption below.

    Args:
        pictures: one or more (s, s, c) uint8 of one size, 1 to 4 channels shown as by
            `picture_grid`.
        captions: one short text each.
        columns: at most.
        gap: pixels between pictures, on white.
    """
    side, line = len(pictures[0]), 14
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    size = (gap + columns * (side + gap), gap + rows * (side + line + gap))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(number, columns)
        left, top = gap + column * (side + gap), gap + row * (side + line + gap)
        sheet.paste(Image.fromarray(np.ascontiguousarray(_rgb(picture))), (left, top))
        draw.text((left + side / 2, top + side + 2), caption, fill="black", anchor="ma")
    return sheet


def _rgb(picture: NDArray[Any]) -> NDArray[Any]:
    return picture[..., :3] if picture.shape[2] >= 3 else picture[..., :1].repeat(3, axis=2)
