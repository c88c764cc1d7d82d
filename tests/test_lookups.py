"""The nearest, near copies and outliers, from features to their CSVs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.making import read_csv, untrained_run
from tinyssl.errors import UsageError
from tinyssl.extraction import Extractor, open_extractor
from tinyssl.feature_file import Features
from tinyssl.lookups import check_wishes, find_duplicates, find_nearest, find_outliers


def some_features(n: int = 30) -> Features:
    values = np.random.default_rng(0).normal(size=(n, 8)).astype(np.float32)
    return Features([f"/p/{i:02}.png" for i in range(n)], [f"d{i}" for i in range(n)], values)


@pytest.fixture
def embedded(tmp_path: Path) -> tuple[Extractor, Features]:
    """Ten pictures of noise, and the features of an encoder with random weights."""
    extractor = open_extractor(untrained_run(tmp_path / "run"))
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    paths = [str(tmp_path / f"{i}.png") for i in range(10)]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    return extractor, Features(paths, paths, extractor.features(pictures))


def test_nearest_to_pictures_of_the_set_and_others(
    embedded: tuple[Extractor, Features], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extractor, features = embedded
    with Image.open(features.paths[3]) as picture:
        picture.save(tmp_path / "copy.bmp")
    monkeypatch.chdir(tmp_path)
    found = find_nearest(features, tmp_path / "f.npz", extractor, ["3.png", "copy.bmp"], k=4)
    rows = read_csv(tmp_path / "f.nearest.csv")
    assert [tuple(row.values())[:3] for row in rows] == [
        (query, str(rank), path) for query, rank, path, _ in found.rows
    ]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"] * 2
    assert features.paths[3] not in [row["path"] for row in rows[:4]]  # not itself
    assert rows[4]["path"] == features.paths[3]
    assert float(rows[4]["cosine"]) > 0.999
    assert [row["path"] for row in rows[:3]] == [row["path"] for row in rows[5:]]


def test_an_unreadable_query(embedded: tuple[Extractor, Features], tmp_path: Path) -> None:
    (tmp_path / "broken.png").touch()
    with pytest.raises(UsageError, match=r"broken.png cannot be used: empty file"):
        find_nearest(embedded[1], tmp_path / "f.npz", embedded[0], [tmp_path / "broken.png"])


def test_duplicates(tmp_path: Path) -> None:
    features = some_features()
    features.features[[7, 20]] = features.features[3] * [[2], [1.001]] + 0.001
    features.digests[20] = features.digests[7]
    found = find_duplicates(features, tmp_path / "f.parquet")
    rows = read_csv(tmp_path / "f.duplicates.csv")
    assert [(row["group"], row["path"], row["exact"]) for row in rows] == [
        ("1", "/p/03.png", "no"), ("1", "/p/07.png", "yes"), ("1", "/p/20.png", "yes"),
    ]  # fmt: skip
    assert all(float(row["cosine"]) > 0.99 for row in rows)
    assert found.told == "3 near copies in 1 groups, cosine 0.89 up"
    strict = find_duplicates(features, tmp_path / "f.parquet", 0.999)
    assert strict.told == "3 near copies in 1 groups, cosine 0.999 up"


def test_no_duplicates_is_a_file_with_a_header(tmp_path: Path) -> None:
    find_duplicates(some_features(), tmp_path / "f.npz")
    assert (tmp_path / "f.duplicates.csv").read_text() == "group,path,cosine,exact\n"


def test_two_exact_copies_alone(tmp_path: Path) -> None:
    """Their centred features are zero: there is nothing else to compare them with."""
    features = Features(["/a.png", "/b.png"], ["d", "d"], np.ones((2, 4), np.float32))
    find_duplicates(features, tmp_path / "f.npz")
    assert [row["cosine"] for row in read_csv(tmp_path / "f.duplicates.csv")] == ["1.0", "1.0"]


def test_outliers_are_all_pictures_the_oddest_first(tmp_path: Path) -> None:
    features = some_features()
    features.features[:] = features.features * 0.05 + np.eye(8, dtype=np.float32)[np.arange(30) % 2]
    features.features[11] = np.eye(8)[7]
    find_outliers(features, tmp_path / "f.npz")
    rows = read_csv(tmp_path / "f.outliers.csv")
    assert rows[0]["path"] == "/p/11.png"
    assert [int(row["rank"]) for row in rows] == list(range(1, 31))
    distances = [float(row["distance"]) for row in rows]
    assert distances == sorted(distances, reverse=True)
    with pytest.raises(UsageError, match="at least 2"):
        find_outliers(Features(["/a"], ["d"], np.ones((1, 2))), tmp_path / "g.npz")


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ({"queries": ["nope.png"]}, "no picture nope.png"),
        ({"k": 0}, "k: got 0"),
        ({"threshold": 0.0}, "threshold: got 0"),
        ({"threshold": 1.5}, "allowed is above 0 and up to 1"),
    ],
)
def test_wishes_that_cannot_be(wish: dict[str, Any], told: str) -> None:
    plain: dict[str, Any] = {
        "out": "f.npz", "lists": ["nearest"], "queries": [], "k": 10, "threshold": 0.95,
    }  # fmt: skip
    with pytest.raises(UsageError, match=told):
        check_wishes(**(plain | wish))


def test_lists_with_notes_are_not_replaced(tmp_path: Path) -> None:
    out, features = tmp_path / "f.npz", some_features()
    for find in (find_duplicates, find_outliers):
        find(features, out)
        listed = find(features, out).out  # its own list may be replaced
        with_notes = listed.read_text().replace("path", "path,keep", 1)
        listed.write_text(with_notes)
        with pytest.raises(UsageError, match="would be lost"):
            find(features, out)
        assert listed.read_text() == with_notes
