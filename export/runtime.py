"""Features of pictures on the device; needs only numpy, Pillow, and onnxruntime or TensorRT.

    python runtime.py pictures/ more.png --out features.npz    (or .csv)
    python runtime.py pictures/                                (prints classes of a classifier)
    python runtime.py --check                                  (compares with training's features)
    python runtime.py --benchmark

    from runtime import Extractor
    features = Extractor("bundle/").embed(["a.png", array])    # (2, width) float32

Exit status: 0 success; 1 some pictures could not be read, or the check failed; 2 wrong usage or a
damaged bundle.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import hashlib
import importlib
import io
import itertools
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

FORMAT = 1
MANIFEST, GOLDEN = "manifest.json", "golden.npz"
FEATURES, PROBABILITIES = "features", "probabilities"
MODEL, ENGINE, ENGINE_FACTS = "encoder.onnx", "encoder.engine", "encoder.engine.json"
_SIXTEEN_BIT = {"I", "I;16", "I;16B", "I;16L", "I;16N"}
_GRAY = {"1", "L", "LA", "La"} | _SIXTEEN_BIT
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_BICUBIC = 3  # of Pillow; Image.Resampling is missing in version 9.0, that of Ubuntu 22.04
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # EPS would start a program
MAX_PIXELS = 89_478_485  # of a picture, unless the manifest sets another limit
_LARGEST_MANIFEST = 1 << 26  # bytes
_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".gif", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm",
)  # fmt: skip
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")

Array = Any  # numpy arrays; old versions of numpy on devices have no types
Picture = Any  # a path, a Pillow image, or an array (h, w) or (h, w, c) of uint8 or uint16


class BundleError(Exception):
    """The bundle cannot be used; the message is one line."""


class Unreadable(Exception):
    """A picture cannot be used; the message is the reason."""


class Extractor:
    """An exported encoder. Threads may share it, except with TensorRT.

    Args:
        bundle: its folder; the folder of this file when None.
        variant: one of its models, such as `encoder.fp16.onnx`. When None the TensorRT engine if
            one was built here and can run, otherwise `encoder.onnx`.
        device: auto (TensorRT, CUDA, CPU, in this order), tensorrt, cuda or cpu.
        threads: number of CPU threads; 0 lets onnxruntime choose.

    Attributes:
        variant: the model in use.
        provider: the backend that runs it.
        passed_over: why an existing engine is not used; otherwise empty.
        width: of the features.
        classes: names of the classes; empty without a classifier.

    Raises:
        BundleError: the bundle is damaged, incomplete or of another format, the device cannot be
            used, or Pillow is older than version 9.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        variant: str | None = None,
        device: str = "auto",
        threads: int = 0,
    ) -> None:
        if device not in ("auto", "tensorrt", "cuda", "cpu"):
            raise BundleError(f"device: got {device!r}, allowed are auto, tensorrt, cuda and cpu")
        if threads < 0:
            raise BundleError(f"threads: got {threads}; give 0 (all) or more")
        if int(PIL.__version__.partition(".")[0]) < 9:
            raise BundleError(
                f"Pillow {PIL.__version__} is too old; install a newer one: pip install -U pillow"
            )
        self.bundle = Path(__file__).resolve().parent if bundle is None else Path(bundle)
        self.manifest = read_manifest(self.bundle)
        self.passed_over = ""
        self.variant = variant or self._preferred(device)
        self.session = self._open(device, threads, required=variant is not None)
        self.provider = self.session.provider
        taken = self.manifest["input"]
        self.size, self.rule = int(taken["size"]), str(taken["resize"])
        self.channels, self.dtype = int(taken["channels"]), np.dtype(taken["dtype"])
        self.max_pixels = int(taken.get("max_pixels", MAX_PIXELS))
        self.width = int(self.manifest["features"]["width"])
        self.classes = [str(name) for name in self.manifest.get("classes", [])]

    def _preferred(self, device: str) -> str:
        there = (self.bundle / ENGINE).exists()
        return ENGINE if device == "tensorrt" or (device == "auto" and there) else MODEL

    def _open(self, device: str, threads: int, required: bool) -> OnnxSession | EngineSession:
        if self.variant == ENGINE:
            if device not in ("auto", "tensorrt"):
                raise BundleError(f"{ENGINE} runs in TensorRT only; leave device {device} out")
            try:
                return EngineSession(*read_engine(self.bundle, self.manifest))
            except BundleError as error:
                if required or device == "tensorrt":
                    raise
                self.passed_over, self.variant = str(error), MODEL
        if device == "tensorrt":
            raise BundleError(f"device tensorrt runs {ENGINE} only; leave {self.variant} out")
        if not self.variant.endswith(".onnx"):
            raise BundleError(f"{self.variant} is not for this program; it runs .onnx and {ENGINE}")
        model = verified(self.bundle, self.manifest, self.variant)
        session = OnnxSession(model, device, threads)
        self._refuse_unlike(session.told)
        return session

    def _refuse_unlike(self, told: dict[str, str]) -> None:
        """Compares the manifest with the model's metadata: another input gives other features."""
        for key in ("size", "resize", "channels", "dtype"):
            mine, its = str(self.manifest["input"][key]), told.get(f"input.{key}")
            if its not in (None, mine):
                raise BundleError(
                    f"{self.bundle / MANIFEST} is damaged: input.{key} is {mine}, that of "
                    f"{self.variant} {its}; take another copy of the bundle"
                )

    @property
    def tolerance(self) -> dict[str, float]:
        """Limits of differences from training's features; an engine has those of its model."""
        model = self.session.model if isinstance(self.session, EngineSession) else self.variant
        limits = self.manifest["files"].get(model, {}).get("tolerance")
        if limits is None:
            raise BundleError(f"{self.bundle / MANIFEST} has no tolerance for {model}")
        return dict(limits)

    def embed(self, pictures: Sequence[Picture], batch_size: int = 32) -> Array:
        """Features (n, width) float32 of paths, Pillow images or arrays.

        Raises:
            BundleError: a single picture instead of several, or a batch size below 1.
            Unreadable: a picture cannot be used; says which and why.
        """
        return self._of_all(pictures, batch_size, FEATURES, self.width)

    def classify(self, pictures: Sequence[Picture], batch_size: int = 32) -> Array:
        """Probabilities (n, classes) float32 of paths, Pillow images or arrays.

        Raises:
            BundleError: the bundle has no classifier, or as for `embed`.
            Unreadable: a picture cannot be used; says which and why.
        """
        if not self.classes:
            raise BundleError(f"{self.bundle} has no classifier; export a run of tinyssl finetune")
        return self._of_all(pictures, batch_size, PROBABILITIES, len(self.classes))

    def _of_all(
        self, pictures: Sequence[Picture], batch_size: int, output: str, width: int
    ) -> Array:
        _refuse_odd_batches(pictures, batch_size)
        rows = np.empty((len(pictures), width), np.float32)
        for start in range(0, len(pictures), batch_size):
            chunk = pictures[start : start + batch_size]
            batch = [self._named(picture, start + i) for i, picture in enumerate(chunk)]
            rows[start : start + len(batch)] = self.outputs(np.stack(batch))[output]
        return rows

    def run_files(
        self, paths: Sequence[Path], batch_size: int = 32
    ) -> Iterator[tuple[list[Path], dict[str, Array], list[tuple[Path, str]]]]:
        """Yields, by batch, readable paths, their outputs, and (path, reason) of the others."""
        _refuse_odd_batches(paths, batch_size)
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
            yield good, self.outputs(np.stack(batch)) if batch else {}, bad

    def run(self, pictures: Array) -> Array:
        """Features of prepared pictures (n, size, size, channels) of the input's dtype."""
        return self.outputs(pictures)[FEATURES]

    def outputs(self, pictures: Array) -> dict[str, Array]:
        """Features, and with a classifier probabilities, of prepared pictures.

        Raises:
            BundleError: the model cannot run, or returns something else.
        """
        found = self.session.run(pictures)
        wanted = [(FEATURES, self.width)]
        wanted += [(PROBABILITIES, len(self.classes))] if self.classes else []
        for name, width in wanted:
            rows = found.get(name)
            if rows is None or rows.shape != (len(pictures), width) or not np.isfinite(rows).all():
                raise BundleError(
                    f"{self.variant} does not give {width} finite {name} a picture, as the "
                    f"{MANIFEST} says; take another copy of the bundle"
                )
        return found

    def prepare(self, picture: Picture) -> Array:
        """A picture as (size, size, channels), exactly as in evaluation during training."""
        decoded = decode(picture, self.channels, self.max_pixels)
        shaped = to_depth(to_channels(decoded, self.channels), self.dtype)
        return resize(shaped, self.size, self.rule)

    def _named(self, picture: Picture, number: int) -> Array:
        try:
            return self.prepare(picture)
        except Unreadable as error:
            name = picture if isinstance(picture, (str, os.PathLike)) else f"number {number}"
            raise Unreadable(f"picture {name} cannot be used: {error}") from None


def read_manifest(bundle: Path) -> dict[str, Any]:
    """The content of `manifest.json`; raises BundleError if it is missing or unusable."""
    try:
        with (bundle / MANIFEST).open("rb") as file:
            text = file.read(_LARGEST_MANIFEST + 1)
        if len(text) > _LARGEST_MANIFEST:
            raise ValueError(f"more than {_LARGEST_MANIFEST:,} bytes")
        manifest = json.loads(text.decode("utf-8"))
    except OSError:
        raise BundleError(f"no {MANIFEST} in {bundle}; name a folder made by tinyssl export") from (
            None
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{bundle / MANIFEST} is damaged: {error}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise BundleError(
            f"{bundle} has bundle format {found!r}, this runtime reads {FORMAT}; export it again"
        )
    wrong = _nonsense(manifest)
    if wrong:
        raise BundleError(f"{bundle / MANIFEST} is damaged: {wrong}")
    return dict(manifest)


def _nonsense(manifest: dict[str, Any]) -> str:
    """The first fault of a manifest, which is untrusted; empty if there is none."""
    taken, given = manifest.get("input"), manifest.get("features")
    files, classes = manifest.get("files"), manifest.get("classes", [])
    if not (isinstance(taken, dict) and isinstance(given, dict) and isinstance(files, dict)):
        return "input, features and files must be there"
    wanted = {
        "input.size": _whole(taken.get("size"), 8192),
        "input.channels": _whole(taken.get("channels"), 4),
        "input.max_pixels": _whole(taken.get("max_pixels", MAX_PIXELS), 1 << 50),
        "input.resize": taken.get("resize") in ("crop", "pad", "squash"),
        "input.dtype": taken.get("dtype") in ("uint8", "uint16"),
        "features.width": _whole(given.get("width"), 1 << 20),
        "features.normalized": isinstance(given.get("normalized"), bool),
        "encoder": _named(manifest.get("encoder")),
        "classes": isinstance(classes, list) and all(isinstance(name, str) for name in classes),
    }
    wanted.update({f"files: {name[:80]!r}": _listed(name, facts) for name, facts in files.items()})
    return next((f"{key} is invalid" for key, good in wanted.items() if not good), "")


def _named(encoder: Any) -> bool:
    return (
        isinstance(encoder, dict)
        and all(isinstance(encoder.get(key), str) for key in ("name", "stem"))
        and _whole(encoder.get("levels", 1), 64)
        and encoder.get("pooling", "mean") in ("mean", "statistics")
        and isinstance(encoder.get("descriptors", False), bool)
        and (encoder.get("components") in (None, 0) or _whole(encoder["components"], 1 << 16))
    )


def _whole(value: Any, most: int) -> bool:
    return type(value) is int and 1 <= value <= most


def _listed(name: str, facts: Any) -> bool:
    """Whether an entry is a plain file name, not a path, with size, checksum and tolerance."""
    plain = set(name).isdisjoint("/\\\0") and name not in ("", ".", "..")
    told = isinstance(facts, dict) and isinstance(facts.get("sha256"), str)
    limits = facts.get("tolerance", {"max_abs": 0, "cosine": 0}) if told else None
    return (
        plain
        and told
        and type(facts.get("bytes")) is int
        and isinstance(limits, dict)
        and {"max_abs", "cosine"} <= set(limits)
        and all(isinstance(limit, (int, float)) for limit in limits.values())
    )


def verified(bundle: Path, manifest: dict[str, Any], name: str) -> bytes:
    """The bytes of one of the bundle's files; raises BundleError if they were changed."""
    listed = manifest["files"]
    if name not in listed:
        raise BundleError(f"{bundle} has no {name}; it has: {', '.join(sorted(listed))}")
    expected = listed[name]["bytes"]
    try:
        size = (bundle / name).stat().st_size
        data = (bundle / name).read_bytes() if size == expected else b""
    except OSError as error:
        raise BundleError(f"{bundle / name} cannot be read: {error.strerror or error}") from None
    if size != expected or hashlib.sha256(data).hexdigest() != listed[name]["sha256"]:
        raise BundleError(
            f"{bundle / name} is not the file that was exported ({size:,} bytes, "
            f"{expected:,} expected): its checksum differs; copy the bundle again"
        )
    return data


def read_engine(bundle: Path, manifest: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The engine that build_engine.py built from this bundle, and its facts."""
    try:
        facts = json.loads((bundle / ENGINE_FACTS).read_text(encoding="utf-8"))
        data = (bundle / ENGINE).read_bytes()
        checksum, model = facts["sha256"], str(facts["model"])
        built_of = facts.get("model_sha256")
    except (OSError, ValueError, KeyError, TypeError):
        raise BundleError(
            f"{bundle} has no complete {ENGINE} with its {ENGINE_FACTS}; run build_engine.py here"
        ) from None
    if hashlib.sha256(data).hexdigest() != checksum:
        raise BundleError(f"{bundle / ENGINE} is damaged; run build_engine.py again")
    # A new bundle that is copied over an old one leaves the old engine in place.
    listed = manifest["files"].get(model)
    if listed and built_of not in (None, listed["sha256"]):
        raise BundleError(
            f"{bundle / ENGINE} was built from another {model}; run build_engine.py again"
        )
    return data, facts


_AT_ONCE = 8  # pictures in a batch: on CPUs more of them take memory and are no faster


class OnnxSession:
    """A model in onnxruntime; on a CPU it runs on 8 pictures at a time.

    Args:
        model: content of the ONNX file.
        device: auto and cuda use a GPU, auto only if there is one.
        threads: number of CPU threads; 0 lets onnxruntime choose.
    """

    def __init__(self, model: bytes, device: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        cuda = "CUDAExecutionProvider"
        there = device != "cpu" and cuda in onnxruntime.get_available_providers()
        gpu = [(cuda, _cuda_options(onnxruntime.__version__))] if there else []
        try:
            self.session = onnxruntime.InferenceSession(
                model, options, [*gpu, "CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime has a class for every cause
            raise BundleError(f"the model cannot be loaded: {error}".partition("\n")[0]) from None
        self.told: dict[str, str] = self.session.get_modelmeta().custom_metadata_map
        self.provider = str(self.session.get_providers()[0])
        # onnxruntime lists CUDA even without a GPU, and then falls back without an error.
        if device == "cuda" and self.provider != cuda:
            raise BundleError("device cuda cannot be used here: onnxruntime has no working GPU")
        self.input = self.session.get_inputs()[0].name
        self.names = [output.name for output in self.session.get_outputs()]
        if FEATURES not in self.names:
            raise BundleError(f"the model gives {', '.join(self.names)}, but no {FEATURES}")

    def run(self, pictures: Array) -> dict[str, Array]:
        """(n, size, size, channels) to outputs (n, width) float32 by name."""
        on_cpu = self.provider == "CPUExecutionProvider"
        size = _AT_ONCE if on_cpu else max(1, len(pictures))
        chunks = [pictures[s : s + size] for s in range(0, max(1, len(pictures)), size)]
        try:
            parts = [self.session.run(self.names, {self.input: chunk}) for chunk in chunks]
            return {name: np.concatenate(rows) for name, *rows in zip(self.names, *parts)}  # noqa: B905
        except Exception as error:  # onnxruntime has a class for every cause
            told = str(error).partition("\n")[0]
            raise BundleError(f"the model cannot run on {pictures.shape}: {told}") from None


def _cuda_options(version: str) -> dict[str, str]:
    """Options without TF32, which keeps 10 bits of float32 and would fail the check.

    Before 1.18 onnxruntime has no such option.
    """
    major, minor = version.split(".")[:2]
    return {"use_tf32": "0"} if (int(major), int(minor)) >= (1, 18) else {}


class EngineSession:
    """A TensorRT engine; batches larger than it was built for are split.

    Args:
        engine: content of the engine file.
        facts: content of the file that build_engine.py wrote beside it.
    """

    provider = "TensorRT"

    def __init__(self, engine: bytes, facts: dict[str, Any]) -> None:
        trt = _tensorrt(facts)
        self.model = str(facts["model"])
        self.cuda = Cuda()
        self.runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self.engine = self.runtime.deserialize_cuda_engine(engine)
        if self.engine is None:
            raise BundleError(
                f"TensorRT cannot load {ENGINE} on this GPU; run build_engine.py here"
            )
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise BundleError(f"TensorRT has too little memory here to run {ENGINE}")
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        modes = [self.engine.get_tensor_mode(name) for name in names]
        self.input = names[modes.index(trt.TensorIOMode.INPUT)]
        self.batch = int(self.engine.get_tensor_profile_shape(self.input, 0)[2][0])
        one = int(np.prod(self.engine.get_tensor_shape(self.input)[1:])) * 2  # uint16 at most
        self.taken = self.cuda.allocate(self.batch * one)
        given = [name for name in names if name != self.input]
        self.widths = {name: int(self.engine.get_tensor_shape(name)[1]) for name in given}
        self.given = {
            name: self.cuda.allocate(self.batch * width * 4) for name, width in self.widths.items()
        }
        self.stream = self.cuda.stream()

    def run(self, pictures: Array) -> dict[str, Array]:
        """(n, size, size, channels) to outputs (n, width) float32 by name."""
        starts = range(0, max(1, len(pictures)), self.batch)
        parts = [self._run(pictures[start : start + self.batch]) for start in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.widths}

    def _run(self, pictures: Array) -> dict[str, Array]:
        pictures = np.ascontiguousarray(pictures)
        found = {n: np.empty((len(pictures), w), np.float32) for n, w in self.widths.items()}
        if not len(pictures):
            return found
        self.cuda.to_device(self.taken, pictures)
        self.context.set_input_shape(self.input, pictures.shape)
        self.context.set_tensor_address(self.input, self.taken.value)
        for name, there in self.given.items():
            self.context.set_tensor_address(name, there.value)
        if not self.context.execute_async_v3(self.stream.value):
            raise BundleError(f"TensorRT could not run {ENGINE}")
        self.cuda.wait(self.stream)
        for name, rows in found.items():
            self.cuda.to_host(rows, self.given[name])
        return found


def _tensorrt(facts: dict[str, Any]) -> Any:
    name, built = str(facts.get("package")), str(facts.get("version"))
    if name not in ("tensorrt", "tensorrt_rtx"):  # untrusted, and imported below
        raise BundleError(f"{ENGINE_FACTS} names no TensorRT; run build_engine.py here")
    try:
        trt = importlib.import_module(name)
    except (ImportError, OSError):
        raise BundleError(f"{ENGINE} needs {name} {built}, which is not installed here") from None
    if trt.__version__ != built:
        raise BundleError(
            f"{ENGINE} was built by {name} {built}, here is {trt.__version__}; run build_engine.py"
        )
    return trt


class Cuda:
    """The functions of CUDA's runtime library that an engine needs, without a Python package."""

    _TO_DEVICE, _TO_HOST = 1, 2

    def __init__(self) -> None:
        self.library = _load_cudart()
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))

    def allocate(self, size: int) -> ctypes.c_void_p:
        """Allocates `size` bytes of GPU memory, which is kept until the process ends."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        return pointer

    def stream(self) -> ctypes.c_void_p:
        """A new stream."""
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(handle))
        return handle

    def wait(self, stream: ctypes.c_void_p) -> None:
        """Waits until all work on the stream is done."""
        self._call("cudaStreamSynchronize", stream)

    def to_device(self, there: ctypes.c_void_p, array: Array) -> None:
        """Copies a contiguous array to the GPU."""
        self._copy(there, ctypes.c_void_p(array.ctypes.data), array.nbytes, self._TO_DEVICE)

    def to_host(self, array: Array, there: ctypes.c_void_p) -> None:
        """Copies from the GPU to a contiguous array."""
        self._copy(ctypes.c_void_p(array.ctypes.data), there, array.nbytes, self._TO_HOST)

    def _copy(self, to: ctypes.c_void_p, of: ctypes.c_void_p, size: int, kind: int) -> None:
        self._call("cudaMemcpy", to, of, ctypes.c_size_t(size), ctypes.c_int(kind))

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            self.library.cudaGetErrorString.restype = ctypes.c_char_p
            reason = self.library.cudaGetErrorString(status).decode()
            raise BundleError(f"no GPU can be used here: {name} says {reason!r}")


def _load_cudart() -> Any:
    """Loads CUDA's runtime library from the system's paths or the packages of pip's TensorRT."""
    beside = Path(np.__file__).parents[1]
    packaged = sorted(map(str, beside.glob("nvidia/*/lib/libcudart.so.*")), reverse=True)
    plain = ["libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0"]
    for name in [*plain, *packaged]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise BundleError(f"{ENGINE} needs CUDA's runtime library (libcudart), which is not here")


def _refuse_odd_batches(pictures: object, batch_size: int) -> None:
    single = isinstance(pictures, (str, os.PathLike, Image.Image))
    if isinstance(pictures, np.ndarray) and pictures.dtype.kind in "biuf":
        colour = pictures.ndim == 3 and 1 <= pictures.shape[2] <= 4
        single = pictures.ndim == 2 or colour  # otherwise three axes are several gray pictures
    if single:
        raise BundleError("a list of pictures is wanted; put a single one into a list")
    if batch_size < 1:
        raise BundleError(f"batch_size: got {batch_size}; give 1 or more")


def decode(source: Picture, channels: int, max_pixels: int = MAX_PIXELS) -> Array:
    """A picture as (h, w, c) uint8 or uint16, upright; c is 1 or 3, or `channels` with alpha.

    Raises:
        Unreadable: not a picture, damaged, or larger than `max_pixels`; says why.
    """
    if isinstance(source, np.ndarray):
        known = source.dtype in (np.uint8, np.uint16) and source.ndim in (2, 3)
        if not known or 0 in source.shape:
            told = f"{source.dtype} array of shape {source.shape}"
            raise Unreadable(f"{told}; wanted is uint8 or uint16, (h, w) or (h, w, c)")
        return source[..., None] if source.ndim == 2 else source
    try:
        if isinstance(source, Image.Image):
            return _from_pillow(source, channels)
        if Path(source).is_dir():
            next(Path(source).iterdir(), None)  # raises the reason if it cannot be read
        if not Path(source).is_file() and Path(source).exists():
            raise Unreadable("not a regular file")
        if Path(source).stat().st_size > 8 * max_pixels + (1 << 26):
            raise Unreadable(f"more bytes than a picture of {max_pixels:,} pixels can have")
        data = Path(source).read_bytes()
        if not data:
            raise Unreadable("empty file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if (Image.MAX_IMAGE_PIXELS or max_pixels) < max_pixels:
                Image.MAX_IMAGE_PIXELS = max_pixels  # or Pillow refuses pictures allowed here
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise Unreadable(f"{image.width} x {image.height}: over {max_pixels:,} pixels")
                return _from_pillow(image, channels)
    except Unreadable:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit is twice this one
        raise Unreadable(f"over {max_pixels:,} pixels") from None
    except UnidentifiedImageError:
        raise Unreadable(f"not a picture in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}") from None
    except OSError as error:
        raise Unreadable(error.strerror or str(error).partition("\n")[0]) from None
    except MemoryError:
        raise Unreadable("too little memory for it") from None
    except Exception as error:  # decoders raise errors of many kinds on damaged data
        raise Unreadable(f"broken data: {error}".partition("\n")[0]) from None


def _from_pillow(image: Image.Image, channels: int) -> Array:
    if _deep_colour(image):
        raise Unreadable("16 bits in each of several channels; convert it, or give it as an array")
    _refuse_misread(image, channels)
    if image.format == "PPM" and PIL.__version__.startswith("9.0."):
        raise Unreadable("Pillow 9.0 reads some PPM and PGM files too dark; install a newer one")
    limit = _white_value(image)
    image.load()
    # Loading has turned a TIFF, whose orientation is still there before Pillow 10.1.
    orientation = 1 if image.format == "TIFF" else _orientation(image)
    return _upright(_pixels(image, limit, channels), orientation)


def _orientation(image: Image.Image) -> int:
    """By EXIF, 1 to 8; 1 where EXIF cannot be read, which does not concern the pixels."""
    try:
        found = image.getexif().get(0x0112)
    except Exception:  # nearly anything on broken EXIF
        return 1
    return found if isinstance(found, int) else 1


def _upright(array: Array, orientation: int) -> Array:
    """Undoes an EXIF orientation (CIPA DC-008, tag 0x0112)."""
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _pixels(image: Image.Image, limit: int | None, channels: int) -> Array:
    """(h, w, c) as `decode`, but not turned; `limit` is from `_white_value`."""
    if image.mode == "F":
        raise Unreadable("32-bit float has no fixed range; convert it to 16-bit")
    if image.mode in _SIXTEEN_BIT:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable(f"32-bit values from {values.min()} to {values.max()}")
        deep, clear = values.astype(np.uint16)[..., None], image.info.get("transparency")
        if isinstance(clear, int):  # the value of a PNG's transparent pixels
            alpha = np.where(deep == clear, 0, 65535).astype(np.uint16)
            return np.concatenate([deep, alpha], axis=2) if channels == 2 else deep | ~alpha
        return deep if limit is None else np.uint16(limit) - deep
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


def _white_value(image: Image.Image) -> int | None:
    """The largest value of a TIFF whose white is 0, or None; Pillow inverts only 8-bit ones."""
    if image.format != "TIFF" or image.tag_v2.get(0x0106) != 0:  # type: ignore[attr-defined]
        return None
    bits: tuple[int, ...] = image.tag_v2.get(0x0102, (8,))  # type: ignore[attr-defined]
    return (1 << min(16, max(bits))) - 1


def _refuse_misread(image: Image.Image, channels: int) -> None:
    """Refuses a TIFF with channels beyond colours and alpha, which Pillow drops or mixes in."""
    if image.format != "TIFF":
        return
    tags = image.tag_v2  # type: ignore[attr-defined]
    samples, colours = int(tags.get(0x0115, 1)), 3 if tags.get(0x0106) == 2 else 1
    unsigned = set(tags.get(0x0153, (1,))) == {1} and tags.get(0x0106) in (0, 1, 2)
    bits, extra = set(tags.get(0x0102, (1,))), tuple(tags.get(0x0152, ()))
    if not unsigned or samples <= colours or bits not in ({8}, {16}):
        return
    alpha = samples == colours + 1 and bool(extra) and extra[-1] in (1, 2)
    gray_planes = colours == 1 and tags.get(0x011C, 1) == 2  # Pillow confuses these
    if alpha and bits == {8} and not gray_planes:
        return
    if samples != channels:
        raise Unreadable(f"{samples} channels, the encoder takes {channels}")
    if gray_planes or len(image.getbands()) != samples:
        raise Unreadable(f"TIFF of {samples} channels, not all of them read; give it as an array")


def _is_gray(image: Image.Image) -> bool:
    if image.mode == "P" and image.palette is not None:
        palette = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in _GRAY


def _deep_colour(image: Image.Image) -> bool:
    """Whether colours have 16 bits, which Pillow would reduce to 8 without a warning."""
    if image.format == "PNG" and getattr(image, "tile", None):
        arguments = image.tile[0][3]  # type: ignore[attr-defined]
        raw = arguments[0] if isinstance(arguments, tuple) else str(arguments)
        return str(raw).endswith("16B") and image.mode not in _SIXTEEN_BIT
    if image.format == "TIFF":
        bits = image.tag_v2.get(0x0102, (8,))  # type: ignore[attr-defined]
        return len(bits) > 1 and max(bits) == 16
    if image.format == "PPM" and image.mode == "RGB" and getattr(image, "tile", None):
        decoder, _, _, arguments = image.tile[0]  # type: ignore[attr-defined]
        return bool(decoder == "ppm" and arguments[1] > 255)
    return False


def to_channels(picture: Array, channels: int) -> Array:
    """(h, w, c) to (h, w, channels): RGB to gray by luma, gray to RGB by repetition."""
    have = picture.shape[2]
    if have == channels:
        return picture
    if (have, channels) == (1, 3):
        return np.repeat(picture, 3, axis=2)
    if (have, channels) == (3, 1):
        red, green, blue = (picture[..., i].astype(np.float32) * _LUMA[i] for i in range(3))
        return np.rint(red + green + blue)[..., None].astype(picture.dtype)
    raise Unreadable(f"{have} channels, the encoder takes {channels}")


def to_depth(picture: Array, dtype: Any) -> Array:
    """Converts between uint8 and uint16 by a factor of 257, which keeps black and white."""
    if picture.dtype == dtype:
        return picture
    if dtype == np.uint16:
        return picture.astype(np.uint16) * np.uint16(257)
    return np.rint(picture / 257).astype(np.uint8)


def resize(picture: Array, size: int, rule: str) -> Array:
    """(h, w, c) to (size, size, c), bicubic with antialiasing; rule is crop, pad or squash."""
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
    c = picture.shape[2]
    if picture.dtype == np.uint8 and c in (1, 3):
        image = Image.fromarray(np.ascontiguousarray(picture[..., 0] if c == 1 else picture))
        return np.asarray(_bicubic(image, height, width)).reshape(height, width, c)
    planes = [
        np.asarray(_bicubic(Image.fromarray(plane), height, width))
        for plane in np.ascontiguousarray(np.moveaxis(picture, 2, 0), dtype=np.float32)
    ]
    rounded = np.rint(np.stack(planes, axis=2)).clip(0, np.iinfo(picture.dtype).max)
    return rounded.astype(picture.dtype)


def _bicubic(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes with the same pixels by every Pillow.

    Each axis is rounded, so their order matters: since version 13 the height of tall pictures comes
    first, before it was always the width.
    """
    if image.height > height and image.height + 2 * width > height + 2 * image.width:
        image = image.resize((image.width, height), _BICUBIC)
    return image.resize((width, height), _BICUBIC)


def find_pictures(names: Sequence[str]) -> list[Path]:
    """The named pictures, and those below named folders, in order.

    Hidden files and folders are skipped; linked folders are entered once. Folders that cannot be
    read are returned, so that reading them tells the reason.
    """
    found: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            below = sorted(_pictures_below(path))
            if not below:
                raise BundleError(f"no pictures in {name}; looked for {', '.join(_SUFFIXES)}")
            found += below
        else:
            found.append(path)
    return found


def _pictures_below(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    closed: list[OSError] = []
    for base, folders, names in os.walk(folder, followlinks=True, onerror=closed.append):
        real = os.path.realpath(base)
        if real in seen:  # by a link
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = (Path(base, name) for name in names if not name.startswith("."))
        yield from (path for path in visible if _is_picture(path))
    yield from (Path(error.filename) for error in closed)


def _is_picture(path: Path) -> bool:
    """Whether a file is a picture by its suffix or, for JPEG, PNG, GIF and WebP, its content."""
    if path.suffix.lower() in _SUFFIXES:
        return True
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(_BEGINNINGS) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def check(extractor: Extractor) -> tuple[bool, str]:
    """Compares this device's outputs with training's; returns (passed, one line)."""
    data = verified(extractor.bundle, extractor.manifest, GOLDEN)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as golden:
            outputs = extractor.outputs(golden["pictures"])
            found, wanted = outputs[FEATURES], golden[FEATURES]
            moved = 0.0  # of probabilities
            if extractor.classes:
                moved = float(np.abs(outputs[PROBABILITIES] - golden[PROBABILITIES]).max())
        worst = float(np.abs(found - wanted).max())
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
        cosines = (found * wanted).sum(axis=1) / np.maximum(lengths, 1e-30)
        cosine, mean = float(cosines.min()), float(cosines.mean())
    except BundleError:
        raise
    except Exception as error:  # from zip files, arrays and memory
        raise BundleError(f"{GOLDEN} cannot be used: {error}".partition("\n")[0]) from None
    limits = {"mean_cosine": -1.0, "probability": 1.0, **extractor.tolerance}
    passed = (
        worst <= limits["max_abs"]
        and cosine >= limits["cosine"]
        and mean >= limits["mean_cosine"]
        and moved <= limits["probability"]
    )
    told = f", probabilities within {moved:.2g} (allowed {limits['probability']:.2g})"
    return passed, (
        f"{'passed' if passed else 'FAILED'}: {len(found)} pictures, largest difference "
        f"{worst:.2g} (allowed {limits['max_abs']:.2g}), worst cosine {cosine:.6f} "
        f"(allowed {limits['cosine']:.5f}){told if extractor.classes else ''}, "
        f"{extractor.variant} on {extractor.provider}"
    )


def benchmark(extractor: Extractor, batch: int, seconds: float = 2.0) -> dict[str, float]:
    """Latency of the model alone, without decoding; see `latency` for what it returns."""
    shape = (batch, extractor.size, extractor.size, extractor.channels)
    high = np.iinfo(extractor.dtype).max
    pictures = np.random.default_rng(0).integers(0, high, shape, extractor.dtype)
    return latency(lambda: extractor.run(pictures), batch, seconds)


def latency(call: Callable[[], Any], batch: int, seconds: float) -> dict[str, float]:
    """Times a call on `batch` pictures: median and p95 in ms, pictures/s, and number of runs."""
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
    """Peak memory of this process in MB; None if the system does not report it."""
    try:
        # Not getrusage, whose peak includes the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        lines = dict(line.split(":", 1) for line in status.splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    except (OSError, KeyError):
        return None


def _refuse_unwritable(out: Path, overwrite: bool) -> None:
    """Raises BundleError if the file cannot be written, before any work is done."""
    if out.is_dir():
        raise BundleError(f"--out {out} is a folder; name a file in it")
    if os.path.lexists(out) and not out.is_file():
        raise BundleError(f"--out {out} is no plain file; name one")
    if out.exists() and not overwrite:
        raise BundleError(f"--out {out} exists; name another file, or give --overwrite")
    if not out.parent.is_dir():
        raise BundleError(f"--out {out}: there is no folder {out.parent}; make it first")
    if not os.access(out.parent, os.W_OK):
        raise BundleError(f"--out {out}: the folder {out.parent} cannot be written to")


def _write(out: Path, extractor: Extractor, names: list[str], columns: dict[str, Array]) -> None:
    """Writes columns (n,) or (n, width) with the paths; an npz also has the class names."""
    place = Path(os.path.realpath(out))  # a link remains a link
    try:
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".runtime-") as folder:
            whole = Path(folder, place.name)
            _write_there(whole, out.suffix, extractor, names, columns)
            whole.replace(place)
    except OSError as error:
        needs = sum(column.nbytes for column in columns.values())
        told = f"{error.strerror or error}; it needs about {needs:,} bytes"
        raise BundleError(f"cannot write {out}: {told}") from None


def _write_there(
    file_path: Path, suffix: str, extractor: Extractor, names: list[str], columns: dict[str, Array]
) -> None:
    if suffix == ".csv":
        wide = {
            FEATURES: [f"feature{i}" for i in range(extractor.width)],
            PROBABILITIES: [f"p({name})" for name in extractor.classes],
        }
        options = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
        with file_path.open("w", **options) as file:  # type: ignore[call-overload]
            writer = csv.writer(file)
            writer.writerow(["path", *(n for name in columns for n in wide.get(name, [name]))])
            for row, path in enumerate(names):
                cells = [np.atleast_1d(column[row]).tolist() for column in columns.values()]
                writer.writerow([path, *(cell for part in cells for cell in part)])
    else:
        arrays: dict[str, Array] = {"path": np.array(names), **columns}
        if extractor.classes:
            arrays["classes"] = np.array(extractor.classes)
        with file_path.open("wb") as file:
            np.savez(file, **arrays)


def _extract(extractor: Extractor, names: Sequence[str], out: Path | None, batch: int) -> int:
    paths = find_pictures(names)
    good: list[str] = []
    blocks: dict[str, list[Array]] = {}
    failed = 0
    for read, outputs, bad in extractor.run_files(paths, batch):
        good += [str(path) for path in read]
        told = {**_labels(extractor, outputs), **outputs} if read else {}
        for name, column in told.items():
            blocks.setdefault(name, []).append(column)
        for path, label, probability in zip(  # noqa: B905
            read, told.get("label", []), told.get("probability", [])
        ):
            print(f"{_shown(path)}: {_shown(label)} {probability:.3f}")
        failed += len(bad)
        for path, reason in bad:
            print(f"runtime: {_shown(path)}: {reason}", file=sys.stderr)
    if good and out is not None:
        _write(
            out, extractor, good, {name: np.concatenate(parts) for name, parts in blocks.items()}
        )
    end = f"wrote {out}" if good and out is not None else "nothing written"
    used = f"{extractor.variant} on {extractor.provider}"
    print(f"{len(good)} of {len(paths)} pictures, {used}: {end}")
    return 1 if failed else 0


def _shown(name: object) -> str:
    """A name with the characters escaped that would control a terminal."""
    text = str(name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _labels(extractor: Extractor, outputs: dict[str, Array]) -> dict[str, Array]:
    """The likeliest class and its probability; empty without a classifier."""
    if not extractor.classes:
        return {}
    probabilities = outputs[PROBABILITIES]
    names = np.array(extractor.classes)[probabilities.argmax(axis=1)]
    return {"label": names, "probability": probabilities.max(axis=1)}


def _check_all(first: Extractor, given: argparse.Namespace) -> int:
    """Checks the requested model, or all ONNX models in the bundle, with a line for each."""
    alone = given.variant or given.device == "tensorrt"
    names = [] if alone else sorted(set(first.manifest["files"]) - {first.variant})
    there = [n for n in names if n.endswith(".onnx") and (first.bundle / n).exists()]
    others = (Extractor(given.bundle, n, given.device, given.threads) for n in there)
    status = 0
    for extractor in itertools.chain([first], others):
        passed, told = check(extractor)
        print(told)
        status = status if passed else 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Features of pictures by an exported encoder.",
        epilog="python runtime.py pictures/ --out features.npz",
    )
    parser.add_argument("pictures", nargs="*", help="picture files or folders")
    parser.add_argument("--out", type=Path, help="features.npz or features.csv")
    parser.add_argument("--overwrite", action="store_true", help="replace a file at --out")
    parser.add_argument("--bundle", type=Path, help="folder of the bundle (default: this file's)")
    parser.add_argument(
        "--variant", help="model file of the bundle (default: the engine, or encoder.onnx)"
    )
    parser.add_argument("--device", default="auto", help="auto, tensorrt, cuda or cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for all")
    parser.add_argument("--batch", type=int, default=32, help="pictures at a time")
    parser.add_argument("--check", action="store_true", help="compare with training's features")
    parser.add_argument("--benchmark", action="store_true", help="latency on this machine")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of --benchmark")
    parser.add_argument("--json", action="store_true", help="print JSON with --benchmark")
    return parser


def _main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    given = parser.parse_args(arguments)
    wanted = bool(given.pictures) + given.check + given.benchmark
    if wanted != 1:
        parser.error("give pictures, or --check, or --benchmark")
    if given.out is not None and not given.pictures:
        parser.error("--out works with pictures only")
    if given.out is not None and given.out.suffix not in (".npz", ".csv"):
        parser.error("give --out FILE.npz or --out FILE.csv")
    if given.json and not given.benchmark:
        parser.error("--json works with --benchmark only")
    if given.batch < 1:
        parser.error("--batch must be at least 1")
    if not 0 <= given.seconds < float("inf"):
        parser.error("--seconds must be 0 or more")
    if given.pictures and given.out is not None:
        _refuse_unwritable(given.out, given.overwrite)
    extractor = Extractor(given.bundle, given.variant, given.device, given.threads)
    if given.pictures and given.out is None and not extractor.classes:
        parser.error("give --out FILE.npz or --out FILE.csv")
    if extractor.passed_over:
        print(f"runtime: {extractor.passed_over}; using {extractor.variant}", file=sys.stderr)
    if given.check:
        return _check_all(extractor, given)
    if given.benchmark:
        found = benchmark(extractor, given.batch, given.seconds)
        if given.json:
            print(json.dumps({**found, "provider": extractor.provider, "peak_mb": _peak_mb()}))
            return 0
        print(
            f"batch {given.batch}: median {found['median_ms']:.2f} ms, p95 "
            f"{found['p95_ms']:.2f} ms, {found['pictures_per_s']:,.0f} pictures/s, "
            f"{extractor.variant} on {extractor.provider}"
        )
        return 0
    return _extract(extractor, given.pictures, given.out, given.batch)


def main() -> None:
    """Entry point; if something cannot be used or written, prints one line, exits with status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # class names may be of any script
    try:
        status = _main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except KeyboardInterrupt:
        print("runtime: interrupted", file=sys.stderr)
        status = 130
    except (BundleError, ImportError, MemoryError, OSError) as error:
        print(f"runtime: {str(error) or 'not enough memory'}", file=sys.stderr)
        status = 2
    sys.exit(status)


if __name__ == "__main__":
    main()
