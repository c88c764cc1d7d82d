"""The real pictures that parity is measured on, and those int8 is calibrated and chosen on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinyssl.console import log
from tinyssl.data import pictures_for
from tinyssl.errors import UsageError
from tinyssl.files import read_json
from tinyssl.labeled import RESULT, read_labeled
from tinyssl.opening import reading
from tinyssl.own_pictures import own_pictures
from tinyssl.picture import to_depth
from tinyssl.rows import spaced
from tinyssl.scanning import scan
from tinyssl.weights import DESCRIPTION

from . import runtime

MEASURED, CHOSEN, CALIBRATED, LABELED = 64, 64, 128, 1000
_TRIED = 16  # pictures read by the runtime's decoder: large photographs take a second each
FEW = 32  # parity on fewer pictures says little about others
_MEASURED = "an export is measured"
Pictures = NDArray[Any]
_Several = TypeVar("_Several", bound=Sized)


@dataclass(frozen=True)
class Reader:
    """Reads pictures as an encoder's input.

    Attributes:
        description: the content of `encoder.json`.
    """

    description: Mapping[str, Any]

    @property
    def dtype(self) -> Any:
        """Of the input, uint8 or uint16."""
        return np.dtype(self.description["dtype"])

    def read(self, paths: Sequence[Path]) -> Pictures:
        """The readable ones, (n, s, s, c); warns of those that the bundle's runtime cannot read."""
        found = pictures_for(self.description, paths)
        self._tell_of_refused(found.paths)
        return to_depth(np.array(found.array), self.dtype)

    @property
    def max_pixels(self) -> int:
        """Limit of a picture's size."""
        return int(self.description["max_pixels"])

    def _tell_of_refused(self, paths: Sequence[str]) -> None:
        """Warns of pictures that the runtime's decoder, Pillow alone, cannot read.

        Training reads more, such as 16-bit colour.
        """
        some = spaced(paths, _TRIED)
        with reading(self.max_pixels), ThreadPoolExecutor() as pool:
            found = zip(some, pool.map(self._refused, some), strict=True)
            refused = [(path, told) for path, told in found if told]
        if refused:
            path, told = refused[0]
            log.warning(
                f"{len(refused)} of {len(some)} of your pictures cannot be read by the bundle's "
                f"runtime.py, first: {path}: {told}; convert them, or give it arrays"
            )

    def _refused(self, path: str) -> str:
        channels = self.description["channels"]
        try:
            runtime.to_channels(runtime.decode(path, channels, self.max_pixels), channels)
        except runtime.Unreadable as error:
            return str(error)
        return ""


@dataclass(frozen=True)
class Samples:
    """Pictures to measure on, and others to calibrate int8 and to choose it on, (0,) without it.

    Chosen by the calibration pictures it may fit only these, and by the measured ones its parity
    would flatter it.
    """

    measured: Pictures
    calibrated: Pictures
    chosen: Pictures

    @property
    def calibration(self) -> dict[str, Any]:
        """The manifest's entry for the calibration pictures."""
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
    """Draws evenly spaced pictures for both samples.

    Args:
        reader: of the encoder.
        run: its training pictures are used if no others are given; of a fine-tuned run the
            labeled ones and those of its pretraining, if they still exist.
        pictures: to measure on.
        calibration: to calibrate on; when None half of the pictures to measure on.
        calibrate: whether int8 is to be made.

    Raises:
        UsageError: no pictures, or too few.
    """
    paths = _paths(run, pictures)
    if not calibrate:
        measured = _enough(reader.read(spaced(paths, MEASURED)), 2, _MEASURED, "--pictures")
        return Samples(_tell_of_few(measured, FEW), np.empty(0), np.empty(0))
    if calibration is not None:
        drawn = spaced(scan([calibration]), CALIBRATED)
        calibrated = _enough(reader.read(drawn), 2, "int8 is calibrated", "--calibration")
        rest = _without(paths, drawn)
        purpose = f"beside those of --calibration {_MEASURED} and int8 chosen"
        _enough(rest, 4, purpose, "--pictures")
        found = reader.read(spaced(rest, MEASURED + CHOSEN))
        _enough(found, 4, purpose, "--pictures")
        return Samples(_tell_of_few(found[::2], 2 * FEW), calibrated, found[1::2])
    found = reader.read(spaced(paths, MEASURED + CHOSEN + CALIBRATED))
    _enough(found, 8, f"{_MEASURED} and int8 calibrated", "--pictures")
    return Samples(_tell_of_few(found[::4], 4 * FEW), found[1::2], found[2::4])


def labeled_pictures(reader: Reader, labels: str | Path) -> tuple[Pictures, NDArray[np.int64]]:
    """At most 1,000 evenly spaced labeled pictures from a CSV or class folders."""
    found = read_labeled(labels, reader.description)
    rows = spaced(range(len(found.labels)), LABELED)
    return to_depth(found.array[rows], reader.dtype), found.labels[rows]


def _paths(run: str | Path, pictures: str | Path | None) -> list[Path]:
    try:
        return _own_paths(run) if pictures is None else scan([pictures])
    except UsageError as error:
        raise UsageError(f"parity needs real pictures: {error}; give --pictures DIR") from None


def _own_paths(run: str | Path) -> list[Path]:
    """The existing training pictures of a run and of the runs that it was fine-tuned from.

    Raises:
        UsageError: none of them can be found.
    """
    found: set[Path] = set()
    faults: list[UsageError] = []
    for step in _lineage(run):
        try:
            found.update(own_pictures(step))
        except UsageError as error:
            faults.append(error)
    if not found:
        raise faults[0]
    return sorted(found, key=str)


def _lineage(run: str | Path) -> Iterator[Path]:
    """The run and, if it is fine-tuned, the runs it came from, back to the pretrained one."""
    step: Path | None = Path(os.path.abspath(run))
    seen: set[Path] = set()
    while step is not None and step not in seen:
        yield step
        seen.add(step)
        step = _origin(step)


def _origin(run: Path) -> Path | None:
    """The run that a fine-tuned one came from; None if it is gone or the run is pretrained."""
    result, description = _object(run / RESULT), _object(run / DESCRIPTION)
    if not result and "classes" not in description:
        return None
    # The first path is absolute, the second as the user typed it.
    named = [str(description.get("init", "")), str(result.get("run", ""))]
    there = [name for name in named if os.path.isfile(os.path.join(name, DESCRIPTION))]
    return Path(os.path.abspath(there[0])) if there else None


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or damaged."""
    try:
        told = read_json(path)
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _without(paths: Sequence[Path], drawn: Sequence[Path]) -> list[Path]:
    """The paths of other files than those drawn, by links too."""
    taken = set(map(os.path.realpath, drawn))
    return [path for path in paths if os.path.realpath(path) not in taken]


def _tell_of_few(pictures: Pictures, wanted: int) -> Pictures:
    """Returns the pictures; warns if few of them differ, with the number to give."""
    seen = len({picture.tobytes() for picture in pictures})
    if seen < FEW:
        which = f"{seen} different pictures" if seen < len(pictures) else f"{seen} pictures"
        told = f"{which} only, which say little about others"
        if seen == 1:
            told = "copies of one picture, whose nearest neighbours say nothing"
        log.warning(f"measured on {told}; give {wanted} or more by --pictures DIR")
    return pictures


def _enough(pictures: _Several, least: int, purpose: str, option: str) -> _Several:
    if len(pictures) < least:
        raise UsageError(
            f"{purpose} on at least {least} readable pictures; got {len(pictures)}; give more by "
            f"{option} DIR"
        )
    return pictures
