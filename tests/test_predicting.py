"""Predictions as a CSV: the model's own figures, in chunks, past what cannot be read."""

import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.making import read_csv, untrained_run
from tinyssl import predicting
from tinyssl.classifier import Classifier, load_classifier, save_classifier
from tinyssl.errors import Interrupted, JobError, UsageError
from tinyssl.model import load
from tinyssl.predicting import predict

Folder = Callable[..., Path]
NAMES = ["a, b", "path", "ö"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = untrained_run(tmp_path / "run", "mobilenetv3-small", seed=5, classes=NAMES)
    weight = torch.randn(3, 1024, generator=torch.Generator().manual_seed(0))
    save_classifier(Classifier(weight, torch.zeros(3), torch.tensor(0.7), NAMES), folder)
    return folder


@pytest.mark.parametrize("chunk", [3, 256])
def test_rows_are_the_probabilities_of_every_picture(
    chunk: int, run: Path, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "_CHUNK", chunk)
    data = picture_folder(per_class=4)
    done = predict(run, data, tmp_path / "p.csv")
    paths = sorted(data.rglob("*.png"))
    rows = read_csv(done.out)
    assert (done.pictures, done.skipped) == (8, [])
    assert [row["path"] for row in rows] == [str(p) for p in paths]
    classifier = load_classifier(run)
    assert classifier is not None
    features = load(run).embed(paths, raw=True)
    expected = classifier.probabilities(torch.from_numpy(features)).numpy()
    found = np.array([[float(row[f"p({name})"]) for name in NAMES] for row in rows])
    assert found == pytest.approx(expected, abs=2e-6)
    assert [row["label"] for row in rows] == [NAMES[i] for i in expected.argmax(axis=1)]
    assert [float(r["probability"]) for r in rows] == pytest.approx(expected.max(axis=1), abs=2e-6)


def test_unreadable_pictures_are_told_and_skipped(
    run: Path, picture_folder: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = picture_folder(per_class=2)
    (data / "bright" / "000.png").write_bytes(b"gone")
    (tmp_path / "list.txt").write_text(f"{data / 'dark' / '000.png'}\nmissing.png\n")
    done = predict(run, [data, tmp_path / "list.txt"], tmp_path / "p.csv")
    assert (done.pictures, len(done.skipped), len(read_csv(done.out))) == (3, 2, 3)
    assert f"skipped {data / 'bright' / '000.png'}" in caplog.text
    assert "missing.png: No such file" in caplog.text


def test_pictures_of_8_and_16_bits_gray_and_colour_go_together(run: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).convert("RGB").save(tmp_path / "b.png")
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "c.png")
    done = predict(run, [tmp_path / f"{n}.png" for n in "abc"], tmp_path / "p.csv")
    first, *others = ([float(row[f"p({n})"]) for n in NAMES] for row in read_csv(done.out))
    assert all(other == pytest.approx(first, abs=1e-3) for other in others)


def test_run_without_classifier_is_told_what_to_do(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    (run / "classifier.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has no classifier; make one with: tinyssl finetune"):
        predict(run, picture_folder(), tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_what_is_there_is_not_lost(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data, out = picture_folder(per_class=2), tmp_path / "p.csv"
    predict(run, data, out)
    before = out.read_bytes()
    with pytest.raises(UsageError, match=r"exists; name another file, or give --overwrite"):
        predict(run, data, out)
    (tmp_path / "broken.png").write_bytes(b"none")
    with pytest.raises(JobError, match=r"none of the 1 pictures can be read; first: .*broken"):
        predict(run, tmp_path / "broken.png", out, overwrite=True)
    assert out.read_bytes() == before
    with pytest.raises(UsageError, match="there is no folder"):
        predict(run, data, tmp_path / "nowhere" / "p.csv")
    assert predict(run, data / "dark", out, overwrite=True).pictures == 2


def test_a_list_that_is_read_is_not_replaced(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("".join(f"{path}\n" for path in picture_folder(per_class=2).rglob("*.png")))
    before = listed.read_text()
    with pytest.raises(UsageError, match="is read here and would be lost"):
        predict(run, listed, listed, overwrite=True)
    assert listed.read_text() == before


def test_sigterm_leaves_nothing_behind(
    run: Path, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture_folder(per_class=2)
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(predicting, "_rows", lambda *_: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match="terminated; nothing was written"):
        predict(run, data, tmp_path / "p.csv")
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_given_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no pictures given"):
        predict(run, [], tmp_path / "p.csv")
