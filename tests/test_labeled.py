"""Labels to learn from: odd ones are told, contradictory ones refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinyssl.errors import UsageError
from tinyssl.judged_encoders import has_weights_of
from tinyssl.labeled import read_labeled, shaped_by, smallest_class, used_digests

Folder = Callable[..., Path]
DESCRIPTION = {"image_size": 32, "resize": "crop", "channels": 3, "max_pixels": 10**8}


def csv_of(path: Path, data: Path, header: str = "path,label", more: str = "") -> Path:
    rows = [f"{p},{p.parent.name}{more}" for p in sorted(data.rglob("*.png"))]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_folder_and_csv_say_the_same(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder(per_class=4)
    by_folder = read_labeled(data, DESCRIPTION)
    by_csv = read_labeled(csv_of(tmp_path / "l.csv", data), DESCRIPTION)
    assert by_folder.classes == by_csv.classes == ["bright", "dark"]
    assert by_folder.paths == by_csv.paths
    assert np.array_equal(by_folder.array, by_csv.array)
    assert by_folder.array.shape == (8, 32, 32, 3)
    for path, label, picture in zip(
        by_folder.paths, by_folder.labels, by_folder.array, strict=True
    ):
        assert by_folder.classes[label] == Path(path).parent.name
        assert (picture.mean() > 127) == (Path(path).parent.name == "bright")
    assert by_folder.counts() == {"bright": 4, "dark": 4}


def test_what_was_used_reads_back(picture_folder: Folder, tmp_path: Path) -> None:
    labeled = read_labeled(picture_folder(per_class=3), DESCRIPTION)
    (tmp_path / "labels.csv").write_text(labeled.to_csv())
    again = read_labeled(tmp_path / "labels.csv", DESCRIPTION)
    assert (again.paths, again.digests) == (labeled.paths, labeled.digests)
    assert used_digests(tmp_path) == set(labeled.digests)
    assert used_digests(tmp_path / "elsewhere") == set()


def test_what_taught_a_run_taught_those_that_start_from_it(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder, init in (
        (first, "random"),
        (second, str(first)),
        (third, str(second / "encoder.safetensors")),
    ):
        folder.mkdir()
        (folder / "encoder.json").write_text(json.dumps({"init": init}))
    (second / "encoder.safetensors").touch()
    (first / "finetune.json").write_text(json.dumps({"encoder_learned": ["a", "b"]}))
    (second / "finetune.json").write_text(json.dumps({"encoder_learned": ["c"]}))
    assert [shaped_by(f) for f in (first, second, third)] == [{"a", "b"}, *2 * [{"a", "b", "c"}]]
    (first / "encoder.json").write_text(json.dumps({"init": str(third)}))  # no end
    assert shaped_by(first) == {"a", "b", "c"}
    (second / "encoder.json").write_text("[1, 2]")  # another program's
    assert shaped_by(second) == {"c"}
    assert shaped_by(second / "w.safetensors") == set()
    (second / "encoder.json").write_text(json.dumps({"init": str(first)}))
    for damaged in ("[", "null", '{"encoder_learned": null}', '{"encoder_learned": 3}'):
        (first / "finetune.json").write_text(damaged)
        with pytest.raises(UsageError, match=r"first/finetune\.json cannot be read"):
            shaped_by(third)


@pytest.mark.parametrize("name", ["random", "pretrained"])
def test_a_run_may_be_called_like_a_start(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / name
    run.mkdir()
    (run / "encoder.json").write_text(json.dumps({"init": name}))
    (run / "encoder.safetensors").touch()
    (run / "finetune.json").write_text(json.dumps({"encoder_learned": ["a"]}))
    monkeypatch.chdir(tmp_path)
    assert shaped_by(name) == {"a"}
    assert not has_weights_of(name, name)  # its start is no folder


def test_same_label_twice_counts_once(
    picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = picture_folder(per_class=3)
    shutil.copy(data / "dark" / "000.png", data / "dark" / "copy.png")
    labels = csv_of(tmp_path / "l.csv", data)
    with labels.open("a") as file:
        file.write(f"{data / 'bright' / '001.png'},bright\n")
    labeled = read_labeled(labels, DESCRIPTION)
    assert labeled.counts() == {"bright": 3, "dark": 3}
    assert len(set(labeled.digests)) == 6
    assert "2 labels say again what others said; each counts once" in caplog.text


def test_equal_pictures_with_different_labels_are_refused(picture_folder: Folder) -> None:
    data = picture_folder(per_class=3)
    shutil.copy(data / "dark" / "000.png", data / "bright" / "copy.png")
    with pytest.raises(UsageError) as caught:
        read_labeled(data, DESCRIPTION)
    told = str(caught.value)
    assert f"{data / 'bright' / 'copy.png'} is bright" in told
    assert f"{data / 'dark' / '000.png'} is dark" in told
    assert "\n" not in told


def test_missing_pictures_are_counted(picture_folder: Folder, tmp_path: Path) -> None:
    labels = csv_of(tmp_path / "l.csv", picture_folder(per_class=3))
    with labels.open("a") as file:
        file.write("gone-1.png,dark\ngone-2.png,bright\ngone-3.png,dark\n")
    with pytest.raises(UsageError, match=r"line 8: no picture 'gone-1.png'.*3 labeled pictures"):
        read_labeled(labels, DESCRIPTION)


def test_unreadable_pictures_are_refused(picture_folder: Folder) -> None:
    data = picture_folder(per_class=3)
    (data / "dark" / "001.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match=r"1 labeled pictures cannot be read; first: .*001\.png"):
        read_labeled(data, DESCRIPTION)


def test_class_without_a_picture_is_told(
    picture_folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    data = picture_folder(per_class=2)
    (data / "scratch").mkdir()
    assert read_labeled(data, DESCRIPTION).classes == ["bright", "dark"]
    assert "no picture of scratch; the classifier will not know" in caplog.text


def test_only_training_rows_of_a_split_are_used(
    picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels = csv_of(tmp_path / "l.csv", picture_folder(per_class=3), "path,label,split", ",train")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    with labels.open("a") as file:
        file.write("red.png,red,test\n")
    labeled = read_labeled(labels, DESCRIPTION)
    assert labeled.classes == ["bright", "dark"]
    assert "no training picture of red" in caplog.text


def test_one_class_is_refused(picture_folder: Folder, tmp_path: Path) -> None:
    labels = csv_of(tmp_path / "l.csv", picture_folder(per_class=3) / "dark")
    with pytest.raises(UsageError, match="labels 1 class, dark; give pictures of at least 2"):
        read_labeled(labels, DESCRIPTION)


def test_smallest_class_is_of_those_that_occur() -> None:
    assert smallest_class(np.array([0, 0, 0, 2, 2])) == 2
