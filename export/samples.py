"""The real pictures that an export is measured on, and those that int8 is calibrated on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyssl.config import sources_of
from tinyssl.data import load_pictures
from tinyssl.errors import UsageError
from tinyssl.labeled import read_labeled
from tinyssl.opening import MAX_PIXELS
from tinyssl.picture import to_depth
from tinyssl.rows import spaced_rows
from tinyssl.scanning import scan

MEASURED, CALIBRATED, LABELED = 64, 128, 1000
Pictures = NDArray[Any]


@dataclass(frozen=True)
class Reader:
    """How pictures become an encoder's input.

    Attributes:
        description: the content of `encoder.json`.
        dtype: uint8 or uint16.
    """

    description: Mapping[str, Any]
    dtype: Any

    def read(self, paths: Sequence[Path]) -> Pictures:
        """Those that can be read, (n, s, s, c)."""
        found = load_pictures(
            paths,
            size=self.description["image_size"],
            rule=self.description["resize"],
            channels=self.description["channels"],
            max_pixels=self.description.get("max_pixels", MAX_PIXELS),
        )
        return to_depth(np.array(found.array), self.dtype)


@dataclass(frozen=True)
class Samples:
    """Pictures to measure on, and others to calibrate on, (0, ...) where none were asked for."""

    measured: Pictures
    calibrated: Pictures

    @property
    def calibration(self) -> dict[str, Any]:
        """What the manifest says of the calibration's pictures."""
        digest = hashlib.sha256(self.calibrated.tobytes()).hexdigest()
        return {"pictures": len(self.calibrated), "sha256": digest}


def draw_samples(
    reader: Reader,
    run: str | Path,
    pictures: str | Path | None,
    calibration: str | Path | None,
    *,
    calibrate: bool,
) -> Samples:
    """Evenly spaced pictures, none of them in both samples.

    Args:
        reader: of the encoder.
        run: its training pictures are taken where no others are given.
        pictures: to measure on.
        calibration: to calibrate on; part of the pictures to measure on when None.
        calibrate: whether int8 is wanted.

    Raises:
        UsageError: no pictures, or too few.
    """
    paths = _paths(run, pictures)
    if not calibrate:
        return Samples(_enough(reader.read(_spaced(paths, MEASURED)), 2), np.empty(0))
    if calibration is not None:
        measured = reader.read(_spaced(paths, MEASURED))
        calibrated = reader.read(_spaced(scan([calibration]), CALIBRATED))
    else:
        both = reader.read(_spaced(paths, MEASURED + CALIBRATED))
        third = np.arange(len(both)) % 3 == 0
        measured, calibrated = both[third], both[~third]
    return Samples(_enough(measured, 2), _enough(calibrated, 2))


def labeled_pictures(reader: Reader, labels: str | Path) -> tuple[Pictures, NDArray[np.int64]]:
    """At most 1,000 evenly spaced labeled pictures, of a CSV or of class folders."""
    found = read_labeled(labels, reader.description)
    rows = _spaced(range(len(found.labels)), LABELED)
    return to_depth(found.array[rows], reader.dtype), found.labels[rows]


def _paths(run: str | Path, pictures: str | Path | None) -> list[Path]:
    try:
        return scan(sources_of(run) if pictures is None else [pictures])
    except UsageError as error:
        raise UsageError(f"parity needs real pictures: {error}; give --pictures DIR") from None


def _spaced(items: Sequence[Any], count: int) -> list[Any]:
    return [items[row] for row in spaced_rows(len(items), count)]


def _enough(pictures: Pictures, least: int) -> Pictures:
    if len(pictures) < least:
        raise UsageError(
            f"an export is measured on at least {least} readable pictures, and int8 calibrated on "
            f"as many others; got {len(pictures)}"
        )
    return pictures
