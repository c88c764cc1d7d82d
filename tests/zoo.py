"""Pictures and files as they come from the field: what each is, and what is to become of it."""

import io
import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

HTML = b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
SVG = b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\n%%EOF\n"


def noise(h: int = 30, w: int = 40, c: int = 3, dtype: Any = np.uint8) -> NDArray[Any]:
    """(h, w, c), another for every shape and kind."""
    generator = np.random.default_rng(h * w * c + np.dtype(dtype).itemsize)
    return generator.integers(0, np.iinfo(dtype).max, (h, w, c), dtype, endpoint=True)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rgb(h: int = 30, w: int = 40) -> Image.Image:
    """Noise in three channels."""
    return Image.fromarray(noise(h, w))


def tiff(
    values: NDArray[Any],
    *,
    planes: bool = False,
    deflate: bool = False,
    big: bool = False,
    wide: bool = False,
    photometric: int = 1,
    kind: int | tuple[int, ...] = 0,
    tiled: bool = False,
    says: tuple[int, int] | None = None,
) -> bytes:
    """A TIFF of any number of channels in one strip a plane (TIFF 6.0).

    wide: BigTIFF. kind: of what is beside gray or colours, of all or of each; 1 and 2 are alpha.
    tiled: says so only.
    """
    order, (h, w, c) = ">" if big else "<", values.shape
    count, address, room = ("Q", "Q", 8) if wide else ("H", "I", 4)
    width, height = says or (w, h)
    stored = values.astype(values.dtype.newbyteorder(order))
    strips = [np.moveaxis(stored, 2, 0)[i].tobytes() for i in range(c)] if planes else [
        stored.tobytes()
    ]  # fmt: skip
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    body, places = b"", []
    for strip in strips:
        places.append(2 * room + len(body))
        body += strip + b"\0" * (len(strip) % 2)
    kinds = (kind,) * (c - (3 if photometric == 2 else 1)) if isinstance(kind, int) else kind
    wanted: dict[int, tuple[str, list[int]]] = {
        256: ("H", [width]), 257: ("H", [height]), 258: ("H", [8 * values.dtype.itemsize] * c),
        259: ("H", [8 if deflate else 1]), 262: ("H", [photometric]), 273: ("I", places),
        277: ("H", [c]), 278: ("H", [h]), 279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if planes else 1]), 338: ("H", list(kinds)),
    } | ({322: ("H", [16]), 323: ("H", [16])} if tiled else {})  # fmt: skip
    entries = b""
    for tag, (size, numbers) in sorted(wanted.items()):
        packed = struct.pack(f"{order}{len(numbers)}{size}", *numbers)
        if len(packed) > room:
            place, body = 2 * room + len(body), body + packed
            packed = struct.pack(f"{order}{address}", place)
        head = struct.pack(f"{order}HH{address}", tag, 3 if size == "H" else 4, len(numbers))
        entries += head + packed.ljust(room, b"\0")
    directory = struct.pack(f"{order}{count}", len(wanted)) + entries + b"\0" * room
    mark = b"MM\0*" if big else b"II+\0\x08\0\0\0" if wide else b"II*\0"
    return mark + struct.pack(f"{order}{address}", 2 * room + len(body)) + body + directory


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(
            ">I", zlib.crc32(kind + data)
        )  # fmt: skip

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def deep_png(c: int = 3) -> bytes:
    """48 or 64 bits a pixel."""
    done, data = cv2.imencode(".png", noise(c=c, dtype=np.uint16))
    assert done
    return data.tobytes()


OWN_MARK = PngInfo()
OWN_MARK.add_text("Software", "tinyssl")


def frames(kind: str) -> bytes:
    """Two pictures in one file."""
    images = [rgb(), Image.new("RGB", (40, 30), "blue")]
    return encoded(images[0], kind, save_all=True, append_images=images[1:])


def _loaded() -> dict[str, bytes]:
    gray = Image.fromarray(noise(c=1)[..., 0])
    deep = noise(c=1, dtype=np.uint16)[..., 0]
    cut_out = Image.fromarray(noise(c=4))
    palette = rgb().quantize(16)
    exif = Image.Exif()
    made = {
        "one-bit.png": encoded(gray.convert("1")),
        "gray.png": encoded(gray),
        "gray-alpha.png": encoded(cut_out.convert("LA")),
        "sixteen.png": encoded(Image.fromarray(deep)),
        "sixteen-little.tif": encoded(Image.fromarray(deep), "TIFF"),
        "sixteen-big.tif": encoded(Image.fromarray(deep.astype(">u2")), "TIFF"),
        "thirty-two.tif": encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"),
        "palette.png": encoded(palette),
        "palette-transparent.png": encoded(palette, transparency=0),
        "rgba.png": encoded(cut_out),
        "cmyk.jpg": encoded(rgb().convert("CMYK"), "JPEG"),
        "cmyk.tif": encoded(rgb().convert("CMYK"), "TIFF"),
        "forty-eight.png": deep_png(),
        "sixty-four.png": deep_png(4),
        "pages.tif": frames("TIFF"),
        "animated.gif": frames("GIF"),
        "animated.webp": frames("WEBP"),
        "animated.png": frames("PNG"),
        "progressive.jpg": encoded(rgb(), "JPEG", progressive=True),
        "UPPER.JPEG": encoded(rgb(), "JPEG"),
        "really-a-png.jpg": encoded(rgb()),
        "really-a-jpeg.tif": encoded(rgb(), "JPEG"),
        "no-extension": encoded(rgb(), "JPEG", quality=60),
        "report.pdf": encoded(rgb(), "PNG", compress_level=1),
        "one-pixel.png": encoded(Image.new("RGB", (1, 1), "red")),
        "strip.png": encoded(rgb(900, 12)),
        "very-long.png": encoded(rgb(20_000, 3)),
        "with spaces and (brackets) [1].png": encoded(rgb(31)),
        "süß-写真-фото.png": encoded(rgb(32)),
        "'; DROP TABLE pictures; --.png": encoded(rgb(33)),
        "<script>alert(1)<": encoded(rgb(34)),
        "line\nbreak.png": encoded(rgb(35)),
        "\x1b[31mred.png": encoded(rgb(36)),
        "-rf.png": encoded(rgb(37)),
        "x" * 251 + ".png": encoded(rgb(38)),
        os.fsdecode(b"latin-\xe9.png"): encoded(rgb(39)),
        "deep/er/and/deeper/a.png": encoded(rgb(41)),
    }
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        made[f"turned-{orientation}.jpg"] = encoded(rgb(), "JPEG", exif=exif)
    return made


LOADED = _loaded()
SEVERAL = {"pages.tif", "animated.gif", "animated.webp", "animated.png"}

SKIPPED: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty file"),
    "page.jpg": (HTML, "not a picture (an HTML page)"),
    "pointer.jpg": (LFS, "not a picture (a Git LFS pointer)"),
    "drawing.png": (SVG, "not a picture (unknown format)"),
    "program.jpg": (EPS, "not a picture (unknown format)"),
    "phone.HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC cannot be read; save it as JPEG"),
    "text.gif": (b"hello", "not a picture (unknown format)"),
    "half.jpg": (encoded(rgb(), "JPEG")[:900], "broken data"),
    "half.png": (encoded(rgb())[:1500], "broken data"),
    "half.tif": (encoded(rgb(), "TIFF")[:1500], ""),
    "half-deep.png": (deep_png()[:2000], "cannot be decoded"),
    "header.jpg": (encoded(rgb(), "JPEG")[:20], ""),
    "corrupt.png": (encoded(rgb())[:-40] + b"x" * 40, "broken data"),
    "zeros.bmp": (b"\0" * 5000, "not a picture"),
    "float.tif": (encoded(Image.fromarray(np.zeros((9, 9), np.float32)), "TIFF"), "16-bit"),
    "negative.tif": (encoded(Image.fromarray(np.full((9, 9), -1, np.int32)), "TIFF"), "65,535"),
    "bomb.png": (png_header(20_000, 20_000), "data.max_pixels raises the limit"),
    "larger-bomb.png": (png_header(2**31 - 1, 2**31 - 1), "data.max_pixels raises the limit"),
    "two-channels.tif": (tiff(noise(c=2)), "2 channels, data.channels is 3"),
    "four-channels.tif": (tiff(noise(c=4, dtype=np.uint16)), "4 channels, data.channels is 3"),
    "views.png": (encoded(rgb(), pnginfo=OWN_MARK), "a sheet or plot that tinyssl made"),
    "liar.tif": (tiff(noise(c=2))[:200] + tiff(noise(c=2))[2000:], ""),
}

PASSED_OVER = {
    "Thumbs.db": b"\xd0\xcf\x11\xe0", ".DS_Store": b"\0", "._a.jpg": b"\0", "notes.txt": b"hello",
    ".git/a.png": LOADED["gray.png"], "table.csv": b"path,label\n", "movie.mp4": b"\0\0\0 ftyp",
    "raw.dng": tiff(noise()),
}  # fmt: skip


def build(folder: Path) -> None:
    """Writes all of it, with links, a pipe, a socket and a folder named like a picture."""
    files = {**LOADED, **PASSED_OVER, **{name: data for name, (data, _) in SKIPPED.items()}}
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "loop").symlink_to(folder)
    (folder / "deep" / "up").symlink_to(folder / "deep")
    (folder / "itself.png").symlink_to("itself.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "linked.png").symlink_to("gray.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()
    here = Path.cwd()
    with socket.socket(socket.AF_UNIX) as server:  # its path may not be long
        os.chdir(folder)
        try:
            server.bind("socket.png")
        finally:
            os.chdir(here)


ODD_FILES = {
    "itself.png": "Too many levels of symbolic links",
    "dangling.png": "No such file or directory",
    "pipe.png": "not a regular file",
    "socket.png": "No such device or address",
}
