"""Albumentations pipelines: deterministic, checked, and never a way to run other code."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tinyssl.errors import UsageError
from tinyssl.pipeline import apply_pipeline, load_pipeline

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A


def spec(*transforms: Any) -> dict[str, Any]:
    steps = transforms or (A.RandomResizedCrop(size=(16, 16)), A.HorizontalFlip(p=0.5))
    made = A.to_dict(A.Compose(list(steps)))
    assert isinstance(made, dict)
    return made


def pictures(c: int = 3, b: int = 4) -> Any:
    return np.random.default_rng(0).integers(0, 256, (b, 20, 24, c), dtype=np.uint8)


@pytest.mark.parametrize("form", ["dict", "json", "yaml"])
def test_every_form_gives_the_same_views(form: str, tmp_path: Path) -> None:
    source: Any = spec()
    if form != "dict":
        source = tmp_path / f"pipeline.{form}"
        source.write_text(json.dumps(spec()) if form == "json" else yaml.safe_dump(spec()))
    views = apply_pipeline(load_pipeline(source), pictures(), [1, 2, 3, 4], view_size=16)
    expected = apply_pipeline(load_pipeline(spec()), pictures(), [1, 2, 3, 4], view_size=16)
    assert torch.equal(views, expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_views_depend_on_their_own_seed_only(channels: int) -> None:
    pipeline, raw = load_pipeline(spec()), pictures(channels)
    together = apply_pipeline(pipeline, raw, [7, 8, 9, 7], view_size=16)
    assert together.shape == (4, channels, 16, 16)
    assert together.dtype == torch.float32
    assert together.min() >= 0
    assert together.max() <= 1
    alone = apply_pipeline(pipeline, raw[2:3], [9], view_size=16)
    assert torch.equal(together[2:3], alone)
    assert not torch.equal(alone, apply_pipeline(pipeline, raw[2:3], [10], view_size=16))


def test_it_does_what_albumentations_does() -> None:
    flip = load_pipeline(spec(A.Resize(16, 16), A.HorizontalFlip(p=1.0)))
    raw = pictures()
    views = apply_pipeline(flip, raw, [0] * 4, view_size=16)
    expected = A.Compose([A.Resize(16, 16), A.HorizontalFlip(p=1.0)])(image=raw[0])["image"]
    np.testing.assert_allclose(views[0].permute(1, 2, 0) * 255, expected, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.eval", "torch.nn.Linear", "Lambda", "albumentations.Lambda"]
)
def test_foreign_classes_are_refused_before_anything_is_built(name: str) -> None:
    hostile = spec()
    hostile["transform"]["transforms"].append({"__class_fullname__": name, "p": 1})
    with pytest.raises(UsageError, match="only albumentations' own"):
        load_pipeline(hostile)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "has no `transform`"),
        ({"transform": "x"}, "has no `transform`"),
        ({"transform": {"p": 1}}, "is not valid"),
    ],
)
def test_malformed_specs_are_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        load_pipeline(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "{", "[1, 2]", "text"])
def test_unreadable_files_are_told(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=str(path)):
        load_pipeline(path)


def test_a_misspelt_argument_is_not_passed_over() -> None:
    wrong = spec()
    wrong["transform"]["transforms"][0]["scael"] = [0.5, 1.0]
    with pytest.raises(UsageError, match="scael"):
        load_pipeline(wrong)


@pytest.mark.parametrize(
    ("transforms", "told"),
    [
        ([A.HorizontalFlip()], r"end with RandomResizedCrop\(size=\(16, 16\)\)"),
        ([A.Resize(16, 16), A.Normalize()], "without Normalize"),
        ([A.RandomCrop(100, 100)], "fails on a picture"),
    ],
)
def test_unfit_results_are_told(transforms: list[Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        apply_pipeline(load_pipeline(spec(*transforms)), pictures(), [0] * 4, view_size=16)
    assert "\n" not in str(caught.value)


def test_sixteen_bit_pictures_are_refused() -> None:
    with pytest.raises(UsageError, match="8-bit"):
        apply_pipeline(load_pipeline(spec()), pictures().astype(np.uint16), [0] * 4, view_size=16)


def test_colour_transforms_leave_gray_pictures_alone_without_a_warning() -> None:
    colour = load_pipeline(spec(A.HueSaturationValue(p=1.0), A.Resize(16, 16)))
    assert apply_pipeline(colour, pictures(1), [0] * 4, view_size=16).shape == (4, 1, 16, 16)
