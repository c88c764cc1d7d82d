"""A trained encoder takes pictures as they are."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

import tinyssl
from tests.making import untrained_run
from tinyssl.data import load_pictures, read_picture
from tinyssl.encoder import embed_pictures
from tinyssl.errors import UsageError
from tinyssl.model import load
from tinyssl.neighbours import unit_rows
from tinyssl.scanning import scan
from tinyssl.transformer import EmbeddingTransformer

Folder = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return untrained_run(tmp_path / "run", "mobilenetv3-small")


def test_paths_images_and_arrays_give_the_same(run: Path, picture_folder: Folder) -> None:
    paths = scan([picture_folder()])
    model = tinyssl.load(run)
    expected = model.embed(paths, batch_size=5)
    assert expected.shape == (16, 1024)
    images = [Image.open(path) for path in paths]
    arrays = np.stack([np.asarray(image) for image in images])
    for same in ([str(p) for p in paths], iter(paths), images, list(arrays), arrays):
        np.testing.assert_allclose(model.embed(same), expected, rtol=1e-4, atol=1e-5)
    cached = load_pictures(paths, size=32, rule="crop")
    direct = embed_pictures(model.encoder, cached.array)
    np.testing.assert_allclose(direct, model.embed(paths, raw=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(unit_rows(direct), expected, rtol=1e-4, atol=1e-5)


def test_alpha_is_kept_where_the_encoder_has_a_channel_for_it(tmp_path: Path) -> None:
    run = untrained_run(tmp_path / "run", "mobilenetv3-small", channels=4)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    by_path, by_image, by_array = load(run).embed([tmp_path / "a.png", image, pixels])
    np.testing.assert_array_equal(by_path, by_image)
    np.testing.assert_array_equal(by_path, by_array)


def test_order_is_kept_with_mixed_depths(run: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (6, 40, 40), dtype=np.uint8)
    mixed: list[Any] = [g if i % 2 else g.astype(np.uint16) * 257 for i, g in enumerate(gray)]
    model = load(run)
    found, expected = model.embed(mixed, raw=True), model.embed(list(gray), raw=True)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_depth_is_the_encoders_as_for_a_bundle(run: Path, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (60, 40), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    _, picture = read_picture(tmp_path / "a.png", 32, "crop", 3, np.uint8, Path.read_bytes)
    model = load(run)
    expected = embed_pictures(model.encoder, np.asarray(picture)[None])
    for same in (tmp_path / "a.png", deep):
        np.testing.assert_allclose(model.embed([same], raw=True), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("broken.png", "broken.png cannot be used: empty file"),
        ("gone.png", "gone.png cannot be used: No such file"),
        (np.zeros((4, 4), np.float32), "number 1 cannot be used: float32 array"),
        (np.zeros((4, 4, 2), np.uint8), "2 channels"),
    ],
)
def test_unusable_pictures_are_told(wrong: Any, told: str, run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").touch()
    picture = tmp_path / wrong if isinstance(wrong, str) else wrong
    with pytest.raises(UsageError, match=told):
        load(run).embed([np.zeros((9, 9, 3), np.uint8), picture])


def test_a_single_picture_wants_a_list(run: Path) -> None:
    with pytest.raises(UsageError, match="put a single one into a list"):
        load(run).embed("a.png")


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_repr",
        "check_no_attributes_set_in_init",
        "check_get_params_invariance",
        "check_set_params",
        "check_parameters_default_constructible",
        "check_estimator_cloneable",
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_mixin_order",
        "check_valid_tag_types",
    ],
)
def test_scikit_learns_checks_that_need_no_data(check: str, run: Path) -> None:
    """Its other checks feed tables of numbers; the next test does with pictures what they do."""
    found = getattr(estimator_checks, check, None) or getattr(estimator_checks, check[:-1])
    found("EmbeddingTransformer", EmbeddingTransformer(run))


def test_fit_and_transform_behave(run: Path, picture_folder: Folder) -> None:
    paths = scan([picture_folder()])
    step = EmbeddingTransformer(run)
    with pytest.raises(NotFittedError):
        step.transform(paths)
    assert step.fit(paths) is step
    features = step.transform(paths)
    assert features.shape == (16, step.n_features_out_)
    assert len(step.get_feature_names_out()) == step.n_features_out_
    np.testing.assert_array_equal(step.transform(paths), features)
    np.testing.assert_allclose(step.transform(paths[::-1])[::-1], features, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    raw = EmbeddingTransformer(run, raw=True).fit_transform(paths)
    np.testing.assert_array_equal(raw, load(run).embed(paths, raw=True))
    copied = pickle.loads(pickle.dumps(step))
    np.testing.assert_array_equal(copied.transform(paths), features)
    np.testing.assert_array_equal(clone(step).fit_transform(paths), features)
    with pytest.raises(UsageError, match="no folder"):
        EmbeddingTransformer(run.parent / "nope").fit(paths)
    with pytest.raises(UsageError, match="has no run"):
        EmbeddingTransformer().fit(paths)


def test_works_in_a_pipeline_and_a_search(run: Path, picture_folder: Folder) -> None:
    paths = [str(p) for p in scan([picture_folder()])]
    labels = [Path(p).parent.name for p in paths]
    pipeline = make_pipeline(EmbeddingTransformer(run), StandardScaler(), LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [0.1, 1.0]}, cv=2)
    assert search.fit(paths, labels).score(paths, labels) > 0.8


@pytest.mark.parametrize("make", [np.zeros, torch.zeros])
@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3)])
def test_a_single_array_is_no_batch_of_rows(make: Any, shape: tuple[int, ...], run: Path) -> None:
    with pytest.raises(UsageError, match="put a single one into a list"):
        load(run).embed(make(shape))


def test_gray_pictures_may_be_one_array(run: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    np.testing.assert_array_equal(load(run).embed(gray), load(run).embed(list(gray)))
    assert load(run).embed(gray[:0]).shape[0] == 0


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_has_pictures(batch_size: int, run: Path) -> None:
    with pytest.raises(UsageError, match=f"batch_size: got {batch_size}; give 1 or more"):
        load(run).embed([np.zeros((8, 8, 3), np.uint8)], batch_size=batch_size)
