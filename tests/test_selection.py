"""From a folder to a list to label, round by round."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tinyssl
from tests.making import read_csv, untrained_run
from tinyssl import embedding, selection
from tinyssl.choosing import METHODS
from tinyssl.errors import JobError, UsageError
from tinyssl.labels import from_csv
from tinyssl.locks import locked
from tinyssl.selection import select

Folder = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return untrained_run(tmp_path / "run")


def fill_in(path: Path, count: int | None = None) -> None:
    """Labels the first rows by their folder, as a person would."""
    rows = read_csv(path)
    for row in rows[:count]:
        row["label"] = Path(row["path"]).parent.name
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label", "order"])
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("method", METHODS)
def test_a_list_to_fill_in(method: str, run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data, out = picture_folder(), tmp_path / "to_label.csv"
    chosen = tinyssl.select(run, data, 6, out, method=method)
    rows = read_csv(out)
    assert [row["path"] for row in rows] == chosen.paths
    assert [(row["label"], row["order"]) for row in rows] == [("", str(i)) for i in range(1, 7)]
    assert len(set(chosen.paths)) == 6
    assert {p.name for p in tmp_path.iterdir()} == {
        "run", "pictures", "to_label.csv", "to_label.png",
    }  # fmt: skip
    again = select(run, data, 6, tmp_path / "again.csv", method=method)
    assert again.paths == chosen.paths
    fill_in(out)
    table = from_csv(out)
    assert [str(path) for path in table.paths] == chosen.paths
    assert table.unlabeled == 0


def test_both_kinds_are_among_the_first_two(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    chosen = select(run, picture_folder(per_class=12), 2, tmp_path / "a.csv")
    assert {Path(path).parent.name for path in chosen.paths} == {"dark", "bright"}


def test_rounds_never_repeat(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data, features = picture_folder(), tmp_path / "features.npz"
    first = select(run, data, 5, tmp_path / "1.csv", features=features)
    fill_in(tmp_path / "1.csv", 3)
    second = select(
        run, data, 13, tmp_path / "2.csv", labeled=tmp_path / "1.csv", features=features
    )
    assert not set(first.paths[:3]) & set(second.paths)
    assert set(first.paths) | set(second.paths) == {str(p) for p in data.rglob("*.png")}
    assert [row["label"] for row in read_csv(tmp_path / "2.csv")].count("") == 13
    fill_in(tmp_path / "2.csv")
    with pytest.raises(UsageError, match=r"no picture is left .* 16 labeled already"):
        select(run, data, 1, tmp_path / "3.csv", labeled=tmp_path / "2.csv")


def test_test_pictures_of_earlier_labels_stay_such(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder()
    known = sorted(data.rglob("*.png"))[:2]
    rows = [f"{path},{path.parent.name},{s}" for path, s in zip(known, ("train", "test"))]  # noqa: B905
    (tmp_path / "known.csv").write_text("path,label,split\n" + "\n".join(rows))
    select(run, data, 3, tmp_path / "next.csv", labeled=tmp_path / "known.csv")
    splits = {row["path"]: row["split"] for row in read_csv(tmp_path / "next.csv")}
    assert splits.pop(str(known[1])) == "test"
    assert list(splits.values()) == ["train"] * 4


def test_features_are_kept_for_the_next_round(
    run: Path, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, features = picture_folder(), tmp_path / "features.parquet"
    first = select(run, data, 3, tmp_path / "1.csv", features=features)

    def never(*given: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(embedding, "_embed", never)
    again = select(run, data, 3, tmp_path / "2.csv", features=features)
    assert again.paths == first.paths
    assert tinyssl.embed(run, data, features).pictures == 16
    (data / "dark" / "000.png").unlink()
    with pytest.raises(UsageError, match=r"features\.parquet exists"):
        select(run, data, 3, tmp_path / "3.csv", features=features)


def test_features_that_another_writes_are_left_to_it(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data, parts, half = picture_folder(), tmp_path / "f.npz.parts", tmp_path / ".f.npz.abc.tmp"
    parts.mkdir()
    half.touch()
    with locked(parts), pytest.raises(UsageError, match=r"another tinyssl writes .*f\.npz\.parts"):
        select(run, data, 3, tmp_path / "1.csv", features=tmp_path / "f.npz")
    assert half.exists()
    assert len(select(run, data, 3, tmp_path / "1.csv", features=tmp_path / "f.npz").paths) == 3


@pytest.mark.parametrize("method", METHODS)
def test_copies_are_never_both_chosen(
    method: str, run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=3)
    for path in list(data.rglob("*.png")):
        shutil.copy(path, path.with_stem(path.stem + "copy"))
    chosen = select(run, data, 6, tmp_path / "a.csv", method=method)
    assert len({Path(path).read_bytes() for path in chosen.paths}) == 6
    with pytest.raises(UsageError, match=r"6 pictures are left .* 6 copies of others"):
        select(run, data, 7, tmp_path / "b.csv", method=method)
    (tmp_path / "known.csv").write_text(f"path,label\n{data}/dark/000copy.png,dark\n")
    later = select(run, data, 5, tmp_path / "c.csv", method=method, labeled=tmp_path / "known.csv")
    assert str(data / "dark" / "000.png") not in later.paths


def test_labeled_pictures_elsewhere_count(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data, other = picture_folder("a", per_class=8), picture_folder("b", per_class=5)
    (tmp_path / "known.csv").write_text(f"path,label\n{other}/dark/000.png,dark\n")
    chosen = select(run, data, 1, tmp_path / "o.csv", labeled=tmp_path / "known.csv")
    assert Path(chosen.paths[0]).parent.name == "bright"
    assert Path(chosen.paths[0]).is_relative_to(data)


def test_unreadable_pictures_are_told_and_never_chosen(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data = picture_folder(per_class=2)
    (data / "broken.png").touch()
    chosen = select(run, data, 4, tmp_path / "a.csv")
    assert str(data / "broken.png") not in chosen.paths
    assert "broken.png,empty file" in (tmp_path / "a.csv.skipped.csv").read_text()
    with pytest.raises(UsageError, match=r"give at most 4$"):
        select(run, data, 5, tmp_path / "b.csv")


def test_the_contact_sheet_shows_the_choice(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    for path in (picture_folder() / "bright").iterdir():
        path.unlink()
    chosen = select(run, tmp_path / "pictures", 8, tmp_path / "a.csv")
    with Image.open(chosen.sheet) as sheet:
        assert sheet.width == 6 + 8 * 118
        assert np.asarray(sheet)[6:118, 6:118].mean() < 100  # dark noise


def test_copies_of_the_choice_for_labelling_tools(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data, folder = picture_folder(), tmp_path / "new" / "to_label"
    chosen = select(run, data, 10, tmp_path / "a.csv", copy_to=folder)
    copies = sorted(folder.iterdir())
    assert [path.name for path in copies] == [
        f"{number:02}-{Path(path).name}" for number, path in enumerate(chosen.paths, 1)
    ]  # names that both folders have are in it twice
    for copy, path in zip(copies, chosen.paths, strict=True):
        assert copy.read_bytes() == Path(path).read_bytes()
    with pytest.raises(UsageError, match=r"copy_to: .* is there and not an empty folder"):
        select(run, data, 2, tmp_path / "b.csv", copy_to=folder)
    (tmp_path / "link").symlink_to(data)
    for inside in (data / "new", tmp_path / "link" / "new"):
        with pytest.raises(UsageError, match=r"copy_to: .* lies in .*; name a folder elsewhere"):
            select(run, data, 2, tmp_path / "b.csv", copy_to=inside)
    assert not (tmp_path / "b.csv").exists()
    assert sorted(folder.iterdir()) == copies


def test_copies_are_all_there_or_none(picture_folder: Folder, tmp_path: Path) -> None:
    good, folder = picture_folder() / "dark" / "000.png", tmp_path / "to_label"
    with pytest.raises(JobError, match=r"/gone.png: No such file or directory; the list is whole"):
        selection._copy([str(good), str(tmp_path / "gone.png")], folder)
    assert not list(folder.iterdir())


def test_labels_are_not_overwritten(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data, out = picture_folder(), tmp_path / "a.csv"
    select(run, data, 2, out)
    fill_in(out)
    before = out.read_text()
    with pytest.raises(UsageError, match="maybe with labels in it"):
        select(run, data, 3, out)
    assert out.read_text() == before
    assert len(select(run, data, 3, out, overwrite=True).paths) == 3
    with pytest.raises(UsageError, match="is read here and would be lost"):
        select(run, out, 1, out, overwrite=True)
    own = tmp_path / "labels.csv"
    own.write_text("path,label,split\n")
    with pytest.raises(UsageError, match="would be lost: its first line is not path,label,order"):
        select(run, data, 3, own, overwrite=True)
    assert own.read_text() == "path,label,split\n"
    drawing = tmp_path / "b.png"
    Image.new("L", (8, 8)).save(drawing)
    with pytest.raises(UsageError, match=r"b.png is there, was not made by tinyssl"):
        select(run, data, 3, tmp_path / "b.csv", overwrite=True)
    assert not (tmp_path / "b.csv").exists()
    with pytest.raises(UsageError, match="there is no folder"):
        select(run, data, 3, tmp_path / "gone" / "b.csv")
    select(run, data, 2, data / "b.csv")
    assert len(select(run, data, 3, data / "b.csv", overwrite=True).paths) == 3
    roundabout = run / ".." / data.name / "b.csv"
    assert len(select(run, data, 16, roundabout, overwrite=True).paths) == 16
    sheet = data / "a.png"
    out.with_suffix(".png").rename(sheet)
    with pytest.raises(UsageError, match="is read here and would be lost"):
        select(run, data, 1, data / "a.csv", overwrite=True)
    assert sheet.is_file()


@pytest.mark.parametrize(
    ("budget", "options", "told"),
    [
        (0, {}, "budget: got 0; give 1 or more"),
        (17, {}, "give at most 16, less copies and unreadable ones"),
        (3, {"seed": -1}, "seed: got -1; give 0 to 2147483647"),
        (3, {"seed": 2**32}, "seed: got 4294967296"),
        (3, {"method": "best"}, "allowed are kmeans, typiclust, kcenter, random"),
        (3, {"labeled": "nope.csv"}, "cannot read labels"),
        (3, {"features": "f.txt"}, "must end in"),
        (3, {"features": "f.csv"}, r"a csv cannot say .* name a \.parquet or \.npz"),
    ],
)
def test_wrong_use_leaves_nothing(
    budget: int,
    options: dict[str, Any],
    told: str,
    run: Path,
    picture_folder: Folder,
    tmp_path: Path,
) -> None:
    data = picture_folder()
    with pytest.raises(UsageError, match=told):
        select(run, data, budget, tmp_path / "a.csv", **options)
    assert {p.name for p in tmp_path.iterdir()} == {"run", "pictures"}


def test_the_sheet_shows_pictures_as_large_as_the_run_allows(
    run: Path, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = json.loads((run / "encoder.json").read_text())
    (run / "encoder.json").write_text(json.dumps(description | {"max_pixels": 10_000}))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # Pillow refuses twice as many
    chosen = select(run, picture_folder(), 2, tmp_path / "a.csv")
    assert chosen.sheet.is_file()
