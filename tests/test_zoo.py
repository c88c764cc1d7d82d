"""Every kind of file that lies in picture folders: loaded, skipped with a reason, or passed by."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from PIL import Image

from tests.making import read_csv
from tinyssl.data import Pictures, load_pictures
from tinyssl.errors import JobError
from tinyssl.opening import MAX_PIXELS, reading
from tinyssl.scanning import scan

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("zoo") / "zoo"
    zoo.build(made)
    return made


def load(folder: Path, **changes: Any) -> Pictures:
    settings: dict[str, Any] = {"size": 16, "rule": "crop", "channels": 3, "workers": 2}
    return load_pictures(scan([folder]), **settings | changes)


def names(paths: list[str], folder: Path) -> set[str]:
    return {os.path.relpath(path, folder) for path in paths}


def test_everything_is_loaded_or_skipped_with_its_reason(folder: Path) -> None:
    pictures = load(folder)
    assert names(pictures.paths, folder) == {*zoo.LOADED, "linked.png"}
    reasons = {os.path.relpath(path, folder): reason for path, reason in pictures.skipped}
    wanted = {name: reason for name, (_, reason) in zoo.SKIPPED.items()} | zoo.ODD_FILES
    assert set(reasons) == set(wanted)
    for name, part in wanted.items():
        assert part in reasons[name], name
        assert "\n" not in reasons[name]
    assert names(pictures.several, folder) == zoo.SEVERAL


def test_it_is_the_same_on_every_run_whatever_the_workers(folder: Path, tmp_path: Path) -> None:
    found = [load(folder, cache_dir=tmp_path / str(n), workers=n) for n in (1, 2, 7)]
    first = found[0]
    for other in found[1:]:
        assert (other.paths, other.skipped) == (first.paths, first.skipped)
        np.testing.assert_array_equal(other.array, first.array)
        assert other.digest == first.digest


def test_skipped_csv_reads_back_whatever_the_names(folder: Path) -> None:
    pictures = load(folder)
    rows = read_csv(pictures.folder / "skipped.csv")
    assert [(row["path"], row["reason"]) for row in rows] == pictures.skipped


def test_the_first_frame_is_taken(tmp_path: Path) -> None:
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        images = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
        data = zoo.encoded(images[0], kind, save_all=True, append_images=images[1:])
        (tmp_path / f"a.{kind.lower()}").write_bytes(data)
    pictures = load(tmp_path)
    assert (pictures.array[..., 0] > 200).all()
    assert (pictures.array[..., 2] < 50).all()
    assert len(pictures.several) == 4


def test_the_limit_of_pixels_can_be_raised_and_lowered(tmp_path: Path) -> None:
    zoo.rgb(100, 100).save(tmp_path / "a.png")
    with pytest.raises(JobError, match=r"100 x 100: more than 9,999 pixels; data\.max"):
        load(tmp_path, max_pixels=9_999)
    assert load(tmp_path, max_pixels=10_000).paths
    before = Image.MAX_IMAGE_PIXELS
    large = tmp_path / "large"
    large.mkdir()
    (large / "b.png").write_bytes(zoo.png_header(20_000, 10_000))  # over twice Pillow's limit
    with pytest.raises(JobError, match=rf"more than {MAX_PIXELS:,} pixels; data\.max_pixels"):
        load(large)
    with pytest.raises(JobError, match="broken data"):
        load(large, max_pixels=200_000_000)
    assert before == Image.MAX_IMAGE_PIXELS


def test_of_overlapping_readers_the_last_puts_back_limit_and_warnings() -> None:
    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    one, other = reading(2000), reading(1000)
    one.__enter__()
    other.__enter__()
    assert Image.MAX_IMAGE_PIXELS == 2000
    one.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS == 1000
    warnings.warn("odd", stacklevel=1)  # silenced still, or this test would fail
    other.__exit__(None, None, None)
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == (limit, filters)


def test_a_file_too_large_for_a_picture_is_not_read(tmp_path: Path) -> None:
    zoo.rgb().save(tmp_path / "a.png")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    ((_, reason),) = load(tmp_path).skipped
    assert reason.startswith("1,099,511,627,776 bytes: more than")
    assert "data.max_pixels" in reason


@pytest.mark.parametrize("change", ["gone", "emptied", "replaced by a folder", "replaced"])
def test_files_that_change_between_scan_and_read(change: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        zoo.rgb(30 + ord(name)).save(tmp_path / f"{name}.png")
    files = scan([tmp_path])
    victim = files[1]
    victim.unlink()
    if change == "emptied":
        victim.touch()
    elif change == "replaced by a folder":
        victim.mkdir()
    elif change == "replaced":
        victim.write_bytes(zoo.LOADED["sixteen.png"])
    pictures = load_pictures(files, size=16, rule="crop")
    wanted = {
        "gone": "No such file or directory",
        "emptied": "empty file",
        "replaced by a folder": "a folder, not a file",
    }
    assert [reason for _, reason in pictures.skipped] == [
        wanted[change] for _ in range(change in wanted)
    ]
    assert len(pictures.paths) == (1 if change in wanted else 2)


def test_a_folder_that_vanishes_during_the_scan(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        zoo.rgb().save(tmp_path / name / "a.png")
    from tinyssl import scanning

    walk = scanning.pictures_below(tmp_path)
    assert next(walk).endswith("a/a.png")
    shutil.rmtree(tmp_path / "b")
    assert [Path(path).parent.name for path in walk] == ["c"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything, so it becomes somebody else for a while."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_may_not_be_read_is_told() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own is closed to others
        base = Path(name)
        base.chmod(0o777)
        data = base / "data"
        (data / "closed").mkdir(parents=True)
        for path in (data / "a.png", data / "b.png", data / "closed" / "c.png"):
            zoo.rgb().save(path)
        (data / "b.png").chmod(0)
        (data / "closed").chmod(0)
        try:
            with as_nobody():
                pictures = load(data, cache_dir=base / "cache")
        finally:
            (data / "closed").chmod(0o700)
        assert names(pictures.paths, data) == {"a.png"}
        told = {Path(path).name: reason for path, reason in pictures.skipped}
        assert told == {"b.png": "Permission denied", "closed": "Permission denied"}


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("deflate", [False, True])
def test_tiffs_of_many_channels_come_as_they_are(
    channels: int, dtype: Any, planes: bool, deflate: bool, tmp_path: Path
) -> None:
    values = zoo.noise(16, 16, channels, dtype)
    for big in (False, True):
        data = zoo.tiff(values, planes=planes, deflate=deflate, big=big)
        (tmp_path / f"{big}.tif").write_bytes(data)
    wide = zoo.tiff(values, planes=planes, deflate=deflate, wide=True)
    (tmp_path / "wide.tif").write_bytes(wide)
    if channels == 3:
        return  # one gray and two others: nothing that data.channels=3 should take for colours
    pictures = load(tmp_path, channels=channels)
    assert pictures.array.dtype == dtype
    assert len(pictures.paths) == 3
    for row in pictures.array:
        np.testing.assert_array_equal(row, values)


def test_a_deflated_tiff_is_inflated_no_further_than_it_says(tmp_path: Path) -> None:
    lying = zoo.tiff(np.zeros((2000, 2000, 2), np.uint8), deflate=True, says=(16, 16))
    (tmp_path / "a.tif").write_bytes(lying)
    assert load(tmp_path, channels=2).array.shape == (1, 16, 16, 2)
