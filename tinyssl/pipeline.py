"""Augmentation by a user's albumentations pipeline, picture by picture.

b = batch, c = channels, H, W = height and width, s = view size.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyssl.errors import UsageError, joined_lines
from tinyssl.files import in_home, read_json
from tinyssl.plain_yaml import read_yaml


def load_pipeline(spec: Mapping[str, Any] | str | Path) -> Any:
    """Builds a pipeline from albumentations' own serialised form.

    Args:
        spec: result of `albumentations.to_dict`, or a .yaml or .json file of it.

    Returns:
        An `albumentations.Compose` or single transform.

    Raises:
        UsageError: unreadable, not of that form, or it names anything but albumentations' own
            serialisable transforms.
    """
    values = read_pipeline(spec)
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network otherwise
    import albumentations
    from albumentations.core.serialization import SERIALIZABLE_REGISTRY

    if not isinstance(values.get("transform"), Mapping):
        raise UsageError(
            "augment.pipeline has no `transform`; give what albumentations.to_dict or .save writes"
        )
    for name in _class_names(values):
        if name not in SERIALIZABLE_REGISTRY:
            raise UsageError(
                f"augment.pipeline names {name!r}; only albumentations' own transforms are allowed"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a misspelt argument is only warned of
            return albumentations.from_dict(dict(values))
    except Exception as error:  # its validation raises many types
        raise UsageError(f"augment.pipeline is not valid: {joined_lines(error)}") from None


def read_pipeline(spec: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """A serialised pipeline of `albumentations.to_dict`, possibly from a .yaml or .json file.

    Raises:
        UsageError: unreadable, or not of that form.
    """
    if isinstance(spec, Mapping):
        return spec
    path = in_home(spec)
    try:
        values = read_json(path) if path.suffix == ".json" else read_yaml(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"augment.pipeline: cannot read {path}: {joined_lines(error)}") from None
    if not isinstance(values, Mapping):
        raise UsageError(
            f"augment.pipeline: {path} does not hold what albumentations.to_dict gives"
        )
    return values


def apply_pipeline(
    pipeline: Any, pictures: NDArray[Any], seeds: Sequence[int], *, view_size: int
) -> Tensor:
    """Views of pictures, each made with its own seed.

    Args:
        pipeline: from `load_pipeline`.
        pictures: (b, H, W, c) uint8; most transforms do not support uint16.
        seeds: b integers; the same seed gives the same view.
        view_size: s, pixels a side that the pipeline must produce.

    Returns:
        (b, c, s, s) float32 in [0, 1].

    Raises:
        UsageError: uint16 pictures, or a result of another size or type than uint8.
    """
    if pictures.dtype != np.uint8:
        raise UsageError(
            f"augment.pipeline works on 8-bit pictures, these are {pictures.dtype}; "
            "leave it out to use the built-in augmentation"
        )
    views = [_apply_one(pipeline, p, view_size, s) for p, s in zip(pictures, seeds, strict=True)]
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255


def _apply_one(
    pipeline: Any, picture: NDArray[Any], view_size: int, seed: int
) -> NDArray[np.uint8]:
    try:
        pipeline.set_random_seed(seed)
        with warnings.catch_warnings():
            # For example that colour transforms do not change gray pictures, for every picture.
            warnings.simplefilter("ignore", UserWarning)
            view = pipeline(image=np.ascontiguousarray(picture))["image"]
    except Exception as error:  # a transform that does not suit the pictures, in many types
        raise UsageError(
            f"augment.pipeline fails on a picture of {picture.shape}: {joined_lines(error)}"
        ) from None
    wanted = (view_size, view_size, picture.shape[2])
    view = view[..., None] if view.ndim == 2 else view
    if view.shape != wanted or view.dtype != np.uint8:
        raise UsageError(
            f"augment.pipeline gives {view.dtype} pictures of {view.shape}, wanted is uint8 "
            f"{wanted}; end with RandomResizedCrop(size=({view_size}, {view_size})), without "
            "Normalize or ToTensorV2"
        )
    return np.asarray(view)


def _class_names(values: Any) -> Iterator[str]:
    if isinstance(values, Mapping):
        if "__class_fullname__" in values:
            yield str(values["__class_fullname__"])
        for value in values.values():
            yield from _class_names(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _class_names(value)
