"""Features in a file come back as they went, in every format."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tinyssl.errors import UsageError
from tinyssl.feature_file import Features, check_format, read_features, read_key, write_features

FORMATS = (".parquet", ".npz", ".csv")


def some_features(n: int = 7, d: int = 5, dtype: str = "float32") -> Features:
    values = np.random.default_rng(0).normal(size=(n, d)).astype(dtype)
    return Features([f"/a/b {i}, ü.png" for i in range(n)], [f"{i:032x}" for i in range(n)], values)


def blocks(whole: Features, size: int) -> Iterator[Features]:
    for start in range(0, len(whole.paths), size):
        part = slice(start, start + size)
        yield Features(whole.paths[part], whole.digests[part], whole.features[part])


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_round_trip_to_the_bit(suffix: str, dtype: str, size: int, tmp_path: Path) -> None:
    whole, out = some_features(dtype=dtype), tmp_path / f"f{suffix}"
    write_features(out, blocks(whole, size), whole.features.shape, dtype, "the key")
    found = read_features(out)
    assert (found.paths, found.digests) == (whole.paths, whole.digests)
    np.testing.assert_array_equal(found.features.astype(dtype), whole.features)
    assert found.features.dtype == ("float32" if suffix == ".csv" else dtype)
    assert read_key(out) == (None if suffix == ".csv" else "the key")
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_others_can_read_them(tmp_path: Path) -> None:
    from pyarrow import parquet

    whole = some_features()
    for suffix in FORMATS:
        shape = whole.features.shape
        write_features(tmp_path / f"f{suffix}", [whole], shape, "float32", "k")
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["path", "digest", "features"]
    np.testing.assert_array_equal(np.stack(table["features"].to_pylist()), whole.features)
    with np.load(tmp_path / "f.npz", allow_pickle=False) as found:
        assert set(found) == {"path", "digest", "features", "key"}
        np.testing.assert_array_equal(found["features"], whole.features)
    lines = (tmp_path / "f.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "path,digest,feature0,feature1,feature2,feature3,feature4"
    assert len(lines) == 8


@pytest.mark.parametrize("suffix", [".npz", ".csv"])
def test_names_that_are_no_utf8(suffix: str, tmp_path: Path) -> None:
    odd = Features(["/a/\udcff.png"], ["0"], np.ones((1, 2), np.float32))
    write_features(tmp_path / f"f{suffix}", [odd], (1, 2), "float32", "k")
    assert read_features(tmp_path / f"f{suffix}").paths == odd.paths


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failure_leaves_what_was_there(suffix: str, tmp_path: Path) -> None:
    out = tmp_path / f"f{suffix}"
    out.write_text("precious")

    def failing() -> Iterator[Features]:
        yield some_features()
        raise RuntimeError("gone")

    with pytest.raises(RuntimeError, match="gone"):
        write_features(out, failing(), (14, 5), "float32", "k")
    assert out.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("content", [None, b"", b"no features, this\n1,2\n"])
def test_what_is_no_file_of_features(suffix: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / f"f{suffix}"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"no features at|is not a file of features") as error:
        read_features(path)
    assert "\n" not in str(error.value)
    assert read_key(path) is None


def test_unknown_formats_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in .parquet, .npz, .csv"):
        check_format(tmp_path / "f.txt")
    (tmp_path / "f.npz").mkdir()
    os.mkfifo(tmp_path / "pipe.npz")
    for use in (check_format, read_features):
        with pytest.raises(UsageError, match=r"pipe\.npz is no plain file"):
            use(tmp_path / "pipe.npz")
    with pytest.raises(UsageError, match="is a folder"):
        check_format(tmp_path / "f.npz")


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyssl.feature_file.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "tinyssl\[parquet\]"'):
        check_format(Path("f.parquet"))
    check_format(Path("f.npz"))
