"""Labels and splits: read back as written, refused with the line that is wrong."""

import codecs
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tinyssl.errors import UsageError
from tinyssl.labels import (
    from_class_folders,
    from_csv,
    read_labels,
    stratified_split,
    write_csv,
)
from tinyssl.scanning import scan

Folder = Callable[..., Path]


def table(tmp_path: Path, text: str, pictures: str = "abc") -> Path:
    for name in pictures:
        (tmp_path / f"{name}.png").touch()
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def test_class_folders(picture_folder: Folder) -> None:
    folder = picture_folder()
    found = from_class_folders(folder)
    assert [p.parent.name for p in found.paths] == found.labels
    assert len(found.paths) == 16
    with pytest.raises(UsageError, match="at least 2"):
        from_class_folders(folder / "dark")
    with pytest.raises(UsageError, match="no folder"):
        from_class_folders(folder / "nope")


def test_classes_may_be_called_train_and_test(picture_folder: Folder) -> None:
    data = picture_folder(per_class=3)
    (data / "dark").rename(data / "train")
    (data / "bright").rename(data / "test")
    assert read_labels(data).labels == ["test"] * 3 + ["train"] * 3


def test_class_folders_in_train_and_test_are_a_split(
    picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "set"
    root.mkdir()
    shutil.copytree(picture_folder(per_class=3), root / "train")
    shutil.copytree(root / "train", root / "test")
    found = read_labels(root)
    assert set(found.labels) == {"dark", "bright"}
    assert found.splits == ["train"] * 6 + ["test"] * 6
    assert [path.parent.parent.name for path in found.paths] == found.splits
    shutil.copytree(root / "train", root / "val")
    assert read_labels(root).splits == found.splits
    assert "train and test are read, val left out" in caplog.text
    shutil.rmtree(root / "val")
    (root / "test").rename(root / "val")
    with pytest.raises(UsageError, match=r"holds train, val: parts of a set by their names"):
        read_labels(root)
    assert len(read_labels(root / "val").paths) == 6


@pytest.mark.parametrize("splits", [None, ["train", "test", "train"]])
def test_written_labels_read_back(splits: list[str] | None, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in ("a", "b, c", "ü")]
    for path in paths:
        path.touch()
    write_csv(tmp_path / "labels.csv", paths, ["x", 'y "z"', "x"], splits)
    found = from_csv(tmp_path / "labels.csv")
    assert (found.paths, found.labels, found.splits) == (paths, ["x", 'y "z"', "x"], splits)


def test_paths_count_from_the_csv_or_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path, "path,label\na.png,x\nb.png,y\n")
    assert from_csv(path).paths == [tmp_path / "a.png", tmp_path / "b.png"]
    other = tmp_path / "other" / "labels.csv"
    other.parent.mkdir()
    path.rename(other)
    monkeypatch.chdir(tmp_path)
    assert from_csv(other).paths[0] == tmp_path / "a.png"


def test_spreadsheets_may_write_semicolons_or_tabs(tmp_path: Path) -> None:
    for text in (
        '"Path";label;order\r\na.png;"green; or blue";1\r\nb.png;y, z;2\r\n',
        "order\tlabel\tpath\n1\tgreen; or blue\ta.png\n2\ty, z\tb.png\n",
    ):
        path = table(tmp_path, text)
        found = from_csv(path)
        assert found.labels == ["green; or blue", "y, z"]
        assert [picture.name for picture in found.paths] == ["a.png", "b.png"]
        assert scan([path]) == found.paths


@pytest.mark.parametrize("above", ["sep=;\n", '"SEP=;"\n', "\n ; \n", "\nsep=;\n\n"])
def test_empty_lines_and_the_delimiter_may_be_above_the_header(above: str, tmp_path: Path) -> None:
    path = table(tmp_path, f"{above}path;label\na.png;x\nb.png;y\n")
    assert from_csv(path).labels == ["x", "y"]
    assert scan([path]) == from_csv(path).paths
    with pytest.raises(UsageError, match=rf"line {above.count(chr(10)) + 2}: no picture 'z\.png'"):
        from_csv(table(tmp_path, f"{above}path;label\nz.png;x\n"))


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_labels_may_be_unicode_text_of_a_spreadsheet(mark: bytes, tmp_path: Path) -> None:
    path = table(tmp_path, "", "aü")
    encoding = "utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-16-be"
    path.write_bytes(mark + "path\tlabel\r\na.png\tMüll\r\nü.png\ty\r\n".encode(encoding))
    assert from_csv(path).labels == ["Müll", "y"]
    assert scan([path]) == from_csv(path).paths


def test_semicolons_in_names_separate_no_cells(tmp_path: Path) -> None:
    named = tmp_path / "a;b.png"
    named.touch()
    (tmp_path / "list.csv").write_text("# path;\na;b.png\n")
    assert scan([tmp_path / "list.csv"]) == [named]
    path = table(tmp_path, "path,label\na;b.png,x;y\n")
    assert (from_csv(path).paths, from_csv(path).labels) == ([named], ["x;y"])


def test_empty_cells_at_the_end_of_a_row_are_no_labels(tmp_path: Path) -> None:
    assert from_csv(table(tmp_path, "path,label\na.png,x,,\nb.png,y, \n")).labels == ["x", "y"]
    found = from_csv(table(tmp_path, "path,label\na.png,x\nb.png,,unsure\n"))
    assert (found.labels, found.unlabeled) == (["x"], 1)


def test_blanks_and_line_ends_and_inches_are_parts_of_labels(tmp_path: Path) -> None:
    text = 'path,label\n"a.png" ,"x" \nb.png,5" pipe\nc.png,"two\nlines"\n'
    assert from_csv(table(tmp_path, text + "a.png,x\n")).labels == ["x", '5" pipe', "two\nlines"]


def test_empty_labels_are_counted_and_equal_rows_merged(tmp_path: Path) -> None:
    found = from_csv(table(tmp_path, "path,label\na.png,x\nb.png,\na.png,x\nc.png,y\n"))
    assert (found.labels, found.unlabeled) == (["x", "y"], 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("file,class\na.png,x\n", "has the columns file, class"),
        ("", "has the columns (none)"),
        ("path,Label,label \na.png,x,y\n", "has 2 columns label; keep one of them"),
        ("path,label\na.png,x\nz.png,y\n", "line 3: no picture 'z.png' (looked in {folder})"),
        ("path,label\na.png,x\na.png,y\n", "line 3"),
        ("path,label,split\na.png,x,val\n", "line 2: split 'val' is not one of train, test"),
        ("path,label,split\na.png,x,train\nb.png,y,\n", "1 rows have no split"),
        ("path,label\n", "has no rows below its header; give one picture a row"),
        ("path,label\na.png,\n", "(1 rows have an empty label); fill in the labels"),
        ('path,label\n"' + "x" * 200_000, "cannot read labels"),
        ("path,label\na.png,x\nb.png,red, glass\n", "line 3: more cells than columns; put a label"),
        ('path,label\na.png,x\nb.png,"y\nc.png,z\n', "in the row after line 2"),
    ],
)
def test_wrong_tables_are_told_in_one_line(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        from_csv(table(tmp_path, text))
    assert told.replace("{folder}", str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_tables(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    with pytest.raises(UsageError, match=r"cannot read labels from .*: No such file or directory$"):
        from_csv(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read labels"):
        from_csv(path)


def test_split_is_stratified_and_repeats() -> None:
    names = ["a"] * 40 + ["b"] * 12 + ["c"] * 2 + ["d"]
    test = stratified_split(names, seed=3)
    assert [int(test[np.array(names) == n].sum()) for n in "abcd"] == [10, 3, 0, 0]
    assert (test == stratified_split(names, seed=3)).all()
    assert (test != stratified_split(names, seed=4)).any()


def test_repeated_rows_and_empty_class_folders_are_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    (tmp_path / "c").mkdir()
    assert from_class_folders(tmp_path).empty == ("c",)
    (tmp_path / "l.csv").write_text("path,label\na/1.png,x\nb/1.png,y\na/1.png,x\na/1.png,x\n")
    table = from_csv(tmp_path / "l.csv")
    assert (table.labels, table.repeated) == (["x", "y"], 2)


def test_all_missing_pictures_are_counted(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,label\nx.png,a\ny.png,b\nz.png,\n")
    with pytest.raises(UsageError, match=r"line 2: no picture 'x\.png'.*2 labeled pictures"):
        from_csv(tmp_path / "l.csv")


def test_a_roundabout_path_gives_the_same_files(
    picture_folder: Folder,
) -> None:
    folder = picture_folder()
    roundabout = folder / "dark" / ".."
    assert from_class_folders(roundabout) == from_class_folders(folder)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such names")
def test_names_of_any_bytes_come_back(tmp_path: Path) -> None:
    paths = [Path(os.fsdecode(os.fsencode(tmp_path) + b"/Pr\xfcfling.png")), tmp_path / "b.png"]
    for path in paths:
        path.touch()
    write_csv(tmp_path / "labels.csv", paths, ["x", "y"])
    assert from_csv(tmp_path / "labels.csv").paths == paths
    (tmp_path / "paths.txt").write_bytes(b"\n".join(map(os.fsencode, paths)))
    assert set(scan([tmp_path / "paths.txt"])) == set(paths)


@pytest.mark.skipif(sys.platform == "win32", reason="there no name ends in a space")
def test_names_may_end_in_spaces(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png ", " c.png", "d.png")]
    for path in paths:
        path.touch()
    write_csv(tmp_path / "labels.csv", [path.name for path in paths[:3]] + [" d.png "], "xyxy")
    assert from_csv(tmp_path / "labels.csv").paths == paths


@pytest.mark.parametrize(("there", "listed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_may_be_encoded_otherwise_as_names_from_a_mac_are(
    there: Literal["NFC", "NFD"], listed: Literal["NFC", "NFD"], tmp_path: Path
) -> None:
    paths = [tmp_path / unicodedata.normalize(there, name) for name in ("ü.png", "größer.png")]
    for path in paths:
        path.touch()
    names = [unicodedata.normalize(listed, path.name) for path in paths]
    write_csv(tmp_path / "labels.csv", names, ["x", "y"])
    assert from_csv(tmp_path / "labels.csv").paths == paths
    assert scan([tmp_path / "labels.csv"]) == sorted(paths)


@pytest.mark.skipif(sys.platform == "win32", reason="there no name has a backslash")
def test_paths_may_have_the_backslashes_of_windows(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    paths = [tmp_path / name for name in ("a/1.png", "a/ü.png", "a\\2.png")]
    for path in [*paths, tmp_path / "a" / "2.png"]:
        path.touch()
    write_csv(tmp_path / "labels.csv", [r"a\1.png", r".\a\ü.png", r"a\2.png"], "xyx")
    assert from_csv(tmp_path / "labels.csv").paths == paths
    assert scan([tmp_path / "labels.csv"]) == sorted(paths)


@pytest.mark.parametrize("row", ["b.png,größer", "ü.png,x"])
def test_other_encodings_are_told(row: str, tmp_path: Path) -> None:
    table(tmp_path, "", "b")
    (tmp_path / "labels.csv").write_bytes(f"path,label\n{row}\n".encode("latin-1"))
    with pytest.raises(UsageError, match="not UTF-8; save it as such"):
        from_csv(tmp_path / "labels.csv")


def test_linked_folders_count_as_everywhere(picture_folder: Folder) -> None:
    folder, elsewhere = picture_folder(), picture_folder("elsewhere")
    (folder / "dark" / "more").symlink_to(elsewhere / "dark")
    found = from_class_folders(folder)
    assert found.paths == scan([folder])
    assert found.labels.count("dark") == 2 * found.labels.count("bright")


def test_columns_may_be_written_in_any_way(tmp_path: Path) -> None:
    found = from_csv(table(tmp_path, "Path, label,Split \na.png,x,train\nb.png,y,Test\n"))
    assert (found.labels, found.splits) == (["x", "y"], ["train", "test"])


def test_classes_that_look_the_same_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two = [unicodedata.normalize(form, "Müll") for form in ("NFC", "NFD")]
    rows = f"a.png,{two[0]}\nb.png,{two[1]}\nc.png,glass\nd.png,other\n"
    assert len(set(from_csv(table(tmp_path, f"path,label\n{rows}", "abcd")).labels)) == 4
    assert [record.getMessage() for record in caplog.records] == [
        f"the labels {two[1]!r} and {two[0]!r} are two classes; are they one?"
    ]
    caplog.clear()
    from_csv(table(tmp_path, "path,label\na.png,glass\nb.png,Glass\n"))
    assert "'Glass' and 'glass' are two classes" in caplog.text
