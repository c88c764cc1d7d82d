"""Which pictures a run is made from: those at its sources, less those held out."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyssl import own_pictures as module
from tinyssl.config import load_recipe
from tinyssl.errors import UsageError
from tinyssl.evaluation import evaluate
from tinyssl.own_pictures import copies, held_out, holdout_of, own_pictures
from tinyssl.pretraining import pretrain
from tinyssl.sources import find_files

Folder = Callable[..., Path]

QUICK = [
    "data.image_size=32", "augment.view_size=32", "head.hidden=16", "head.width=8",
    "optim.batch_size=6",
]  # fmt: skip


def split_csv(path: Path, data: Path, tested: Callable[[int], bool]) -> Path:
    """A labels.csv in which pictures are test pictures by their number in their class."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for picture in sorted(data.rglob("*.png")):
            split = "test" if tested(int(picture.stem)) else "train"
            writer.writerow([picture, picture.parent.name, split])
    return path


def test_sources_are_read_from_either_kind(tmp_path: Path, picture_folder: Folder) -> None:
    data = picture_folder(per_class=2)
    sources = f"data: {{sources: [{data / 'dark'}, {data / 'bright'}]}}"
    for text in (sources, f"task: finetune\n{sources}"):
        (tmp_path / "recipe.yaml").write_text(text)
        assert own_pictures(tmp_path) == sorted(data.rglob("*.png"))
    for text in ("optim: {lr: 1}", "data: [1]", "data: {sources: []}"):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(UsageError, match="names no pictures"):
            own_pictures(tmp_path)


def test_a_run_called_like_a_recipe_is_still_a_run(
    tmp_path: Path, picture_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = picture_folder(per_class=2), tmp_path / "mobilenetv3-small"
    run.mkdir()
    text = f"data: {{sources: [{data}], holdout: a.csv}}"
    (run / "recipe.yaml").write_text(text)
    (run / "held_out.csv").write_text(f"path\n{data / 'dark' / '000.png'}\n")
    monkeypatch.chdir(tmp_path)
    assert len(own_pictures(run.name)) == 3
    assert holdout_of(run.name) == "a.csv"


def test_pictures_of_a_list_that_are_gone_are_told(tmp_path: Path, picture_folder: Folder) -> None:
    data, listed = picture_folder(per_class=9), tmp_path / "list.txt"
    labels = split_csv(tmp_path / "labels.csv", data, lambda number: number < 3)
    listed.write_text("".join(f"{path}\n" for path in sorted(data.rglob("*.png"))))
    run = pretrain(listed, out=tmp_path / "run", overrides=QUICK, epochs=1)
    assert evaluate(run, labels=labels)["pretrained_on"] == 6
    listed.write_text(listed.read_text().replace(str(data), "/moved"))
    with pytest.raises(UsageError, match=r"pictures of .*run are gone, first /moved/bright/000"):
        own_pictures(run)
    assert "pretrained_on" not in evaluate(run, labels=labels)  # not known, rather than 0


def test_a_test_picture_and_links_to_it_are_one(
    picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = picture_folder(per_class=3)
    labels = split_csv(tmp_path / "labels.csv", data, lambda number: number == 0)
    for path in sorted(data.rglob("000.png")):
        path.with_name("link.png").symlink_to(path)
    overrides = [f"data.sources=[{data}]", f"data.holdout={labels}"]
    with caplog.at_level("INFO"):
        files = find_files(load_recipe("mobilenetv3-small", overrides))
    assert len(files) == 4
    assert f"2 of the 2 test pictures of {labels} are here and left out" in caplog.text


def test_test_pictures_of_labels_are_held_out(
    picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = picture_folder(per_class=9)
    labels = split_csv(tmp_path / "labels.csv", data, lambda number: number % 3 == 0)
    with caplog.at_level("INFO"):
        run = pretrain(data, out=tmp_path / "run", overrides=QUICK, holdout=labels, epochs=1)
    assert f"6 of the 6 test pictures of {labels} are here and left out" in caplog.text
    assert "12 pictures, 32 x 32" in caplog.text
    assert own_pictures(run) == [p for p in sorted(data.rglob("*.png")) if int(p.stem) % 3]
    assert evaluate(run, labels=labels)["pretrained_on"] == 0


def test_test_folders_are_held_out(picture_folder: Folder, tmp_path: Path) -> None:
    for part, count in (("train", 3), ("test", 2)):
        picture_folder(f"set/{part}", per_class=count)
    assert held_out(tmp_path / "set") == sorted((tmp_path / "set" / "test").rglob("*.png"))


def test_what_was_held_out_stays_what_it_was(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder(per_class=9)
    labels = split_csv(tmp_path / "labels.csv", data, lambda number: number < 3)
    run = pretrain(data, out=tmp_path / "run", overrides=QUICK, holdout=labels, epochs=1)
    split_csv(labels, data, lambda number: number >= 6)
    assert evaluate(run, labels=labels)["pretrained_on"] == 6
    (run / "held_out.csv").unlink()
    assert "pretrained_on" not in evaluate(run, labels=labels)


def test_links_to_test_pictures_are_held_out(picture_folder: Folder, tmp_path: Path) -> None:
    data, linked = picture_folder(per_class=9), tmp_path / "linked"
    linked.symlink_to(data)
    labels = split_csv(tmp_path / "labels.csv", data, lambda number: number < 3)
    run = pretrain(linked, out=tmp_path / "run", overrides=QUICK, holdout=labels, epochs=1)
    assert own_pictures(run) == [p for p in sorted(linked.glob("*/*.png")) if int(p.stem) >= 3]
    assert evaluate(run, labels=labels)["pretrained_on"] == 0
    whole = pretrain(linked, out=tmp_path / "whole", overrides=QUICK, epochs=1)
    assert evaluate(whole, labels=labels)["pretrained_on"] == 6


@pytest.mark.parametrize("name", ["2024", "null", "[a].csv", "a: b's #1.csv"])
def test_labels_of_any_name_say_what_is_held_out(
    name: str, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture_folder(per_class=4)
    monkeypatch.chdir(tmp_path)
    labels = split_csv(tmp_path / name, data, lambda number: number < 1)
    run = pretrain(data, out="run", overrides=QUICK, holdout=name, epochs=1)
    assert len(own_pictures(run)) == 6
    assert labels == Path(load_recipe(run).data.holdout or "")


def test_no_labels_hold_nothing_out(picture_folder: Folder, tmp_path: Path) -> None:
    data, out = picture_folder(), tmp_path / "run"
    with pytest.raises(UsageError, match=r"data\.holdout"):
        pretrain(data, out=out, overrides=QUICK, holdout="", epochs=1)  # of a variable not set
    pretrain(data, out=out, overrides=QUICK, holdout=None, epochs=1)
    assert not (out / "held_out.csv").exists()


def test_a_run_with_pictures_held_out_goes_on(picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder(per_class=9)
    labels = split_csv(tmp_path / "labels.csv", data, lambda number: number < 3)
    run = pretrain(data, out=tmp_path / "run", overrides=QUICK, holdout=labels, epochs=1)
    (run / "encoder.safetensors").unlink()
    labels.unlink()  # only what it said then counts
    assert pretrain(out=run, resume=True) == run
    assert (run / "encoder.safetensors").exists()


def test_what_cannot_be_held_out_is_told(
    picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, other, out = picture_folder("one"), picture_folder("two", side=41), tmp_path / "run"
    tested = split_csv(tmp_path / "tested.csv", other, lambda number: True)
    for pictures, labels, told in (
        (data, other, "two tells no test pictures, so nothing can be held out"),
        (data, tmp_path / "none.csv", r"none\.csv"),
        (other, tested, r"all pictures given are test pictures of .*tested\.csv"),
    ):
        with pytest.raises(UsageError, match=told):
            pretrain(pictures, out=out, overrides=QUICK, holdout=labels, epochs=1)
        assert not out.exists()
    pretrain(data, out=out, overrides=QUICK, holdout=tested, epochs=1)
    assert f"0 of the 16 test pictures of {tested} are here and left out" in caplog.text


def test_exact_copies_of_test_pictures_are_held_out(
    picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = picture_folder(per_class=9)
    labels = split_csv(tmp_path / "labels.csv", data, lambda number: number < 3)
    copy = data / "again.png"
    shutil.copy(next(data.rglob("0*.png")), copy)
    with caplog.at_level("INFO"):
        run = pretrain(data, out=tmp_path / "run", overrides=QUICK, holdout=labels, epochs=1)
    assert "are here and left out, with their exact copies (1)" in caplog.text
    assert copy not in own_pictures(run)
    assert evaluate(run, labels=labels)["pretrained_on"] == 0


def test_a_copy_of_a_test_picture_counts_as_pretrained_on(
    picture_folder: Folder, tmp_path: Path
) -> None:
    data, others = picture_folder(per_class=9), tmp_path / "others"
    labels = split_csv(tmp_path / "labels.csv", data, lambda number: number < 3)
    shutil.copytree(data, others)
    run = pretrain(others, out=tmp_path / "run", overrides=QUICK, epochs=1)
    assert evaluate(run, labels=labels)["pretrained_on"] == 6


def test_what_an_earlier_run_was_pretrained_on_counts(
    picture_folder: Folder, tmp_path: Path
) -> None:
    data, others = picture_folder(per_class=9), picture_folder("others", per_class=5)
    labels = split_csv(tmp_path / "labels.csv", data, lambda number: number < 3)
    first = pretrain(data, out=tmp_path / "first", overrides=QUICK, epochs=1)
    start = [*QUICK, f"encoder.init={first}"]
    run = pretrain(others, out=tmp_path / "run", overrides=start, epochs=1)
    assert evaluate(run, labels=labels)["pretrained_on"] == 6
    shutil.rmtree(first)
    assert evaluate(run, labels=labels)["pretrained_on"] == 0


def test_copies_are_sought_among_files_of_a_common_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"found": "abc", "other": "xyz", "long": "abcdef", "original": "abc", "huge": "a" * 99}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    found, other, long, original, huge = (tmp_path / name for name in texts)
    whole, read = module.sha256, []

    def digest(path: Path) -> str:
        read.append(path)
        if path == other:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(module, "sha256", digest)
    gone = tmp_path / "gone"
    assert copies([found, other, long, gone], [original, huge]) == [found]
    assert set(read) == {found, other, original}
