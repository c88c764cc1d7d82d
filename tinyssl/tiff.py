"""Reads TIFFs whose samples are more than the colours of a picture.

Pillow drops or refuses such samples and OpenCV mixes up separate planes; this reads them from
strips, uncompressed or deflated (TIFF 6.0, and technical note 2 of 2002 for deflate).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_OFFSETS, _ORIENTATION, _SAMPLES, _COUNTS, _PLANAR = 273, 274, 277, 279, 284
_PREDICTOR, _TILES, _EXTRA, _FORMAT = 317, 322, 338, 339
_DEFLATE = (8, 32946)
_RGB, _KNOWN = 2, (0, 1, 2)
_ALPHA = (1, 2)  # values of ExtraSamples
_BIG = b"II+\0"  # BigTIFF; Pillow takes none with the highest byte first


@dataclass(frozen=True)
class Layout:
    """The layout in the first directory of a TIFF.

    Attributes:
        width: pixels.
        height: pixels.
        samples: per pixel.
        bits: per sample.
        planes: whether samples are stored in separate planes.
        colours: number of colour samples: 1 for gray, 3 for RGB.
        alpha: whether the last sample is declared as transparency.
        orientation: as in EXIF, 1 to 8.
        unsigned: whether samples are unsigned integers, of gray or RGB and possibly others.
        big_endian: byte order.
        tags: the whole directory.
    """

    width: int
    height: int
    samples: int
    bits: int
    planes: bool
    colours: int
    alpha: bool
    orientation: int
    unsigned: bool
    big_endian: bool
    tags: ImageFileDirectory_v2

    @property
    def strips(self) -> bool:
        """Whether `read_samples` can read it, from strips, uncompressed or deflated."""
        return _TILES not in self.tags and self.tags.get(_COMPRESSION, 1) in (1, *_DEFLATE)

    @property
    def plain(self) -> bool:
        """Whether Pillow or OpenCV reads it correctly."""
        if not self.unsigned or self.samples == 1 or self.samples > 64 or self.bits not in (8, 16):
            return True
        if self.planes and (self.bits == 16 or self.colours == 1):
            return False
        if self.tags.get(_PHOTOMETRIC) == 0:  # which Pillow supports for single samples only
            return False
        cut_out = self.alpha and self.samples == self.colours + 1
        return self.samples == self.colours == 3 or (
            cut_out and (self.bits, self.colours) != (16, 1)
        )


def read_layout(file: IO[bytes]) -> Layout | None:
    """The layout of a TIFF at the file's current position; None if there is no TIFF."""
    head = file.read(8)
    if head[:4] not in (b"II*\0", b"MM\0*", _BIG):
        return None
    try:
        directory = ImageFileDirectory_v2(head + file.read(8) if head[:4] == _BIG else head)
        file.seek(directory.next)
        directory.load(file)
        return _layout(directory, head[:1] == b"M")
    except (OSError, ValueError, TypeError, KeyError, IndexError, SyntaxError, struct.error):
        return None


def read_samples(data: bytes, layout: Layout) -> NDArray[Any]:
    """(h, w, samples) uint8 or uint16, not rotated, of a layout with `strips`.

    Gray is inverted where the file has white as 0.

    Raises:
        ValueError: less data than the header declares.
    """
    tags = layout.tags
    dtype = np.dtype(f"{'>' if layout.big_endian else '<'}u{layout.bits // 8}")
    deep = 1 if layout.planes else layout.samples
    total = layout.height * layout.width * layout.samples * dtype.itemsize
    pixels = _strips(data, tags[_OFFSETS], tags[_COUNTS], total, tags.get(_COMPRESSION) in _DEFLATE)
    planes = layout.samples if layout.planes else 1
    array = np.frombuffer(pixels, dtype).reshape(planes, layout.height, layout.width, deep)
    array = array.astype(dtype.newbyteorder("="))
    if tags.get(_PREDICTOR, 1) == 2:
        array = np.cumsum(array, axis=2, dtype=array.dtype)
    array = array[0] if planes == 1 else np.moveaxis(array[..., 0], 0, 2)
    if tags.get(_PHOTOMETRIC) == 0:
        array[..., 0] = ~array[..., 0]
    return array


def _layout(tags: ImageFileDirectory_v2, big_endian: bool) -> Layout:
    samples = int(tags.get(_SAMPLES, 1))
    bits = set(tags.get(_BITS, (1,)))
    extra = tuple(tags.get(_EXTRA, ()))
    kinds = set(tags.get(_FORMAT, (1,)))
    colours = 3 if tags.get(_PHOTOMETRIC) == _RGB else 1
    return Layout(
        width=int(tags[_WIDTH]),
        height=int(tags[_HEIGHT]),
        samples=samples,
        bits=int(bits.pop()) if len(bits) == 1 else 0,
        planes=tags.get(_PLANAR, 1) == 2 and samples > 1,
        colours=colours,
        alpha=bool(extra) and extra[-1] in _ALPHA,
        orientation=int(tags.get(_ORIENTATION, 1)),
        unsigned=kinds == {1} and tags.get(_PHOTOMETRIC) in _KNOWN and samples >= colours,
        big_endian=big_endian,
        tags=tags,
    )


def _strips(
    data: bytes, offsets: Sequence[int], counts: Sequence[int], total: int, deflated: bool
) -> bytes:
    """The concatenated strips, inflated to no more than the declared size."""
    found = io.BytesIO()
    for offset, count in zip(offsets, counts, strict=True):
        strip = data[offset : offset + count]
        if deflated:
            strip = zlib.decompressobj().decompress(strip, max(1, total - found.tell()))
        found.write(strip)
    if found.tell() < total:
        raise ValueError(f"{found.tell():,} bytes of pixels, the header says {total:,}")
    return found.getvalue()[:total]
