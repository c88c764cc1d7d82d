"""What is told about pictures before any training."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zoo
from PIL import Image

from tests.making import read_csv
from tinyssl.advice import advise
from tinyssl.checks import check
from tinyssl.errors import UsageError
from tinyssl.headers import Header
from tinyssl.likeness import blank, near_copies
from tinyssl.survey import Survey

Folder = Callable[..., Path]
SMALL = ["data.image_size=32"]


def topics(report: str) -> dict[str, list[str]]:
    """The report's lines under each topic."""
    found: dict[str, list[str]] = {}
    for line in report.splitlines():
        if line[:1].strip():
            topic = line.split()[0]
        found.setdefault(topic, []).append(line[11:])
    return found


def picture(path: Path, seed: int, side: int = 48, **options: Any) -> Path:
    """A blurred one, as photographs are: near copies stay near."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(path, **options)
    return path


def test_the_zoo_is_told_before_any_training(tmp_path: Path) -> None:
    zoo.build(tmp_path / "zoo")
    report = check(tmp_path / "zoo", overrides=[*SMALL, "data.channels=3"])
    found = topics(report)
    readable = len(zoo.LOADED) + 1
    assert found["pictures"] == [f"{readable} readable, kept as 32 x 32 x 3 uint16"]
    assert found["skipped"][0] == str(len(zoo.SKIPPED) + len(zoo.ODD_FILES))
    for part in ("JPEG", "PNG", "TIFF", "GIF 1", "WEBP 1"):
        assert part in found["formats"][0]
    for part in ("RGB", "CMYK 2", "16-bit RGB", "I;16", "4 x 16-bit 1", "1 1"):
        assert part in found["modes"][0]
    assert "longest side 20,000" in report
    assert found["several"][0].startswith("4 files")
    assert "\x1b" not in report


def test_every_skipped_file_is_in_the_list(tmp_path: Path) -> None:
    zoo.build(tmp_path / "zoo")
    listed = tmp_path / "found.csv"
    check(tmp_path / "zoo", overrides=[*SMALL, "data.channels=3"], listed=listed)
    rows = read_csv(listed)
    skipped = {Path(r["path"]).name for r in rows if r["problem"] == "skipped"}
    assert skipped == {*zoo.SKIPPED, *zoo.ODD_FILES}


def test_no_list_is_promised_that_is_not_written(
    picture_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    data = picture_folder(per_class=3)
    shutil.copy(data / "dark" / "000.png", data / "copy.png")
    (data / "broken.png").touch()
    found = topics(check(data, overrides=SMALL))
    assert (found["copies"][0], found["skipped"][0]) == ("1 exact, in 1 groups", "1")
    assert ".csv" not in caplog.text


def test_near_copies_are_found_and_others_are_not(tmp_path: Path) -> None:
    for seed in range(60):
        picture(tmp_path / "data" / f"{seed:02}.png", seed)
    with Image.open(tmp_path / "data" / "07.png") as image:
        image.save(tmp_path / "data" / "again.jpg", quality=60)
        image.resize((40, 40)).save(tmp_path / "data" / "smaller.png")
    shutil.copy(tmp_path / "data" / "09.png", tmp_path / "data" / "exact.png")
    for colour in ("black", "white", "red"):  # of one value, and alike in nothing else
        Image.new("RGB", (60, 60), colour).save(tmp_path / "data" / f"{colour}.png")
    found = topics(check(tmp_path / "data", overrides=SMALL))
    assert found["copies"][0] == "1 exact, in 1 groups"
    assert found["near"][0].startswith("1 groups")
    assert [Path(p).name for p in found["near"][1].split()] == [
        "07.png",
        "again.jpg",
        "smaller.png",
    ]


def test_labels_that_contradict_and_leak(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number, name in enumerate(("cat", "dog")):
            for copy in range(3):
                seed = 10 * copy + 100 * number + 1000 * (part == "test")
                picture(tmp_path / "data" / part / name / f"{copy}.png", seed)
    data = tmp_path / "data"
    shutil.copy(data / "train" / "cat" / "0.png", data / "test" / "cat" / "leak.png")
    picture(data / "train" / "dog" / "wrong.jpg", 10, quality=70)  # cat/1.png
    found = topics(check(overrides=SMALL, labels=data))
    assert found["labels"][0] == "14 pictures of 2 classes"
    assert "7 train, 7 test" in " ".join(found["labels"])
    assert found["conflicts"][0].startswith("1 groups")
    assert "dog/wrong.jpg" in found["conflicts"][1]
    assert found["leaks"][0].startswith("1 groups")
    assert "test/cat/leak.png" in found["leaks"][1]


def test_labels_in_a_csv_beside_other_pictures(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder(per_class=4)
    rows = [f"{p},{p.parent.name}" for p in sorted(data.rglob("*.png"))[:6]]
    (tmp_path / "labels.csv").write_text("path,label\n" + "\n".join(rows))
    found = topics(check(data, overrides=SMALL, labels=tmp_path / "labels.csv"))
    assert found["pictures"][0].startswith("8 readable")
    assert found["labels"][0] == "6 pictures of 2 classes"
    assert "leaks" not in found


def test_blank_and_constant_pictures(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    picture(tmp_path / "data" / "good.png", 1)
    Image.new("RGB", (40, 40), "gray").save(tmp_path / "data" / "constant.png")
    faint = np.full((40, 40, 3), 100, np.uint8)
    faint[:20] += 2
    Image.fromarray(faint).save(tmp_path / "data" / "faint.png")
    found = topics(check(tmp_path / "data", overrides=SMALL))
    assert found["blank"][0] == "1 of one value, 1 with next to no contrast"
    assert [Path(p).name for p in found["blank"][1:]] == ["constant.png", "faint.png"]


def test_sixteen_bits_of_which_a_sensor_uses_twelve_are_not_blank() -> None:
    rows = np.random.default_rng(0).integers(0, 4096, (4, 20, 20, 1)).astype(np.uint16) // 2 + 1000
    rows[1] = rows[1] // 100 + 2000
    assert blank(rows) == ([], [1])


@pytest.mark.parametrize(("white", "told"), [(4095, True), (65535, False)])
def test_sixteen_bits_that_are_shown_dark_are_told(white: int, told: bool, tmp_path: Path) -> None:
    for number in range(2):
        values = np.random.default_rng(number).integers(0, white, (32, 32)).astype(np.uint16)
        values[:8] = white
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    found = topics(check(tmp_path, overrides=SMALL))
    assert ("largest" in found) == told
    if told:
        assert found["largest"][0].startswith("4,095 of 65,535")


@pytest.mark.parametrize("count", [1, 2])
def test_few_and_equal_pictures_are_told_too(count: int, tmp_path: Path) -> None:
    for number in range(count):
        picture(tmp_path / "data" / f"{number}.png", 1)
    assert f"{count} readable" in check(tmp_path / "data", overrides=SMALL)
    with pytest.raises(UsageError, match="no pictures given"):
        check([])


def headers(count: int, **changes: Any) -> Survey:
    found = Survey()
    plain: dict[str, Any] = {
        "format": "PNG", "mode": "RGB", "width": 300, "height": 300, "deep": False, "gray": False,
        "channels": 3, "frames": False,
    }  # fmt: skip
    for _ in range(count):
        found.add(Header(**plain | changes))
    return found


@pytest.mark.parametrize(
    ("changes", "recipe", "settings", "reason"),
    [
        ({}, "adapt", [], "few to start from random weights"),
        ({"width": 32, "height": 32}, "resnet18-small", [], "32 pixels or less"),
        ({"deep": True}, "mobilenetv3-small", [], "16 bits a channel"),
        ({"channels": 4}, "mobilenetv3-small", ["data.channels=4"], "4 channels"),
        ({"width": 900}, "adapt", ["data.resize=pad"], "cut their ends off"),
    ],
)
def test_a_recipe_is_suggested_with_reasons(
    changes: dict[str, Any], recipe: str, settings: list[str], reason: str
) -> None:
    found = advise(headers(10, **changes), 10, gray=False)
    assert (found.recipe, found.settings) == (recipe, settings)
    assert reason in " ".join(found.reasons)
    assert "10 pictures are few" in " ".join(found.reasons)
    assert "are few" not in " ".join(advise(headers(10, **changes), 1000, gray=False).reasons)


def test_few_files_of_sixteen_bits_that_make_all_so_are_told() -> None:
    found = headers(99)
    found.add(Header("PNG", "16-bit RGB", 300, 300, True, False, 3, False))
    told = advise(found, 100, gray=False)
    assert told.recipe == "adapt"
    assert "16 bits: 1 of 100 files has them" in " ".join(told.reasons)
    plain = headers(9)
    plain.add(Header("TIFF", "4 x 16-bit", 300, 300, True, False, 4, False))  # is skipped
    assert "16 bits:" not in " ".join(advise(plain, 9, gray=False).reasons)


def test_gray_pictures_get_views_without_hue() -> None:
    found = advise(headers(1000, gray=True, channels=1), 1000, gray=True)
    assert found.command("pictures") == (
        "tinyssl pretrain pictures --recipe adapt augment.preset=industrial"
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_likeness_of_arrays(dtype: Any) -> None:
    scale = np.iinfo(dtype).max // 255
    rows = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 2)).astype(dtype) * dtype(scale)
    rows[4] = rows[1]
    rows[5] = 7
    assert near_copies(rows, list("abcdef")) == [[1, 4]]
    assert near_copies(rows, list("abcdea")) == [[0, 5], [1, 4]]
    assert blank(rows) == ([5], [])


def test_inputs_and_files_of_others_stay(picture_folder: Folder, tmp_path: Path) -> None:
    data, labels, mine = picture_folder(), tmp_path / "labels.csv", tmp_path / "mine.csv"
    pictures = sorted(data.rglob("*.png"))
    labels.write_text("path,label\n" + "".join(f"{p},{p.parent.name}\n" for p in pictures))
    mine.write_text("a,b\n")
    elsewhere = Path(shutil.copy(pictures[0], tmp_path / "holiday.png"))
    before = {path: path.read_bytes() for path in (labels, mine, pictures[0], elsewhere)}
    augments = ({"augment": pictures[0]}, {"augment": elsewhere})
    for wrong in ({"listed": labels}, {"listed": mine}, *augments):
        with pytest.raises(UsageError, match="name another file"):
            check(data, overrides=SMALL, labels=labels, **wrong)
    assert {path: path.read_bytes() for path in before} == before
    for _ in range(2):  # its own may be replaced
        check(data, overrides=SMALL, listed=tmp_path / "found.csv", augment=tmp_path / "views.png")
