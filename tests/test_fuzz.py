"""Readers of files from strangers, on damaged and invented ones: a clear refusal, or a result.

The suite tries a few hundred of each, always the same. More, and other ones every time:

    TINYSSL_FUZZ=20000 pytest tests/test_fuzz.py
"""

import csv
import io
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
import zoo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from tinyssl.export import runtime

from tinyssl.config import load_recipe, read_recipe
from tinyssl.errors import UsageError, one_line
from tinyssl.feature_file import Features, read_features, write_features
from tinyssl.labels import from_csv
from tinyssl.opening import Unreadable, reading
from tinyssl.picture import decode
from tinyssl.recipe_files import recipe_names, recipe_text
from tinyssl.scanning import scan
from tinyssl.tensor_file import read_tensors
from tinyssl.weights import _read as read_weights
from tinyssl.weights import read_description

MANY = int(os.environ.get("TINYSSL_FUZZ", "0"))
FUZZ = settings(
    max_examples=MANY or 100,
    derandomize=not MANY,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


KINDS = ["change", "change", "cut", "double", "insert", "high", "zero"]


@st.composite
def damaged(draw: st.DrawFn, wholes: Sequence[bytes]) -> bytes:
    """One of some files with bytes changed, cut out, doubled or put in, and perhaps cut short."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from([1, 1, 1, 2, 4, 30]))
        kind = draw(
            st.sampled_from(["change", "change", "cut", "double", "insert", "high", "zero"])
        )
        old = data[place : place + length]
        new = {"cut": b"", "double": old * 2, "high": b"\xff" * len(old), "zero": bytes(len(old))}
        if kind in ("change", "insert"):
            new[kind] = draw(st.binary(min_size=length, max_size=length))
        data[place : place + (0 if kind == "insert" else length)] = new[kind]
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "file"


RECIPES = [recipe_text(name).encode() for name in recipe_names()]
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["auto", "1e400", "${oc.env:HOME}", "${data}", "???", "2020-99-99", ".inf"])
)  # fmt: skip
KEYS = st.sampled_from(
    ["data", "augment", "encoder", "run", "name", "init", "epochs", "sources", "pipeline", "task"]
) | st.text(max_size=8)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def check_recipe(text: str) -> None:
    try:
        found = read_recipe(text, "fuzz")
    except UsageError as error:
        assert "\n" not in one_line(str(error))
    else:
        assert read_recipe(found.to_yaml(), "again") == found


@FUZZ
@given(data=damaged(RECIPES))
def test_recipes_damaged(data: bytes) -> None:
    check_recipe(data.decode("utf-8", "replace"))


@FUZZ
@given(tree=TREES)
def test_recipes_invented(tree: Any) -> None:
    check_recipe(yaml.safe_dump(tree))


@FUZZ
@given(text=st.text(alphabet="abc:- \n\t\"'{}[],&*!|>%@`#?~<=$0123456789.e+\\", max_size=60))
def test_recipes_of_odd_characters(text: str) -> None:
    check_recipe(text)


@FUZZ
@given(values=st.lists(SCALARS.map(str) | st.text(max_size=30), max_size=3))
def test_overrides(values: list[str]) -> None:
    keys = ("run.epochs", "data.channels", "a.b")[: len(values)]
    overrides = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
    try:
        load_recipe("mobilenetv3-small", overrides)
    except UsageError as error:
        assert str(error)


LABELS = [
    b"path,label\na.png,cat\nb.png,dog\n",
    b"path,label,split\na.png,cat,train\nb.png,dog,test\n",
    '\ufeffpath,label\r\n"a.png","c,a""t"\r\nb.png,süß\r\n'.encode(),
]
CELLS = st.text(max_size=12) | st.sampled_from(
    ["a.png", "b.png", "../a.png", "train", "", "x" * 5000]
)


LISTS = [b"a.png\nb.png\n", b"path,x\na.png,1\n"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(zoo.LOADED["gray.png"])
    return folder


def check_labels(path: Path) -> None:
    try:
        found = from_csv(path)
    except UsageError as error:
        assert str(error)
    else:
        assert len(found.paths) == len(found.labels) == len(set(found.paths))
        assert all(p.is_file() for p in found.paths)


@FUZZ
@given(data=damaged(LABELS))
def test_labels_damaged(data: bytes, pictures: Path) -> None:
    (pictures / "labels.csv").write_bytes(data)
    check_labels(pictures / "labels.csv")


@FUZZ
@given(rows=st.lists(st.lists(CELLS, max_size=5), max_size=6), whole=st.booleans())
def test_labels_invented(rows: list[list[str]], whole: bool, pictures: Path) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["path", "label", "split"], *rows] if whole else rows)
    (pictures / "labels.csv").write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
    check_labels(pictures / "labels.csv")


@FUZZ
@given(data=damaged(LISTS), kind=st.sampled_from(["txt", "csv"]))
def test_lists_of_pictures(data: bytes, kind: str, pictures: Path) -> None:
    path = pictures / f"list.{kind}"
    path.write_bytes(data)
    try:
        assert scan([path])
    except UsageError as error:
        assert str(error)


PICTURES = [data for data in zoo.LOADED.values() if len(data) < 20_000]
PICTURES += [zoo.tiff(zoo.noise(c=2)), zoo.tiff(zoo.noise(c=4, dtype=np.uint16), deflate=True)]
PICTURES += [zoo.encoded(zoo.rgb(), kind) for kind in ("BMP", "PPM", "TGA", "ICO", "PCX", "DDS")]


@FUZZ
@given(data=damaged(PICTURES), channels=st.sampled_from([None, 1, 2, 3, 4]))
def test_pictures(data: bytes, channels: int | None) -> None:
    with reading(1_000_000):
        try:
            found = decode(data, channels)
        except Unreadable as error:
            assert str(error)
        else:
            assert found.dtype in (np.uint8, np.uint16)
            assert found.ndim == 3
            assert found.shape[0] * found.shape[1] <= 1_000_000


@FUZZ
@given(data=damaged(PICTURES), channels=st.sampled_from([1, 2, 3, 4]))
def test_pictures_on_the_device(data: bytes, channels: int, file: Path) -> None:
    file.write_bytes(data)
    try:
        found = runtime.decode(file, channels, 1_000_000)
    except runtime.Unreadable as error:
        assert str(error)
    else:
        assert found.dtype in (np.uint8, np.uint16)


MANIFEST: dict[str, Any] = {
    "format": 1,
    "encoder": {"name": "resnet18", "stem": "standard"},
    "input": {"size": 32, "resize": "crop", "channels": 3, "dtype": "uint8"},
    "features": {"width": 8, "normalized": True},
    "classes": ["a", "b"],
    "files": {
        "encoder.onnx": {"bytes": 3, "sha256": "0" * 64, "tolerance": {"max_abs": 1, "cosine": 0}}
    },
}


def check_manifest(folder: Path) -> None:
    try:
        manifest = runtime.read_manifest(folder)
        for name in manifest["files"]:
            assert not set(name) & {"/", "\\", "\0"}
            runtime.verified(folder, manifest, name)
    except runtime.BundleError as error:
        assert str(error)


@FUZZ
@given(data=damaged([json.dumps(MANIFEST).encode()]))
def test_manifests_damaged(data: bytes, file: Path) -> None:
    (file.parent / "manifest.json").write_bytes(data)
    check_manifest(file.parent)


@FUZZ
@given(key=st.sampled_from(["input", "features", "classes", "files"]), inner=st.data())
def test_manifests_invented(key: str, inner: st.DataObject, file: Path) -> None:
    tree = json.loads(json.dumps(MANIFEST))
    names = sorted(tree[key]) if isinstance(tree[key], dict) else []
    place = inner.draw(st.sampled_from([None, *names, "../../evil"]))
    if place is None or not isinstance(tree[key], dict):
        tree[key] = inner.draw(TREES)
    else:
        tree[key][place] = inner.draw(TREES)
    (file.parent / "manifest.json").write_text(json.dumps(tree))
    check_manifest(file.parent)


DESCRIPTION = {
    "format": 1, "name": "resnet18", "channels": 3, "stem": "standard", "width": 512,
    "image_size": 32, "resize": "crop", "mean": [0.5] * 3, "std": [0.2] * 3, "dtype": "uint8",
}  # fmt: skip


@FUZZ
@given(
    data=damaged([json.dumps(DESCRIPTION).encode()]),
    key=st.sampled_from(sorted(DESCRIPTION)),
    value=TREES,
)
def test_descriptions_of_encoders(data: bytes, key: str, value: Any, file: Path) -> None:
    for text in (data, json.dumps({**DESCRIPTION, key: value}).encode()):
        (file.parent / "encoder.json").write_bytes(text)
        try:
            assert read_description(file.parent)["format"] == 1
        except UsageError as error:
            assert str(error)


def _torch_file() -> bytes:
    saved = io.BytesIO()
    torch.save({"format": 1, "a": torch.arange(5), "b": {"c": [1.5, "x"]}}, saved)
    return saved.getvalue()


@FUZZ
@given(data=damaged([_torch_file()]))
def test_checkpoints(data: bytes, file: Path) -> None:
    file.write_bytes(data)
    try:
        read_tensors(file)
    except UsageError as error:
        assert str(error)


@FUZZ
@given(data=damaged([save({"a": torch.arange(5), "b": torch.zeros(2, 3)})]))
def test_safetensors(data: bytes, file: Path) -> None:
    path = file.with_suffix(".safetensors")
    path.write_bytes(data)
    try:
        read_weights(path)
    except UsageError as error:
        assert str(error)


@pytest.fixture(scope="module")
def features(file: Path) -> dict[str, bytes]:
    block = Features(["a", "b"], ["1", "2"], np.zeros((2, 3), np.float32))
    found = {}
    for kind in (".npz", ".csv", ".parquet"):
        path = file.with_suffix(kind)
        write_features(path, [block], (2, 3), "float32", "key")
        found[kind] = path.read_bytes()
    return found


@FUZZ
@given(kind=st.sampled_from([".npz", ".csv"]), inner=st.data())
def test_features(kind: str, inner: st.DataObject, features: dict[str, bytes], file: Path) -> None:
    path = file.with_suffix(kind)
    path.write_bytes(inner.draw(damaged([features[kind]])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read_features(path)
        except UsageError as error:
            assert str(error)
