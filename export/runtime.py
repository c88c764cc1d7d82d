"""Features of pictures on the device: numpy, Pillow and onnxruntime, nothing else.

    python runtime.py pictures/ more.png --out features.npz    (or .csv)
    python runtime.py --check                                  (same features as in training?)
    python runtime.py --benchmark

    from runtime import Extractor
    features = Extractor("bundle/").embed(["a.png", array])    # (2, width) float32

Exit status: 0 fine; 1 some pictures could not be read, or the check failed; 2 wrong use or a
damaged bundle.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

FORMAT = 1
MANIFEST, GOLDEN = "manifest.json", "golden.npz"
_SIXTEEN_BIT = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_GRAY = {"1", "L", "LA", "La"} | _SIXTEEN_BIT
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")

Array = Any  # numpy arrays; devices have old numpys without types
Picture = Any  # a path, a Pillow image, or an array (h, w) or (h, w, c) of uint8 or uint16


class BundleError(Exception):
    """The bundle cannot be used; the text is one line."""


class Unreadable(Exception):
    """A picture cannot be used; the text is the reason."""


class Extractor:
    """An exported encoder.

    Args:
        bundle: the folder; the one of this file when None.
        variant: which of its models, such as `encoder.fp16.onnx`.
        device: auto (a GPU where onnxruntime has one), cuda or cpu.
        threads: of the CPU; 0 lets onnxruntime choose.

    Attributes:
        width: of the features.
        provider: what computes, as onnxruntime names it.

    Raises:
        BundleError: damaged, incomplete, of another format, or no such device.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        variant: str = "encoder.onnx",
        device: str = "auto",
        threads: int = 0,
    ) -> None:
        self.bundle = Path(__file__).resolve().parent if bundle is None else Path(bundle)
        self.manifest = read_manifest(self.bundle)
        if not variant.endswith(".onnx"):
            raise BundleError(f"{variant} is not for onnxruntime; name a model ending in .onnx")
        self.session = _open(verified(self.bundle, self.manifest, variant), device, threads)
        self.provider = str(self.session.get_providers()[0])
        taken = self.manifest["input"]
        self.size, self.rule = int(taken["size"]), str(taken["resize"])
        self.channels, self.dtype = int(taken["channels"]), np.dtype(taken["dtype"])
        self.width = int(self.manifest["features"]["width"])

    def embed(self, pictures: Sequence[Picture], batch_size: int = 32) -> Array:
        """Features (n, width) float32 of paths, Pillow images or arrays.

        Raises:
            Unreadable: a picture cannot be used; says which and why.
        """
        features = np.empty((len(pictures), self.width), np.float32)
        for start in range(0, len(pictures), batch_size):
            chunk = pictures[start : start + batch_size]
            batch = [self._named(picture, start + i) for i, picture in enumerate(chunk)]
            features[start : start + len(batch)] = self.run(np.stack(batch))
        return features

    def embed_files(
        self, paths: Sequence[Path], batch_size: int = 32
    ) -> Iterator[tuple[list[Path], Array, list[tuple[Path, str]]]]:
        """Batch by batch: readable paths, their features, and (path, reason) of the others."""
        for start in range(0, len(paths), batch_size):
            good: list[Path] = []
            batch: list[Array] = []
            bad: list[tuple[Path, str]] = []
            for path in paths[start : start + batch_size]:
                try:
                    batch.append(self.prepare(path))
                    good.append(path)
                except Unreadable as error:
                    bad.append((path, str(error)))
            features = self.run(np.stack(batch)) if batch else np.empty((0, self.width), np.float32)
            yield good, features, bad

    def run(self, pictures: Array) -> Array:
        """Features of prepared pictures (n, size, size, channels) of the input's dtype."""
        return self.session.run(None, {self.session.get_inputs()[0].name: pictures})[0]

    def prepare(self, picture: Picture) -> Array:
        """A picture as (size, size, channels), just as training's evaluation saw it."""
        decoded = decode(picture, self.channels)
        shaped = to_depth(to_channels(decoded, self.channels), self.dtype)
        return resize(shaped, self.size, self.rule)

    def _named(self, picture: Picture, number: int) -> Array:
        try:
            return self.prepare(picture)
        except Unreadable as error:
            name = picture if isinstance(picture, str | os.PathLike) else f"number {number}"
            raise Unreadable(f"picture {name} cannot be used: {error}") from None


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The content of `manifest.json`; raises BundleError when there is none that can be used."""
    try:
        manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    except OSError:
        raise BundleError(f"no {MANIFEST} in {bundle}; name a folder made by tinyssl export") from (
            None
        )
    except ValueError as error:
        raise BundleError(f"{bundle / MANIFEST} is damaged: {error}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise BundleError(f"{bundle} has bundle format {found}, this runtime reads {FORMAT}")
    return dict(manifest)


def verified(bundle: Path, manifest: dict[str, Any], name: str) -> bytes:
    """The bytes of one of the bundle's files, if they are those that were exported."""
    listed = manifest["files"]
    if name not in listed:
        raise BundleError(f"{bundle} has no {name}; it has: {', '.join(sorted(listed))}")
    try:
        data = (bundle / name).read_bytes()
    except OSError as error:
        raise BundleError(f"{bundle / name} cannot be read: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != listed[name]["sha256"]:
        raise BundleError(
            f"{bundle / name} is not the file that was exported ({len(data):,} bytes, "
            f"{listed[name]['bytes']:,} expected): its checksum differs; copy the bundle again"
        )
    return data


def _open(model: bytes, device: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    wanted = {"auto": ["CUDAExecutionProvider"], "cuda": ["CUDAExecutionProvider"], "cpu": []}
    if device not in wanted:
        raise BundleError(f"device: got {device!r}, allowed are auto, cuda and cpu")
    there = [p for p in wanted[device] if p in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(model, options, [*there, "CPUExecutionProvider"])
    # onnxruntime lists CUDA without a GPU too, and then falls back without an error.
    if device == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise BundleError("device cuda cannot be used here: onnxruntime has no working GPU")
    return session


def decode(source: Picture, channels: int) -> Array:
    """A picture to (h, w, c) uint8 or uint16, upright, c = 1 or 3, or `channels` with alpha."""
    if isinstance(source, np.ndarray):
        known = source.dtype in (np.uint8, np.uint16) and source.ndim in (2, 3)
        if not known or 0 in source.shape:
            raise Unreadable(f"{source.dtype} array of shape {source.shape}")
        return source[..., None] if source.ndim == 2 else source
    try:
        if isinstance(source, Image.Image):
            return _from_pillow(source, channels)
        data = Path(source).read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return _from_pillow(image, channels)
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable(error.strerror or str(error).partition("\n")[0]) from None
    except Exception as error:  # decoders raise nearly anything on broken data
        raise Unreadable(f"broken data: {error}".partition("\n")[0]) from None


def _from_pillow(image: Image.Image, channels: int) -> Array:
    if _deep_colour(image):
        raise Unreadable("16 bits in each of several channels; convert it, or give it as an array")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise Unreadable("32-bit float has no fixed range; convert it to 16-bit")
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable(f"32-bit values from {values.min()} to {values.max()}")
        return values.astype(np.uint16)[..., None]
    gray = _is_gray(image)
    image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode))
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        if channels == (2 if gray else 4):
            return np.asarray(image.convert("LA" if gray else "RGBA"))
        cut_out = image.convert("RGBA")
        white = Image.new("RGBA", cut_out.size, "white")
        image = Image.alpha_composite(white, cut_out).convert("RGB")
    array = np.asarray(image.convert("L" if gray else "RGB"))
    return array[..., None] if gray else array


def _is_gray(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None:
        palette = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in _GRAY


def _deep_colour(image: Image.Image) -> bool:
    """Pillow would squash these to 8 bits without a word."""
    if image.format == "PNG" and getattr(image, "tile", None):
        arguments = image.tile[0][3]  # type: ignore[attr-defined]
        raw = arguments[0] if isinstance(arguments, tuple) else str(arguments)
        return str(raw).endswith("16B") and image.mode not in _SIXTEEN_BIT
    if image.format == "TIFF":
        bits = image.tag_v2.get(0x0102, (8,))  # type: ignore[attr-defined]
        return len(bits) > 1 and max(bits) == 16
    return False


def to_channels(picture: Array, channels: int) -> Array:
    """(h, w, c) to (h, w, channels): gray from RGB by luma, RGB from gray by repetition."""
    have = picture.shape[2]
    if have == channels:
        return picture
    if (have, channels) == (1, 3):
        return np.repeat(picture, 3, axis=2)
    if (have, channels) == (3, 1):
        return np.rint(picture.astype(np.float32) @ _LUMA)[..., None].astype(picture.dtype)
    raise Unreadable(f"{have} channels, the encoder takes {channels}")


def to_depth(picture: Array, dtype: Any) -> Array:
    """Between uint8 and uint16, keeping black black and white white (times or by 257)."""
    if picture.dtype == dtype:
        return picture
    if dtype == np.uint16:
        return picture.astype(np.uint16) * np.uint16(257)
    return np.rint(picture / 257).astype(np.uint8)


def resize(picture: Array, size: int, rule: str) -> Array:
    """(h, w, c) to (size, size, c); bicubic with antialiasing; rule is crop, pad or squash."""
    h, w, c = picture.shape
    if rule == "crop":
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
    cubic, c = Image.Resampling.BICUBIC, picture.shape[2]
    if picture.dtype == np.uint8 and c in (1, 3):
        image = Image.fromarray(np.ascontiguousarray(picture[..., 0] if c == 1 else picture))
        return np.asarray(image.resize((width, height), cubic)).reshape(height, width, c)
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), cubic))
        for plane in np.ascontiguousarray(np.moveaxis(picture, 2, 0), dtype=np.float32)
    ]
    rounded = np.rint(np.stack(planes, axis=2)).clip(0, np.iinfo(picture.dtype).max)
    return rounded.astype(picture.dtype)


def find_pictures(names: Sequence[str]) -> list[Path]:
    """Pictures named, and those below folders named, in order; hidden ones are passed over."""
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
            inside = (p.relative_to(path).parts for p in below)
            visible = [not any(part.startswith(".") for part in parts) for parts in inside]
            if not any(visible):
                raise BundleError(f"no pictures in {name}; looked for {', '.join(_SUFFIXES)}")
            found += [p for p, shown in zip(below, visible) if shown]  # noqa: B905
        else:
            found.append(path)
    return found


def check(extractor: Extractor, variant: str) -> tuple[bool, str]:
    """Compares this device's features with those of training: (passed, one line)."""
    data = verified(extractor.bundle, extractor.manifest, GOLDEN)
    with np.load(io.BytesIO(data), allow_pickle=False) as golden:
        pictures, wanted = golden["pictures"], golden["features"]
    found = extractor.run(pictures)
    worst = float(np.abs(found - wanted).max())
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
    cosine = float(((found * wanted).sum(axis=1) / np.maximum(lengths, 1e-30)).min())
    limits = extractor.manifest["files"][variant]["tolerance"]
    passed = worst <= limits["max_abs"] and cosine >= limits["cosine"]
    return passed, (
        f"{'passed' if passed else 'FAILED'}: {len(pictures)} pictures, largest difference "
        f"{worst:.2g} (allowed {limits['max_abs']:.2g}), worst cosine {cosine:.6f} "
        f"(allowed {limits['cosine']}), {variant} on {extractor.provider}"
    )


def benchmark(extractor: Extractor, batch: int, seconds: float = 2.0) -> dict[str, float]:
    """Latency of the model alone, without decoding: median and p95 in ms, and pictures/s."""
    shape = (batch, extractor.size, extractor.size, extractor.channels)
    high = np.iinfo(extractor.dtype).max
    pictures = np.random.default_rng(0).integers(0, high, shape, extractor.dtype)
    return latency(lambda: extractor.run(pictures), batch, seconds)


def latency(call: Callable[[], Any], batch: int, seconds: float) -> dict[str, float]:
    """Times a call that takes `batch` pictures: median and p95 in ms, pictures/s, and how often."""
    for _ in range(3):
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    median = float(np.median(times))
    return {
        "median_ms": 1e3 * median,
        "p95_ms": 1e3 * float(np.percentile(times, 95)),
        "pictures_per_s": batch / median,
        "runs": len(times),
    }


def _peak_mb() -> float | None:
    """The most memory this process has held, in MB; None where the system does not say."""
    try:
        # Not getrusage: its peak counts the process that started this one too.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["VmHWM"].split()[0]) / 1e3


def _write(out: Path, names: list[str], features: Array) -> None:
    temporary = out.with_name(f".{out.name}.tmp")
    if out.suffix == ".csv":
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", *(f"feature{i}" for i in range(features.shape[1]))])
            writer.writerows([name, *row.tolist()] for name, row in zip(names, features))  # noqa: B905
    else:
        with temporary.open("wb") as file:
            np.savez(file, paths=np.array(names), features=features)
    temporary.replace(out)


def _extract(extractor: Extractor, names: Sequence[str], out: Path, batch: int) -> int:
    paths = find_pictures(names)
    good: list[str] = []
    blocks: list[Array] = []
    failed = 0
    for read, features, bad in extractor.embed_files(paths, batch):
        good += [str(path) for path in read]
        blocks.append(features)
        failed += len(bad)
        for path, reason in bad:
            print(f"runtime: {path}: {reason}", file=sys.stderr)
    if good:
        _write(out, good, np.concatenate(blocks))
    print(f"{len(good)} of {len(paths)} pictures, {extractor.provider}", end="")
    print(f": wrote {out}" if good else "; nothing written")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Features of pictures by an exported encoder.",
        epilog="python runtime.py pictures/ --out features.npz",
    )
    parser.add_argument("pictures", nargs="*", help="picture files or folders")
    parser.add_argument("--out", type=Path, help="features.npz or features.csv")
    parser.add_argument("--bundle", type=Path, help="folder of the bundle (this file's)")
    parser.add_argument("--variant", default="encoder.onnx", help="model file of the bundle")
    parser.add_argument("--device", default="auto", help="auto, cuda or cpu")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: all")
    parser.add_argument("--batch", type=int, default=32, help="pictures at a time")
    parser.add_argument("--check", action="store_true", help="compare with training's features")
    parser.add_argument("--benchmark", action="store_true", help="latency on this machine")
    parser.add_argument("--seconds", type=float, default=2.0, help="that --benchmark takes")
    parser.add_argument("--json", action="store_true", help="--benchmark prints JSON")
    return parser


def _main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    wanted = bool(given.pictures) + given.check + given.benchmark
    if wanted != 1:
        parser.error("give pictures, or --check, or --benchmark")
    if given.pictures and (given.out is None or given.out.suffix not in (".npz", ".csv")):
        parser.error("give --out FILE.npz or --out FILE.csv")
    if given.batch < 1:
        parser.error("--batch must be at least 1")
    extractor = Extractor(given.bundle, given.variant, given.device, given.threads)
    if given.check:
        passed, told = check(extractor, given.variant)
        print(told)
        return 0 if passed else 1
    if given.benchmark:
        found = benchmark(extractor, given.batch, given.seconds)
        if given.json:
            print(json.dumps({**found, "provider": extractor.provider, "peak_mb": _peak_mb()}))
            return 0
        print(
            f"batch {given.batch}: median {found['median_ms']:.2f} ms, p95 "
            f"{found['p95_ms']:.2f} ms, {found['pictures_per_s']:,.0f} pictures/s, "
            f"{given.variant} on {extractor.provider}"
        )
        return 0
    return _extract(extractor, given.pictures, given.out, given.batch)


def main() -> None:
    """Entry point: one line and exit status 2 for a bundle that cannot be used."""
    try:
        sys.exit(_main())
    except (BundleError, ImportError) as error:
        print(f"runtime: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
