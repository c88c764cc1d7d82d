"""From a picture file to an array: decoding, channels, bit depth, resizing.

h, w, c = height, width, channels.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile

from tinyssl.errors import first_line
from tinyssl.opening import Unreadable, open_picture, opencv, read_file, refuse_large
from tinyssl.tiff import Layout, read_layout, read_samples

ResizeRule = Literal["crop", "pad", "squash"]
Array = NDArray[Any]

_GRAY_MODES = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N", "F"}
_SIXTEEN_BIT_MODES = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
# TIFF and EXIF tags
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION, _EXTRA = 0x0102, 0x0106, 0x0112, 0x0152
_PREMULTIPLIED_ALPHA = 1  # of ExtraSamples
_MOST_CHANNELS = 4
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def decode(source: Path | bytes | Image.Image, channels: int | None = None) -> Array:
    """Decodes the first frame of a picture, turned upright by its EXIF orientation.

    Transparent pictures are composed on white, unless `channels` includes alpha. Gray pictures keep
    one channel; CMYK and other colour spaces become RGB; 16 bits a channel are kept.

    Args:
        source: a file, its bytes, or a Pillow image.
        channels: 4 keeps RGB with alpha, 2 gray with alpha.

    Returns:
        (h, w, c) uint8 or uint16, c = 1 or 3, or `channels` where the file has them.

    Raises:
        Unreadable: empty, truncated, corrupt, not a picture, too large, or without a fixed range
            (32-bit float).
    """
    try:
        if isinstance(source, Image.Image):
            return _from_pillow(source, channels)
        data = source if isinstance(source, bytes) else read_file(source)
        layout = read_layout(io.BytesIO(data))
        if layout is not None and not layout.plain:
            refuse_large(layout.width, layout.height)
            return _many_channels(data, layout)
        with open_picture(data) as image:
            if deep_colour(image):
                return _decode_deep_colour(data, image, channels)
            return _from_pillow(image, channels)
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable(error.strerror or f"broken data: {first_line(error)}") from None
    except Exception as error:  # decoders raise nearly anything on broken data
        raise Unreadable(f"broken data: {first_line(error)}") from None


def is_gray(image: Image.Image) -> bool:
    """Whether an opened picture is gray by its mode or its palette."""
    if image.mode == "P" and image.palette is not None:
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in _GRAY_MODES or _raw_mode(image) == "LA;16B"


def is_sixteen_bit(image: Image.Image) -> bool:
    """Whether an opened picture has more than 8 bits a channel."""
    return image.mode in _SIXTEEN_BIT_MODES or deep_colour(image)


def deep_colour(image: Image.Image) -> bool:
    """Whether a colour picture has 16 bits a channel, which Pillow would reduce to 8."""
    if isinstance(image, PngImageFile):
        return _raw_mode(image).endswith("16B") and image.mode not in _SIXTEEN_BIT_MODES
    if isinstance(image, PpmImageFile):
        return image.mode == "RGB" and _largest_value(image) > 255
    if isinstance(image, TiffImageFile):
        bits = image.tag_v2.get(_BITS_PER_SAMPLE, (8,))
        return len(bits) > 1 and max(bits) == 16
    return False


def _raw_mode(image: Image.Image) -> str:
    """Pillow's raw mode of a PNG; empty for other formats."""
    if not isinstance(image, PngImageFile) or not image.tile:
        return ""
    arguments = image.tile[0][3]  # by index: Pillow 10 has plain tuples
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _largest_value(image: PpmImageFile) -> int:
    """The header's value of white in a binary PPM; 0 for others, such as plain text."""
    tile = image.tile[0] if image.tile else None
    if tile is None or tile[0] != "ppm" or not isinstance(tile[3], tuple):
        return 0
    return int(tile[3][1])


def to_channels(picture: Array, channels: int) -> Array:
    """(h, w, c) to (h, w, channels): gray from RGB by luma, RGB from gray by repetition.

    Raises:
        Unreadable: any other conversion, which would invent or drop channels.
    """
    have = picture.shape[2]
    if have == channels:
        return picture
    if have == 1 and channels == 3:
        return np.repeat(picture, 3, axis=2)
    if have == 3 and channels == 1:
        # Not a matrix product: BLAS rounds differently by a pixel's position.
        red, green, blue = (picture[..., i].astype(np.float32) * _LUMA[i] for i in range(3))
        gray: Array = np.rint(red + green + blue)[..., None]
        return gray.astype(picture.dtype)
    raise Unreadable(f"{have} channels, data.channels is {channels}")


def to_depth(picture: Array, dtype: Any) -> Array:
    """Converts between uint8 and uint16, preserving black and white (factor 257)."""
    if picture.dtype == dtype:
        return picture
    if dtype == np.uint16:
        return picture.astype(np.uint16) * np.uint16(257)
    return np.rint(picture / 257).astype(np.uint8)


def resize(picture: Array, size: int, rule: ResizeRule) -> Array:
    """(h, w, c) to (size, size, c) of the same dtype; bicubic with antialiasing.

    `crop` scales the short side to `size` and keeps the centre, `pad` scales the long side and adds
    black, `squash` scales both.
    """
    h, w, c = picture.shape
    if rule == "crop":
        # Cut before scaling, or a 20,000 x 10 strip would become 256,000 pixels long.
        keep = min(h, w)
        top, left = (h - keep) // 2, (w - keep) // 2
        picture = picture[top : top + keep, left : left + keep]
    if rule != "pad" or h == w:
        return _scale(picture, size, size)
    ratio = size / max(h, w)
    height, width = max(1, round(h * ratio)), max(1, round(w * ratio))
    padded = np.zeros((size, size, c), picture.dtype)
    top, left = (size - height) // 2, (size - width) // 2
    padded[top : top + height, left : left + width] = _scale(picture, height, width)
    return padded


def _scale(picture: Array, height: int, width: int) -> Array:
    c = picture.shape[2]
    if picture.dtype == np.uint8 and c in (1, 3):
        image = Image.fromarray(np.ascontiguousarray(picture[..., 0] if c == 1 else picture))
        return np.asarray(_bicubic(image, height, width)).reshape(height, width, c)
    planes = [
        np.asarray(_bicubic(Image.fromarray(np.ascontiguousarray(p, np.float32)), height, width))
        for p in np.moveaxis(picture, 2, 0)
    ]
    rounded: Array = np.rint(np.stack(planes, axis=2)).clip(0, np.iinfo(picture.dtype).max)
    return rounded.astype(picture.dtype)


def _bicubic(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes with the same pixels by every Pillow.

    Each axis is rounded, so their order matters: since version 13 the height of tall pictures comes
    first, before it was always the width.
    """
    cubic = Image.Resampling.BICUBIC
    if image.height > height and image.height + 2 * width > height + 2 * image.width:
        image = image.resize((image.width, height), cubic)
    return image.resize((width, height), cubic)


def _from_pillow(image: Image.Image, channels: int | None) -> Array:
    white = _white_value(image)
    image.load()  # which turns a TIFF upright
    return _upright(_pixels(image, white, channels), _orientation(image))


def _orientation(image: Image.Image) -> int:
    """By EXIF, 1 to 8; 1 where EXIF cannot be read, which does not concern the pixels.

    Pillow's `exif_transpose` also writes all of EXIF anew, and fails where a field of it is odd.
    """
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # nearly anything on broken EXIF
        return 1
    return found if isinstance(found, int) else 1


def _pixels(image: Image.Image, white: int | None, channels: int | None) -> Array:
    """(h, w, c) as `decode`, but not turned; `white` is from `_white_value`."""
    if image.mode == "F":
        raise Unreadable("32-bit float has no fixed range; convert it to 16-bit")
    if image.mode in _SIXTEEN_BIT_MODES:
        values, clear = _sixteen_bit(image), image.info.get("transparency")
        if isinstance(clear, int):  # the value of a PNG's transparent pixels
            alpha = np.where(values == clear, 0, 65535).astype(np.uint16)
            return _deep_alpha(np.concatenate([values, alpha], axis=2), False, keep=channels == 2)
        return values if white is None else np.uint16(white) - values
    gray = is_gray(image)
    image = image.convert(_PREMULTIPLIED.get(image.mode, image.mode))
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        if channels == (2 if gray else 4):
            return np.asarray(image.convert("LA" if gray else "RGBA"))
        image = _on_white(image)
    array = np.asarray(image.convert("L" if gray else "RGB"))
    return array[..., None] if gray else array


def _white_value(image: Image.Image) -> int | None:
    """The largest value of a TIFF in which 0 is white, as in radiographs; else None.

    Pillow inverts those of 8 bits, but not deeper ones.
    """
    if not isinstance(image, TiffImageFile) or image.tag_v2.get(_PHOTOMETRIC) != 0:
        return None
    bits: int = max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))
    return (1 << min(16, bits)) - 1


def _sixteen_bit(image: Image.Image) -> Array:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise Unreadable(
            f"32-bit values from {values.min()} to {values.max()}; 0 to 65,535 is allowed"
        )
    return values.astype(np.uint16)[..., None]


def _on_white(image: Image.Image) -> Image.Image:
    cut_out = image.convert("RGBA")
    white = Image.new("RGBA", cut_out.size, "white")
    return Image.alpha_composite(white, cut_out).convert("RGB")


def _decode_deep_colour(data: bytes, image: Image.Image, channels: int | None) -> Array:
    array = _from_opencv(data)
    if array is None or array.dtype != np.uint16:
        raise Unreadable(f"{image.format} of 16 bits a channel that cannot be decoded")
    if is_gray(image) and channels != 4:  # OpenCV makes colours of gray with alpha
        array = array[..., [0, 3]]
    if isinstance(image, PpmImageFile):
        array = np.rint(array * (65535 / _largest_value(image))).astype(np.uint16)
    if array.shape[2] in (2, 4):
        array = _deep_alpha(array, _is_premultiplied(image), keep=channels == array.shape[2])
    # OpenCV turns TIFFs upright itself, whatever flags it is given, but not PNGs.
    turned = image.format == "TIFF"
    return array if turned else _upright(array, _orientation(image))


def _is_premultiplied(image: Image.Image) -> bool:
    if not isinstance(image, TiffImageFile):
        return False
    return tuple(image.tag_v2.get(_EXTRA, ()))[-1:] == (_PREMULTIPLIED_ALPHA,)


def _deep_alpha(array: Array, premultiplied: bool, keep: bool) -> Array:
    """(h, w, c + 1) uint16 with alpha, without premultiplication if kept, else on white."""
    if keep and not premultiplied:
        return array
    colours, alpha = array[..., :-1].astype(np.float64), array[..., -1:].astype(np.float64)
    if keep:
        colours = np.concatenate([colours * (65535 / np.maximum(alpha, 1)), alpha], axis=2)
    elif premultiplied:
        colours = colours + 65535 - alpha
    else:
        colours = colours * (alpha / 65535) + 65535 - alpha
    return np.rint(colours).clip(0, 65535).astype(np.uint16)


def _many_channels(data: bytes, layout: Layout) -> Array:
    if layout.samples > _MOST_CHANNELS:  # before memory is taken: a small file can hold 10 GB
        raise Unreadable(f"{layout.samples} channels; data.channels takes {_MOST_CHANNELS} at most")
    if layout.strips:
        return _upright(read_samples(data, layout), layout.orientation)
    array = _from_opencv(data)  # supports all compressions, but not all layouts
    if array is None or layout.planes or array.shape[2] != layout.samples:
        raise Unreadable(
            f"TIFF of {layout.samples} channels in tiles or compressed; store it in strips, "
            "uncompressed or deflated"
        )
    return array


def _from_opencv(data: bytes) -> Array | None:
    """(h, w, c) in RGB order and the file's depth; None where OpenCV cannot decode it."""
    cv2 = opencv()
    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        return None
    array = array[..., None] if array.ndim == 2 else array
    if array.shape[2] >= 3:
        array = array[..., [2, 1, 0, 3][: array.shape[2]]]  # OpenCV has blue first
    return np.asarray(array)


def _upright(array: Array, orientation: int) -> Array:
    """Undoes an EXIF orientation (1 to 8, CIPA DC-008, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array
