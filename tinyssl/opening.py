"""Picture files opened safely: nothing waits, no format starts a program, sizes have limits."""

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


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


# Content decides what a file is, so what may be found there is chosen: EPS starts Ghostscript.
FORMATS = _formats()
# Phones' HEIC is not read, but not passed over without a word either.
IMAGE_EXTENSIONS = frozenset(
    [".heic", ".heif", *(s for s, name in Image.EXTENSION.items() if name in FORMATS)]
)
_HEIC = (b"ftypheic", b"ftypheix", b"ftypmif1")


class Unreadable(TinysslError):
    """A picture cannot be used; the text is the reason, short."""


_lock = threading.RLock()
_limits: list[int] = []  # of the calls at work
_undo = ExitStack()


@contextmanager
def reading(limit: int) -> Iterator[None]:
    """Allows pictures of `limit` pixels, and silences the readers' warnings about odd files.

    Both belong to the whole process, as Pillow and Python have it, so this is for the thread that
    starts the work. Of several at once the largest limit holds, and the last one to end puts back
    what was there before the first.
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
    """The module cv2; it tells the terminal what it cannot read, but for `reading` it is silent."""
    with _lock:
        new = "cv2" not in sys.modules
        cv2 = import_module("cv2")
        if new and _limits:
            _silence(cv2)
    return cv2


def _silence(cv2: Any) -> None:
    set_level = cv2.utils.logging.setLogLevel
    _undo.callback(set_level, set_level(0))


def _own_lock() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # another thread may hold it for ever in the child
    os.register_at_fork(after_in_child=_own_lock)


def open_file(path: Path) -> IO[bytes]:
    """Opens a picture file; never waits, and reads nothing that is larger than pictures may be.

    Raises:
        Unreadable: no regular file, or too large.
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
        Unreadable: empty, no picture, or larger than Pillow's limit against bombs.
    """
    if not data:
        raise Unreadable("empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        refuse_large(image.width, image.height)
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
    """Raises Unreadable for more pixels than are allowed; names the limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise Unreadable(
            f"{width} x {height}: more than {limit:,} pixels; data.max_pixels raises the limit"
        )


def _largest_file() -> int:
    """Bytes: what the largest picture takes with 4 channels of 16 bits, and a little more."""
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
