"""Safe opening of picture files: never blocks, starts no program, and limits sizes."""

from __future__ import annotations

import io
import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from tinyssl.errors import TinysslError, first_line

MAX_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
_FORMATS = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "PCX", "PNG", "PPM",
    "PSD", "QOI", "SGI", "SUN", "TGA", "TIFF", "WEBP",
)  # fmt: skip
Image.init()
# A file's content decides its format, so formats are restricted: EPS starts Ghostscript.
FORMATS = tuple(name for name in _FORMATS if name in Image.OPEN)
# HEIC of phones cannot be read, but must be reported rather than ignored.
IMAGE_EXTENSIONS = frozenset(
    [".heic", ".heif", *(s for s, name in Image.EXTENSION.items() if name in FORMATS)]
)
OWN = "tinyssl"  # the text "Software" of PNGs that tinyssl writes
_HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1")


class Unreadable(TinysslError):
    """A picture cannot be used; the text is a short reason."""


_lock = threading.RLock()
_limits: list[int] = []  # of the active calls
_undo = ExitStack()


@contextmanager
def reading(limit: int) -> Iterator[None]:
    """Allows pictures of `limit` pixels, and silences warnings about odd files.

    Both settings of Pillow and Python are global, so this is for the thread that starts the work.
    Of several contexts the largest limit holds, and the last one to end restores the settings.
    """
    with _lock:
        if not _limits:
            _undo.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            _undo.enter_context(warnings.catch_warnings())
            if "cv2" in sys.modules:
                _silence(sys.modules["cv2"])
        warnings.simplefilter("ignore")  # others may have changed it since
        _limits.append(limit)
        Image.MAX_IMAGE_PIXELS = max(_limits)
    try:
        yield
    finally:
        with _lock:
            _limits.remove(limit)
            if _limits:
                Image.MAX_IMAGE_PIXELS = max(_limits)
            else:
                _undo.close()


def opencv() -> Any:
    """The module cv2, whose messages on the terminal are off within `reading`."""
    with _lock:
        new = "cv2" not in sys.modules
        cv2 = import_module("cv2")
        if new and _limits:
            _silence(cv2)
    return cv2


def _silence(cv2: Any) -> None:
    # Before OpenCV 4.14 the function is in the module itself.
    set_level = (cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging).setLogLevel
    _undo.callback(set_level, set_level(0))


def _own_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # in the child no thread would release it
    os.register_at_fork(after_in_child=_own_lock)


def open_file(path: Path) -> IO[bytes]:
    """Opens a picture file without blocking; refuses files that are too large for a picture.

    Raises:
        Unreadable: not a regular file, or too large.
        OSError: missing, or not permitted.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    status, limit = os.fstat(number), _largest_file()
    regular = stat.S_ISREG(status.st_mode)
    if regular and status.st_size <= limit:
        return os.fdopen(number, "rb")
    os.close(number)
    if stat.S_ISDIR(status.st_mode):
        raise Unreadable("a folder, not a file")
    if not regular:
        raise Unreadable("not a regular file")
    raise Unreadable(
        f"{status.st_size:,} bytes: more than {limit:,}, 8 for each of data.max_pixels"
    )


def read_file(path: Path) -> bytes:
    """The bytes of a picture file; raises as `open_file` does."""
    with open_file(path) as file:
        return file.read(_largest_file())


def open_picture(data: bytes) -> Image.Image:
    """Opens encoded bytes lazily: mode and size are known, pixels are not decoded yet.

    Raises:
        Unreadable: empty, not a picture, above Pillow's limit against decompression bombs, or made
            by tinyssl.
    """
    if not data:
        raise Unreadable("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        refuse_large(image.width, image.height)
        refuse_own(image)
        return image
    except Unreadable:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = f"{Image.MAX_IMAGE_PIXELS:,}"
        raise Unreadable(f"more than {limit} pixels; data.max_pixels raises the limit") from None
    except UnidentifiedImageError:
        raise Unreadable(_looks_like(data)) from None
    except Exception as error:  # Pillow's readers raise nearly anything on broken headers
        raise Unreadable(f"broken header: {first_line(error)}") from None


def refuse_large(width: int, height: int) -> None:
    """Raises Unreadable, naming the limit, for more pixels than are allowed."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise Unreadable(
            f"{width} x {height}: more than {limit:,} pixels; data.max_pixels raises the limit"
        )


def refuse_own(image: Image.Image) -> None:
    """Raises Unreadable for what tinyssl drew, which may lie among the pictures that it shows."""
    if image.info.get("Software") == OWN:
        raise Unreadable("a sheet or plot that tinyssl made")


def _largest_file() -> int:
    """Bytes of the largest picture with 4 channels of 16 bits, plus a margin."""
    return 8 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS) + (1 << 26)


def _looks_like(data: bytes) -> str:
    if data[4:12] in _HEIC:
        return "HEIC cannot be read; save it as JPEG"
    head = data[:200].lstrip().lower()
    kind = "unknown format"
    if head.startswith((b"<!doctype html", b"<html")):
        kind = "an HTML page"
    elif head.startswith(b"version https://git-lfs"):
        kind = "a Git LFS pointer"
    return f"not a picture ({kind})"
