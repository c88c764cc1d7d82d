"""A common interface to run folders and bundles: picture files in, features out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.console import log
from tinyssl.data import default_cache_dir, error_passed, find_cache, read_picture
from tinyssl.device import keep_freed_memory, pick_device
from tinyssl.encoder import embed_pictures
from tinyssl.errors import JobError, UsageError
from tinyssl.extras import need
from tinyssl.neighbours import unit_rows
from tinyssl.opening import read_file, reading
from tinyssl.picture import ResizeRule
from tinyssl.weights import DESCRIPTION, MANIFEST, WEIGHTS, load_encoder

_MODEL = "encoder.onnx"


@dataclass(frozen=True)
class Extractor:
    """An encoder, and how files are turned into its input.

    Attributes:
        size: pixels a side.
        rule: how a picture is made square.
        channels: of its input.
        dtype: of its input, uint8 or uint16.
        width: of the features.
        max_pixels: of a picture; larger ones are not read.
        identity: digest of the encoder and of the scaling of its features.
        features: (b, size, size, channels) of `dtype` to (b, width) float32.
    """

    size: int
    rule: ResizeRule
    channels: int
    dtype: np.dtype[Any]
    width: int
    max_pixels: int
    identity: str
    features: Callable[[NDArray[Any]], NDArray[np.float32]]

    def reading(self) -> AbstractContextManager[None]:
        """Sets limits and silences warnings; to enter in the thread that starts to read."""
        return reading(self.max_pixels)

    def read(self, path: Path) -> tuple[str, NDArray[Any]] | str:
        """The digest of a file and its picture as the encoder takes it, or the reason for none."""
        return read_picture(path, self.size, self.rule, self.channels, self.dtype, read_file)

    def cached(
        self, paths: Sequence[Path]
    ) -> Callable[[Path], tuple[str, NDArray[Any]] | str] | None:
        """As `read`, from the cache that a run left of exactly these pictures; None without one."""
        found = find_cache(
            paths, self.size, self.rule, self.channels, self.max_pixels, default_cache_dir()
        )
        if found is None or found.array.dtype != self.dtype or error_passed(found):
            return None
        log.info(f"pictures are taken from the cache {found.folder}")
        rows = {path: row for row, path in enumerate(found.paths)}
        skipped = dict(found.skipped)

        def read(path: Path) -> tuple[str, NDArray[Any]] | str:
            row = rows.get(str(path))
            if row is None:
                return skipped[str(path)]
            return found.hashes[row], found.array[row]

        return read


def open_extractor(path: str | Path, *, raw: bool = False, device: str = "auto") -> Extractor:
    """Opens the encoder of a run folder or of a bundle.

    Args:
        path: a folder made by `tinyssl pretrain` or by `tinyssl export`.
        raw: leave features as the encoder gives them; else they are scaled to unit length.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UsageError: neither is there, or it is damaged; no such device; `raw` for a bundle that
            scales features to unit length, or `cuda:N` for a bundle; a bundle without onnxruntime.
    """
    if (Path(path) / MANIFEST).is_file():
        return _of_bundle(Path(path), raw, device)
    if Path(path).is_dir() and not (Path(path) / DESCRIPTION).is_file():
        raise UsageError(
            f"no encoder in {path}; name a run folder (it holds {DESCRIPTION}) or a bundle "
            f"(it holds {MANIFEST})"
        )
    return _of_run(Path(path), raw, device)


def _of_run(run: Path, raw: bool, device: str) -> Extractor:
    encoder, description = load_encoder(run)
    chosen = pick_device(device)
    keep_freed_memory()

    def features(pictures: NDArray[Any]) -> NDArray[np.float32]:
        found = embed_pictures(encoder, pictures, device=chosen)
        return found if raw else unit_rows(found)

    files = [(run / name).read_bytes() for name in (WEIGHTS, DESCRIPTION)]
    return Extractor(
        size=int(description["image_size"]),
        rule=description["resize"],
        channels=encoder.channels,
        dtype=np.dtype(description["dtype"]),
        width=encoder.width,
        max_pixels=int(description["max_pixels"]),
        identity=_identity(*files, str(raw).encode()),
        features=features,
    )


def _of_bundle(bundle: Path, raw: bool, device: str) -> Extractor:
    need("onnxruntime", extra="export", what="a bundle")
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device: got {device!r}; with a bundle allowed are auto, cpu and cuda")
    from tinyssl.export import runtime

    try:
        opened = runtime.Extractor(bundle, _MODEL, device)
    except runtime.BundleError as error:
        raise UsageError(str(error)) from None
    if raw and opened.manifest["features"]["normalized"]:
        raise UsageError(
            f"{bundle} scales features to unit length, so there are no raw ones; leave --raw out, "
            "or export with --raw-features"
        )

    def features(pictures: NDArray[Any]) -> NDArray[np.float32]:
        try:
            found: NDArray[np.float32] = opened.run(pictures)
        except runtime.BundleError as error:
            raise JobError(f"{bundle}: {error}") from None
        return found if raw else unit_rows(found)

    return Extractor(
        size=opened.size,
        rule=opened.rule,
        channels=opened.channels,
        dtype=opened.dtype,
        width=opened.width,
        max_pixels=opened.max_pixels,
        identity=_identity((bundle / MANIFEST).read_bytes(), str(raw).encode()),
        features=features,
    )


def _identity(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
