"""Headers of picture files, read without decoding pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tinyssl.opening import FORMATS, open_file, refuse_own
from tinyssl.picture import deep_colour, is_gray, is_sixteen_bit
from tinyssl.tiff import read_layout


@dataclass(frozen=True)
class Header:
    """Kind and size of a picture.

    Attributes:
        format: in Pillow's terms, such as JPEG.
        mode: in Pillow's terms, such as RGB, or in words for more bits or other channels.
        width: pixels, before the EXIF orientation is applied.
        height: pixels.
        deep: more than 8 bits a channel.
        gray: one channel.
        channels: in the file, without transparency.
        frames: whether the file has more than one picture.
    """

    format: str
    mode: str
    width: int
    height: int
    deep: bool
    gray: bool
    channels: int
    frames: bool


def read_header(path: Path) -> Header | None:
    """The header of a file; None where there is none to use, which decoding will report."""
    try:
        with open_file(path) as file:
            layout = read_layout(file)
            if layout is not None and not layout.plain:
                kind = f"{layout.samples} x {layout.bits}-bit"
                size = (layout.width, layout.height)
                return Header("TIFF", kind, *size, layout.bits > 8, False, layout.samples, False)
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                refuse_own(image)
                return _of(image)
    except Exception:  # Pillow's readers raise nearly anything on broken headers
        return None


def _of(image: Image.Image) -> Header:
    gray, deep = is_gray(image), is_sixteen_bit(image)
    mode = f"16-bit {image.mode}" if deep_colour(image) else image.mode
    frames = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    channels = 1 if gray else 3
    return Header(str(image.format), mode, image.width, image.height, deep, gray, channels, frames)
