"""Every kind of picture that comes from the field: decoded right, or refused with a reason."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zoo
from numpy.typing import NDArray
from PIL import Image, ImageOps
from tinyssl.export import runtime
from zoo import encoded

from tinyssl.opening import Unreadable, open_picture, reading
from tinyssl.picture import (
    decode,
    deep_colour,
    is_gray,
    is_sixteen_bit,
    resize,
    to_channels,
    to_depth,
)

Array = NDArray[Any]


def noise(h: int = 6, w: int = 9, c: int = 3, dtype: Any = np.uint8) -> Array:
    high = np.iinfo(dtype).max
    return np.random.default_rng(h * w * c).integers(0, high, (h, w, c), dtype, endpoint=True)


def cv2_encoded(array: Array, suffix: str) -> bytes:
    """OpenCV writes 16 bits a channel; it wants blue first."""
    order = [2, 1, 0, 3][: array.shape[2]]
    done, data = cv2.imencode(suffix, np.ascontiguousarray(array[..., order]))
    assert done
    return data.tobytes()


def with_exif(data: bytes, orientation: int) -> bytes:
    """Adds an eXIf chunk after a PNG's header (PNG specification, third edition, 11.3.2.5)."""
    exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + struct.pack(">HHI", orientation, 0, 0)
    chunk = b"eXIf" + exif
    framed = struct.pack(">I", len(exif)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[:33] + framed + data[33:]


@pytest.mark.parametrize("mode", ["1", "L"])
def test_gray_modes_keep_one_channel(mode: str) -> None:
    image = Image.fromarray(noise(c=1)[..., 0]).convert(mode)
    found = decode(encoded(image))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[..., 0], np.asarray(image.convert("L")))


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "PNG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("HSV", "TIFF")]
)
def test_colour_modes_become_rgb(mode: str, kind: str) -> None:
    if mode == "HSV":
        image = Image.fromarray(noise()).convert(mode)
        np.testing.assert_array_equal(decode(image), np.asarray(image.convert("RGB")))
        return
    data = encoded(Image.fromarray(noise()).convert(mode), kind)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decode(data), np.asarray(image.convert("RGB")))


def test_palettes_are_gray_or_colour_by_their_entries() -> None:
    gray = Image.fromarray(noise(c=1)[..., 0]).quantize(16).convert("L").convert("P")
    colour = Image.fromarray(noise()).quantize(16)
    assert decode(encoded(gray)).shape == (6, 9, 1)
    np.testing.assert_array_equal(decode(encoded(colour)), np.asarray(colour.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_is_shown_on_white(mode: str) -> None:
    rgba = noise(c=4)
    rgba[..., 3] = np.where(np.arange(9) < 4, 0, 255)
    if mode == "P":
        image = Image.fromarray(rgba[..., :3]).quantize(16)
        image.info["transparency"] = image.getpixel((0, 0))
        data = encoded(image, transparency=image.getpixel((0, 0)))
        assert (decode(data)[0, 0] == 255).all()
        return
    found = decode(encoded(Image.fromarray(rgba).convert(mode)))
    assert found.shape == (6, 9, 1 if mode == "LA" else 3)
    assert (found[:, :4] == 255).all()
    if mode == "RGBA":
        np.testing.assert_array_equal(found[:, 4:], rgba[:, 4:, :3])


def test_alpha_is_kept_where_the_channels_ask_for_it() -> None:
    rgba = noise(c=4)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(rgba)), channels=4), rgba)
    gray = Image.fromarray(rgba).convert("LA")
    np.testing.assert_array_equal(decode(encoded(gray), channels=2), np.asarray(gray))


@pytest.mark.parametrize("kind", ["PNG", "TIFF-little", "TIFF-big"])
def test_sixteen_bit_gray_is_kept(kind: str) -> None:
    values = noise(c=1, dtype=np.uint16)[..., 0]
    if kind == "TIFF-big":
        data = encoded(Image.fromarray(values.astype(">u2")), "TIFF")
    else:
        data = encoded(Image.fromarray(values), kind[:4].rstrip("-"))
    found = decode(data)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found[..., 0], values)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_transparent_gray_is_shown_on_white_or_kept_as_alpha(dtype: Any, tmp_path: Path) -> None:
    values, white = noise(c=1, dtype=dtype), np.iinfo(dtype).max
    clear = int(values[2, 3, 0])
    data = encoded(Image.fromarray(values[..., 0]), transparency=clear)
    (tmp_path / "a.png").write_bytes(data)
    alpha = np.where(values == clear, 0, white)
    shown = np.maximum(values, white - alpha)
    for read in (decode, runtime.decode):
        np.testing.assert_array_equal(read(tmp_path / "a.png", 1), shown)
        np.testing.assert_array_equal(read(tmp_path / "a.png", 2), np.dstack([values, alpha]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_white_is_zero_black_becomes_zero(dtype: Any) -> None:
    values = noise(c=1, dtype=dtype)[..., 0]
    data = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    if dtype == np.uint8:  # whose pixels Pillow turns over when it writes them, too
        np.testing.assert_array_equal(decode(data)[..., 0], values)
    else:
        np.testing.assert_array_equal(decode(data)[..., 0], 65535 - values)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_sixteen_bit_colour_is_kept_in_rgb_order(suffix: str, channels: int) -> None:
    values = noise(c=channels, dtype=np.uint16)
    if channels == 4:
        values[..., 3] = 65535
    found = decode(cv2_encoded(values, suffix), channels)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, values)
    # OpenCV does not say in a TIFF that the fourth channel is transparency.
    assert decode(cv2_encoded(values, suffix)).shape[2] == (channels if suffix == ".tiff" else 3)


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (0, 70_000), (-1, 10)])
def test_thirty_two_bit_integers_must_fit(low: int, high: int) -> None:
    values = np.array([[low, high], [1, 300]], np.int32)
    data = encoded(Image.fromarray(values), "TIFF")
    if (low, high) == (0, 65535):
        np.testing.assert_array_equal(decode(data)[..., 0], values)
    else:
        with pytest.raises(Unreadable, match="0 to 65,535 is allowed"):
            decode(data)


def test_floats_are_refused_with_advice() -> None:
    with pytest.raises(Unreadable, match="convert it to 16-bit"):
        decode(encoded(Image.fromarray(np.zeros((3, 3), np.float32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_jpeg(orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(noise(16, 24)).resize((24, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG", exif=exif, quality=95)
    with Image.open(io.BytesIO(data)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(decode(data), expected)
    (tmp_path / "a.jpg").write_bytes(data)
    np.testing.assert_array_equal(runtime.decode(tmp_path / "a.jpg", 3), expected)
    assert decode(data).shape == ((24, 16, 3) if orientation >= 5 else (16, 24, 3))


def exif_with(*entries: tuple[int, int, bytes]) -> bytes:
    """EXIF with single values of (tag, type, 4 bytes), in tag order, as cameras may write it."""
    fields = b"".join(struct.pack("<HHI4s", tag, kind, 1, value) for tag, kind, value in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + fields + bytes(4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (b"Exif\0\0garbage, not a header", False),
        (b"Exif\0\0II*\0", False),
        (exif_with((0x0112, 2, b"6\0\0\0")), False),
        (exif_with((0x0112, 3, b"\6\0\0\0"), (0x0128, 2, b"7\0\0\0")), True),
        (exif_with((0x0100, 9, b"\xff\xff\xff\xff"), (0x0112, 3, b"\6\0\0\0")), True),
    ],
    ids=["no header", "cut short", "text", "unit as text", "negative width"],
)
def test_odd_exif_hides_no_picture(kind: str, exif: bytes, turned: bool, tmp_path: Path) -> None:
    image = Image.fromarray(noise(16, 24))
    path = tmp_path / "a"
    path.write_bytes(encoded(image, kind, exif=exif))
    plain = decode(encoded(image, kind))
    found = decode(path)
    np.testing.assert_array_equal(found, np.rot90(plain, -1) if turned else plain)
    np.testing.assert_array_equal(runtime.decode(path, 3), found)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_exif_orientation_of_deep_colour(orientation: int, kind: str) -> None:
    """The turned 16-bit picture is the turned 8-bit one."""
    values = noise(dtype=np.uint16) // 257 * 257
    if kind == "png":
        data = with_exif(cv2_encoded(values, ".png"), orientation)
    else:
        data = deep_tiff(values, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = encoded(Image.fromarray((values // 257).astype(np.uint8)), "PNG", exif=exif)
    found = decode(data)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found // 257, decode(plain))


def deep_tiff(values: Array, orientation: int) -> bytes:
    """The least TIFF of 16-bit RGB that has an orientation (TIFF 6.0, section 6)."""
    h, w, _ = values.shape
    pixels = values.astype("<u2").tobytes()
    bits_at = 8 + len(pixels)
    entries = [
        (256, 3, 1, w), (257, 3, 1, h), (258, 3, 3, bits_at), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 8), (274, 3, 1, orientation), (277, 3, 1, 3), (278, 3, 1, h),
        (279, 4, 1, len(pixels)), (284, 3, 1, 1),
    ]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + b"\0\0\0\0"
    bits = struct.pack("<3H", 16, 16, 16)
    return b"II*\0" + struct.pack("<I", bits_at + len(bits)) + pixels + bits + directory


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (5, 5), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == [255, 0, 0]).all()


def broken() -> dict[str, tuple[bytes, str]]:
    whole = encoded(Image.fromarray(noise(60, 60)), "JPEG")
    deep = cv2_encoded(noise(60, 60, dtype=np.uint16), ".png")
    return {
        "empty": (b"", "empty file"),
        "html": (b"<!DOCTYPE html><html>404</html>", "not a picture (an HTML page)"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        "text": (b"hello there", "not a picture"),
        "truncated": (whole[: len(whole) // 2], "broken data"),
        "header only": (whole[:30], ""),
        "truncated deep colour": (deep[: len(deep) // 2], "cannot be decoded"),
        "corrupt png": (encoded(Image.fromarray(noise()))[:-30] + b"x" * 30, "broken data"),
    }


@pytest.mark.parametrize("case", broken())
def test_broken_files_are_refused_with_a_reason(case: str, tmp_path: Path) -> None:
    data, reason = broken()[case]
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    for source in (data, path):
        with pytest.raises(Unreadable) as caught:
            decode(source)
        assert reason in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_file_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        decode(tmp_path / "gone.png")


@pytest.mark.parametrize("factor", [1.5, 4])
def test_bombs_are_refused(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(54 / factor))
    with warnings.catch_warnings(), pytest.raises(Unreadable, match="more than"):
        warnings.simplefilter("ignore")
        decode(encoded(Image.fromarray(noise())))


def test_random_damage_never_escapes() -> None:
    generator = np.random.default_rng(0)
    for data in (
        encoded(Image.fromarray(noise(20, 20))),
        encoded(Image.fromarray(noise(20, 20)), "JPEG"),
        encoded(Image.fromarray(noise(20, 20)), "TIFF"),
        cv2_encoded(noise(20, 20, dtype=np.uint16), ".png"),
    ):
        for _ in range(60):
            damaged = bytearray(data)
            for place in generator.integers(0, len(data), 4):
                damaged[place] = generator.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert decode(bytes(damaged)).ndim == 3
                except Unreadable as error:
                    assert str(error)


def test_headers_tell_the_kind() -> None:
    gray = open_picture(encoded(Image.fromarray(noise(c=1, dtype=np.uint16)[..., 0])))
    assert is_gray(gray)
    assert is_sixteen_bit(gray)
    deep = open_picture(cv2_encoded(noise(dtype=np.uint16), ".tiff"))
    assert deep_colour(deep)
    assert not is_gray(deep)
    plain = open_picture(encoded(Image.fromarray(noise())))
    assert not is_sixteen_bit(plain)


@pytest.mark.parametrize("channels", [3, 4])
def test_premultiplied_alpha_of_sixteen_bits(channels: int) -> None:
    values = noise(16, 16, 4, np.uint16)
    alpha = np.maximum(values[..., 3:], 1000)
    stored = np.rint(values[..., :3] * (alpha / 65535)).astype(np.uint16)
    expected = stored.astype(int) + 65535 - alpha if channels == 3 else values[..., :3]
    data = zoo.tiff(np.concatenate([stored, alpha], axis=2), photometric=2, kind=1)
    found = decode(data, channels)
    assert found.shape == (16, 16, channels)
    assert np.abs(found[..., :3].astype(int) - expected).max() <= (33 if channels == 4 else 0)
    if channels == 4:
        np.testing.assert_array_equal(found[..., 3:], alpha)


def deep_gray_alpha(values: Array) -> bytes:
    """A PNG of 16-bit gray and alpha (colour type 4), which neither library writes."""
    h, w, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", w, h, 16, 4, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def test_gray_with_alpha_of_sixteen_bits() -> None:
    values = noise(c=2, dtype=np.uint16)
    values[:3, :, 1], values[3:, :, 1] = 65535, 0
    data = deep_gray_alpha(values)
    np.testing.assert_array_equal(decode(data, 2), values)
    shown = np.where(values[..., 1:] == 0, 65535, values[..., :1])
    np.testing.assert_array_equal(decode(data, 1), shown)
    image = open_picture(data)
    assert is_gray(image)
    assert is_sixteen_bit(image)


@pytest.mark.parametrize("largest", [65535, 4095])
def test_colour_ppms_keep_more_than_eight_bits(largest: int) -> None:
    values = noise(dtype=np.uint16) // np.uint16(65536 // (largest + 1))
    values[0, 0] = (0, largest, 1)
    data = f"P6\n# noise\n9 6\n{largest}\n".encode() + values.astype(">u2").tobytes()
    found = decode(data)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, np.rint(values * (65535 / largest)))
    assert is_sixteen_bit(open_picture(data))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", [0, 2])
@pytest.mark.parametrize("planes", [False, True])
def test_where_white_is_zero_the_first_of_two_samples_is_turned_over(
    dtype: Any, kind: int, planes: bool
) -> None:
    values = noise(c=2, dtype=dtype)
    found = decode(zoo.tiff(values, photometric=0, kind=kind, planes=planes), 2)
    np.testing.assert_array_equal(found[..., 0], np.iinfo(dtype).max - values[..., 0])
    np.testing.assert_array_equal(found[..., 1], values[..., 1])


def test_what_opencv_cannot_decode_is_told_once_and_as_it_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    data = zoo.tiff(noise(16, 16, 4), tiled=True)
    with pytest.raises(Unreadable, match="TIFF of 4 channels in tiles or compressed"), reading(999):
        decode(data)
    assert capfd.readouterr().err == ""


def test_channels_that_none_can_use_take_no_memory() -> None:
    data = zoo.tiff(np.zeros((300, 300, 64), np.uint16), deflate=True)
    with pytest.raises(Unreadable, match=r"64 channels; data\.channels takes 4 at most"):
        decode(data)


def test_to_channels() -> None:
    gray, rgb = noise(c=1), noise()
    assert (to_channels(gray, 3) == gray).all()
    expected = np.asarray(Image.fromarray(rgb).convert("L"), int)
    assert np.abs(to_channels(rgb, 1)[..., 0].astype(int) - expected).max() <= 1
    assert to_channels(rgb, 3) is rgb
    with pytest.raises(Unreadable, match=r"3 channels, data\.channels is 4"):
        to_channels(rgb, 4)


@pytest.mark.parametrize("shape", [(100, 150), (64, 64), (7, 11)])
@pytest.mark.parametrize("made", [to_channels, runtime.to_channels])
def test_gray_does_not_depend_on_where_a_pixel_lies(made: Any, shape: tuple[int, int]) -> None:
    picture = np.zeros((*shape, 3), np.uint8) + np.array([0, 138, 171], np.uint8)
    assert np.unique(made(picture, 1)).tolist() == [100]


def test_to_depth_keeps_black_and_white_and_comes_back() -> None:
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    deep = to_depth(picture, np.uint16)
    assert (deep.min(), deep.max()) == (0, 65535)
    np.testing.assert_array_equal(to_depth(deep, np.uint8), picture)


@pytest.mark.parametrize("rule", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(1, 1), (900, 12), (12, 900), (50, 50), (33, 47)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_gives_the_size_asked_for(
    rule: Any, shape: tuple[int, int], channels: int, dtype: Any
) -> None:
    found = resize(noise(*shape, channels, dtype), 16, rule)
    assert found.shape == (16, 16, channels)
    assert found.dtype == dtype


def test_crop_keeps_the_centre_squash_all_and_pad_the_shape() -> None:
    picture = np.zeros((20, 60, 1), np.uint8)
    picture[:, 20:40] = 200
    assert (resize(picture, 20, "crop") == 200).all()
    assert 0.2 < (resize(picture, 30, "squash") > 100).mean() < 0.5
    padded = resize(np.full((20, 60, 1), 200, np.uint8), 30, "pad")
    assert (padded[10:20] == 200).all()
    assert (padded[:9] == 0).all()
    assert (padded[21:] == 0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_scaling_is_pillows_antialiased_bicubic(dtype: Any) -> None:
    picture = noise(40, 40, 1, dtype)
    image = Image.fromarray(picture[..., 0].astype(np.float32))
    expected = np.asarray(image.resize((13, 13), Image.Resampling.BICUBIC))
    expected = expected.clip(0, np.iinfo(dtype).max)
    assert np.abs(resize(picture, 13, "squash")[..., 0] - expected).max() <= 1.01


def test_resizing_keeps_the_low_byte() -> None:
    one = np.full((10, 10, 1), 0x1200, np.uint16)
    assert not np.array_equal(resize(one, 5, "crop"), resize(one + np.uint16(1), 5, "crop"))
