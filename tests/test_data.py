"""From folders to the cache: found, decoded once, noticed when changed, never taken for whole."""

import csv
import errno
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from PIL import Image

from tinyssl import data
from tinyssl.data import Pictures, default_cache_dir, load_pictures, write_skipped
from tinyssl.errors import JobError, UsageError
from tinyssl.labels import write_csv
from tinyssl.opening import IMAGE_EXTENSIONS, read_file
from tinyssl.picture import decode, resize
from tinyssl.scanning import scan

Folder = Callable[..., Path]


def load(folder: Path, **changes: Any) -> Pictures:
    settings: dict[str, Any] = {"size": 16, "rule": "crop"}
    return load_pictures(scan([folder]), **settings | changes)


def save(path: Path, value: int = 100, dtype: Any = np.uint8, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.full((20, 20, 3), value, dtype)
    Image.fromarray(array if channels == 3 else array[..., 0]).save(path)
    return path


def test_extensions_are_pictures() -> None:
    assert {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"} <= IMAGE_EXTENSIONS
    assert not {".pdf", ".eps", ".mpg", ".txt", ".csv"} & IMAGE_EXTENSIONS


def test_scan_finds_pictures_at_any_depth(tmp_path: Path) -> None:
    names = ["a.png", "x/b.PNG", "x/y/c d.png", "x/y/ü.png"]
    for name in names:
        save(tmp_path / name)
    for junk in (".hidden.png", ".git/e.png", "Thumbs.db", "notes.txt", "x/model.pdf"):
        (tmp_path / junk).parent.mkdir(exist_ok=True)
        (tmp_path / junk).write_bytes(b"x")
    found = scan([tmp_path])
    assert found == sorted(tmp_path / name for name in names)
    assert scan([tmp_path, tmp_path / "x" / "..", tmp_path / "a.png"]) == found


def test_scan_survives_links_that_lead_back(tmp_path: Path) -> None:
    save(tmp_path / "x" / "a.png")
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    (tmp_path / "twice").symlink_to(tmp_path / "x")
    assert len(scan([tmp_path])) == 1


def test_scan_reads_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = save(tmp_path / "in" / "a.png"), save(tmp_path / "b.png")
    text = tmp_path / "in" / "list.txt"
    text.write_text(f"# pictures\n\na.png\n  {two}  \n  # end\n")
    assert scan([text]) == sorted([one, two])
    table = tmp_path / "in" / "list.csv"
    table.write_text("label,path\nx,a.png\n")
    assert scan([table]) == [one]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "plain.csv").write_text("b.png,x\n")
    assert scan([Path("in/plain.csv")]) == [two]


@pytest.mark.parametrize("make", ["missing", "empty folder", "empty list"])
def test_scan_refuses_an_empty_source_beside_a_good_one(make: str, tmp_path: Path) -> None:
    good = save(tmp_path / "good" / "a.png").parent
    bad = tmp_path / ("list.txt" if make == "empty list" else "bad")
    if make == "empty folder":
        bad.mkdir()
    elif make == "empty list":
        bad.write_text("# nothing\n")
    with pytest.raises(UsageError, match=str(bad)):
        scan([good, bad])


def test_cache_holds_every_picture_in_order(picture_folder: Folder) -> None:
    folder = picture_folder()
    pictures = load(folder)
    assert pictures.paths == [str(p) for p in scan([folder])]
    assert pictures.array.shape == (16, 16, 16, 3)
    assert not pictures.array.flags.writeable
    for path, row in zip(pictures.paths, pictures.array, strict=True):
        np.testing.assert_array_equal(row, resize(decode(Path(path)), 16, "crop"))


def stamp(pictures: Pictures) -> tuple[str, int, int]:
    status = (pictures.folder / "pictures.bin").stat()
    return str(pictures.folder), status.st_mtime_ns, status.st_ino


def test_second_time_is_a_hit(picture_folder: Folder) -> None:
    folder = picture_folder()
    told: list[int] = []
    first = load(folder, progress=told.append)
    assert (sum(told), len(told)) == (16, 16)
    again = load(folder, progress=told.append)
    assert stamp(first) == stamp(again)
    assert told[16:] == [16]
    assert first.digest == again.digest


@pytest.mark.parametrize("change", ["touch", "replace", "add", "remove"])
def test_a_changed_folder_is_noticed(change: str, picture_folder: Folder) -> None:
    folder = picture_folder()
    before = load(folder)
    victim = Path(before.paths[3])
    if change == "touch":
        os.utime(victim, ns=(1, 1))
    elif change == "replace":
        save(victim, channels=3)
    elif change == "add":
        save(folder / "new.png", channels=3)
    else:
        victim.unlink()
    after = load(folder)
    assert after.folder != before.folder
    assert (after.digest == before.digest) == (change == "touch")


@pytest.mark.parametrize("setting", [{"size": 8}, {"rule": "squash"}, {"channels": 1}])
def test_a_changed_setting_is_another_cache(setting: Any, picture_folder: Folder) -> None:
    folder = picture_folder()
    assert load(folder, **setting).folder != load(folder).folder


def test_skipped_files_decide_neither_channels_nor_depth(tmp_path: Path) -> None:
    for number in range(2):
        save(tmp_path / f"{number}.png")
    Image.fromarray(np.zeros((20, 20), np.float32)).save(tmp_path / "float.tif")
    deep = np.zeros((20, 20, 4), np.uint16)
    (tmp_path / "four.tif").write_bytes(zoo.tiff(deep))
    found = load(tmp_path)
    assert [Path(path).name for path, _ in found.skipped] == ["float.tif", "four.tif"]
    assert (found.array.shape, found.array.dtype) == ((2, 16, 16, 1), np.uint8)
    (tmp_path / "rest").mkdir()
    (tmp_path / "four.tif").rename(tmp_path / "rest" / "four.tif")
    four = load(tmp_path / "rest", channels=4)
    assert (four.array.shape, four.array.dtype) == ((1, 16, 16, 4), np.uint16)


@pytest.mark.parametrize(
    ("kinds", "shape", "dtype"),
    [
        ([(np.uint8, 1)], 1, np.uint8),
        ([(np.uint8, 1), (np.uint8, 3)], 3, np.uint8),
        ([(np.uint16, 1)], 1, np.uint16),
        ([(np.uint16, 1), (np.uint8, 1)], 1, np.uint16),
    ],
)
def test_channels_and_depth_follow_the_files(
    kinds: list[tuple[Any, int]], shape: int, dtype: Any, tmp_path: Path
) -> None:
    for number, (kind, channels) in enumerate(kinds):
        save(tmp_path / f"{number}.png", 200, kind, channels)
    pictures = load(tmp_path)
    assert pictures.array.shape[3] == shape
    assert pictures.array.dtype == dtype
    if len(kinds) == 2 and dtype == np.uint16:
        assert (pictures.array[1] == 200 * 257).all()


def test_low_byte_reaches_the_cache(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0x1234, np.uint16)
    save(tmp_path / "b.png", 0x1235, np.uint16)
    array = load(tmp_path).array
    assert (array[1].astype(int) - array[0] == 1).all()


def test_alpha_reaches_a_four_channel_cache(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load(tmp_path, channels=4).array[0], rgba)


def test_unreadable_files_are_listed_and_skipped(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    (tmp_path / "list.txt").write_text("good.png\nempty.png\npage.jpg\ngone.png\n")
    pictures = load(tmp_path / "list.txt")
    assert pictures.paths == [str(good)]
    reasons = {Path(path).name: reason for path, reason in pictures.skipped}
    assert reasons == {
        "empty.png": "empty file",
        "page.jpg": "not a picture (an HTML page)",
        "gone.png": "No such file or directory",
    }
    with (pictures.folder / "skipped.csv").open() as file:
        assert {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)} == reasons


def test_errors_that_pass_are_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png")

    def failing(path: Path) -> bytes:
        if path.name == "b.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(data, "read_file", failing)
        without = load(tmp_path)
        assert without.skipped == [(str(tmp_path / "b.png"), os.strerror(errno.EIO))]
        made = (without.folder / "index.json").stat().st_mtime_ns
        assert load(tmp_path).digest == without.digest
        assert (without.folder / "index.json").stat().st_mtime_ns == made  # while it lasts
    assert load(tmp_path, as_it_was=True).digest == without.digest
    found = load(tmp_path)
    assert [Path(path).name for path in found.paths] == ["a.png", "b.png", "c.png"]
    assert not found.skipped


def test_nothing_readable_is_an_error_and_leaves_no_cache(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(JobError, match=r"none of the 1 pictures .*empty file"):
        load(tmp_path)
    assert not list(Path(os.environ["TINYSSL_CACHE"]).iterdir())


def test_exact_copies_are_grouped(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    for name in ("b", "c"):
        (tmp_path / f"{name}.png").write_bytes((tmp_path / "a.png").read_bytes())
    save(tmp_path / "d.png", 2)
    assert load(tmp_path).duplicates() == [[0, 1, 2]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_statistics_are_those_of_numpy(dtype: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(5):
        array = generator.integers(0, np.iinfo(dtype).max, (16, 16), dtype)
        Image.fromarray(array).save(tmp_path / f"{number}.png")
    pictures = load(tmp_path)
    unit = pictures.array / np.iinfo(dtype).max
    mean, std = pictures.statistics()
    assert mean == pytest.approx([unit.mean()])
    assert std == pytest.approx([unit.std()])


def test_a_constant_set_has_a_deviation_to_divide_by(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    assert load(tmp_path).statistics()[1] == [1e-3]


ODD_INDEXES = {
    "half index": '{"paths": [',
    "other index": "[1]",
    "deep index": "[" * 100_000,
    "objects": {"dtype": "O"},
    "too few names": {"paths": []},
    "no shape": {"shape": []},
}


@pytest.mark.parametrize("damage", ["shorter", "emptied", "no index", *ODD_INDEXES])
def test_damaged_caches_are_rebuilt(damage: str, picture_folder: Folder) -> None:
    folder = picture_folder()
    first = load(folder)
    expected = np.array(first.array)
    pixels, index = first.folder / "pictures.bin", first.folder / "index.json"
    if damage in ("shorter", "emptied"):
        pixels.write_bytes(pixels.read_bytes()[: 100 if damage == "shorter" else 0])
    elif damage == "no index":
        index.unlink()
    else:
        odd = ODD_INDEXES[damage]
        whole = json.loads(index.read_text())
        index.write_text(odd if isinstance(odd, str) else json.dumps(whole | odd))
    again = load(folder)
    np.testing.assert_array_equal(again.array, expected)
    assert again.digest == first.digest


def test_a_dying_build_is_not_taken_for_whole(picture_folder: Folder) -> None:
    folder = picture_folder()

    def die(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(folder, progress=die)
    assert not list(Path(os.environ["TINYSSL_CACHE"]).glob("*"))
    leftover = Path(os.environ["TINYSSL_CACHE"]) / ".building-dead"
    leftover.mkdir(parents=True, exist_ok=True)
    (leftover / "pictures.bin").write_bytes(b"half")
    assert len(load(folder).paths) == 16


@pytest.mark.parametrize("size", range(16, 22))  # a race is lost only now and then
def test_builds_at_once_all_succeed(picture_folder: Folder, size: int) -> None:
    folder = picture_folder()
    with ThreadPoolExecutor(8) as pool:
        built = list(pool.map(lambda _: load(folder, size=size), range(8)))
    assert len({stamp(pictures) for pictures in built}) == 1
    assert len({pictures.digest for pictures in built}) == 1


def test_read_only_data_is_fine(picture_folder: Folder) -> None:
    folder = picture_folder()
    before = sorted(folder.rglob("*"))
    folder.chmod(0o555)
    try:
        assert len(load(folder).paths) == 16
    finally:
        folder.chmod(0o755)
    assert sorted(folder.rglob("*")) == before


def test_cache_that_cannot_be_written_is_told(picture_folder: Folder, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("x")
    with pytest.raises(JobError, match="cannot write the cache"):
        load(picture_folder(), cache_dir=blocked)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    save(tmp_path / name)
    (tmp_path / os.fsdecode(b"bad\xff.png")).touch()
    pictures = load(tmp_path)
    assert [Path(p).name for p in pictures.paths] == [name]
    write_skipped(tmp_path / "skipped.csv", pictures.skipped)
    assert b"bad\xff.png" in (tmp_path / "skipped.csv").read_bytes()


def test_no_warning_filter_is_left_behind(picture_folder: Folder) -> None:
    import warnings

    before = list(warnings.filters)
    load(picture_folder(), workers=4)
    assert list(warnings.filters) == before


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_lists_hold_whatever_names_there_are(tmp_path: Path) -> None:
    names = ["#1.png", "new\nline.png", "nel\x85.png", 'quo"te, comma.png', "plain.png"]
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.touch()
    write_csv(tmp_path / "labels.csv", paths, ["x"] * 5)
    assert set(scan([tmp_path / "labels.csv"])) == set(paths)
    (tmp_path / "beside.csv").write_text("path,label\r\n#1.png,x\r\n\r\n plain.png,\r\n")
    assert set(scan([tmp_path / "beside.csv"])) == {paths[0], paths[4]}
    table = "# mine\n#plain.png,x\nlabel,Path\nx,#1.png\ny,#gone.png\n"
    (tmp_path / "remarks.csv").write_text(table)
    assert scan([tmp_path / "remarks.csv"]) == [paths[0]]
    (tmp_path / "names.txt").write_text("# a remark\nnel\x85.png\r\nplain.png\n")
    assert set(scan([tmp_path / "names.txt"])) == {paths[2], paths[4]}


@pytest.mark.skipif(sys.platform == "win32", reason="there no name ends in a space")
@pytest.mark.parametrize(("name", "first"), [("list.txt", "# a remark"), ("list.csv", "path")])
def test_names_may_end_in_spaces(name: str, first: str, tmp_path: Path) -> None:
    there = [save(tmp_path / "a.png")]
    there += [save(tmp_path / "with.png").rename(tmp_path / odd) for odd in ("b.png ", " c.png")]
    lines = [first, " a.png ", "b.png ", " c.png", "  ", " gone.png ", "  # another remark"]
    (tmp_path / name).write_text("\n".join(lines))
    assert set(scan([tmp_path / name])) == {*there, tmp_path / "gone.png"}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le"])
@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_lists_in_other_encodings_are_told(encoding: str, suffix: str, tmp_path: Path) -> None:
    save(tmp_path / "ä.png")
    (tmp_path / f"list{suffix}").write_bytes("ä.png\nb.png\n".encode(encoding))
    with pytest.raises(UsageError, match="not UTF-8; save it as such"):
        scan([tmp_path / f"list{suffix}"])


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TINYSSL_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)  # as in a container
    with pytest.raises(UsageError, match=r"no home for the cache .* TINYSSL_CACHE"):
        default_cache_dir()
