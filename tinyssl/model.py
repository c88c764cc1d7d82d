"""A trained encoder together with the preprocessing of its input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyssl.device import pick_device
from tinyssl.encoder import Encoder, embed_pictures
from tinyssl.errors import UsageError
from tinyssl.neighbours import unit_rows
from tinyssl.opening import Unreadable, reading
from tinyssl.picture import decode, resize, to_channels, to_depth
from tinyssl.weights import load_encoder

Picture = str | os.PathLike[str] | Image.Image | NDArray[Any]


class Model:
    """An encoder and its preprocessing.

    Attributes:
        encoder: the torch module.
        description: as `weights.read_description` gives it.
        image_size: pixels a side that pictures are resized to.
        dtype: uint8 or uint16, the depth that pictures are converted to.
        width: of the features.
    """

    def __init__(self, encoder: Encoder, description: dict[str, Any], device: str = "auto") -> None:
        self.encoder = encoder
        self.description = description
        self.image_size = int(description["image_size"])
        self.dtype = np.dtype(description["dtype"])
        self.width = encoder.width
        self.device = pick_device(device)

    def embed(
        self,
        pictures: Iterable[Picture] | NDArray[Any],
        *,
        batch_size: int = 256,
        raw: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Features of pictures, the same as those of `tinyssl.embed` and of a bundle.

        Args:
            pictures: paths, Pillow images or arrays (h, w), (h, w, c) of uint8 or uint16, of any
                size; or one array (n, h, w, c) or (n, h, w).
            batch_size: pictures at a time; one batch of decoded pictures is held in memory, and
                everything that a generator yields.
            raw: return features unscaled, as a classifier of `tinyssl.finetune` takes them; else
                each has length 1 (a row of zeros stays zero).
            progress: called with the number of newly finished pictures.

        Returns:
            (n, width) float32.

        Raises:
            UsageError: a picture cannot be read, and the text says which and why; or a single
                picture is given, or a batch size below 1.
        """
        if _is_single(pictures):
            raise UsageError("embed takes a list of pictures; put a single one into a list")
        if batch_size < 1:
            raise UsageError(f"batch_size: got {batch_size}; give 1 or more")
        given: Any = pictures  # what can be sliced is read batch by batch
        if not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
            given = list(given)
        features = np.empty((len(given), self.width), np.float32)
        for start in range(0, len(given), batch_size):
            chunk = given[start : start + batch_size]
            with reading(self.description["max_pixels"]):
                batch = [self._prepare(p, start + i) for i, p in enumerate(chunk)]
            found = embed_pictures(self.encoder, np.stack(batch), device=self.device)
            features[start : start + len(chunk)] = found
            if progress is not None:
                progress(len(chunk))
        return features if raw else unit_rows(features)

    def _prepare(self, picture: Picture, number: int) -> NDArray[Any]:
        name = str(picture) if isinstance(picture, str | os.PathLike) else f"number {number}"
        try:
            if isinstance(picture, str | os.PathLike):
                array = decode(Path(picture), self.encoder.channels)
            elif isinstance(picture, Image.Image):
                array = decode(picture, self.encoder.channels)
            else:
                array = _checked(picture)
            array = to_depth(to_channels(array, self.encoder.channels), self.dtype)
            return resize(array, self.image_size, self.description["resize"])
        except Unreadable as error:
            raise UsageError(f"picture {name} cannot be used: {error}") from None


def _is_single(pictures: Any) -> bool:
    """Whether a single picture is given: 3 axes are one if the last of them has 1 to 4 entries."""
    axes = getattr(pictures, "ndim", 0)  # of numpy's arrays and torch's tensors
    one = axes == 2 or (axes == 3 and 1 <= pictures.shape[2] <= 4)
    return one or isinstance(pictures, str | os.PathLike | Image.Image)


def load(path: str | Path, device: str = "auto") -> Model:
    """Loads the encoder of a run folder.

    Args:
        path: the run folder.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        UsageError: no encoder there, damaged, or of another format.
    """
    encoder, description = load_encoder(path)
    return Model(encoder, description, device)


def _checked(picture: NDArray[Any]) -> NDArray[Any]:
    array = np.asarray(picture)
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3) or 0 in array.shape:
        raise Unreadable(
            f"{array.dtype} array of shape {array.shape}; wanted is uint8 or uint16, (h, w) or "
            "(h, w, c)"
        )
    return array[..., None] if array.ndim == 2 else array
