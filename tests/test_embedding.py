"""Features of many pictures in a file: the same from run and bundle, resumed, nothing lost."""

import csv
import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tinyssl.export.exporting import export

import tinyssl
from tests.making import untrained_run
from tinyssl import embedding
from tinyssl.cli import main
from tinyssl.data import load_pictures
from tinyssl.embedding import embed
from tinyssl.errors import Interrupted, JobError, UsageError
from tinyssl.extraction import Extractor, open_extractor
from tinyssl.scanning import scan

Folder = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return untrained_run(tmp_path / "run")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "CHUNK", 4)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of pictures that the encoder was given, call by call."""
    calls: list[int] = []
    real = embedding._embed

    def count(extractor: object, batch: range, read: object) -> object:
        calls.append(len(batch))
        return real(extractor, batch, read)  # type: ignore[arg-type]

    monkeypatch.setattr(embedding, "_embed", count)
    return calls


def test_notes_in_the_list_of_skipped_pictures_are_kept(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data, listed = picture_folder(per_class=2), tmp_path / "f.npz.skipped.csv"
    listed.write_text("path,reason,note\n")
    with pytest.raises(UsageError, match=r"f\.npz\.skipped\.csv is there and would be lost"):
        embed(run, data, tmp_path / "f.npz")
    listed.write_text("path,reason\n")
    embed(run, data, tmp_path / "f.npz")
    assert not listed.exists()  # nothing was skipped


def test_what_a_killed_job_left_half_written_is_removed(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    for name in (".f.npz.abcd1234.tmp", ".g.npz.abcd1234.tmp", "f.npz.tmp"):
        (tmp_path / name).touch()
    embed(run, picture_folder(per_class=2), tmp_path / "f.npz")
    assert sorted(p.name for p in tmp_path.glob("*.tmp")) == [".g.npz.abcd1234.tmp", "f.npz.tmp"]


def test_a_pool_of_processes_can_hand_on_what_was_done(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    done = embed(run, picture_folder(per_class=2), tmp_path / "f.npz")
    found = pickle.loads(pickle.dumps(done))
    assert (found.out, found.pictures) == (done.out, 4)
    np.testing.assert_array_equal(found.read().features, done.read().features)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("suffix", [".parquet", ".npz", ".csv"])
def test_features_are_those_of_the_model(
    suffix: str, run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    data, out = picture_folder(per_class=7), tmp_path / f"f{suffix}"
    embedded = tinyssl.embed(run, data, out, batch_size=3)
    assert (embedded.out, embedded.pictures, embedded.skipped) == (out, 14, 0)
    found = embedded.read()
    assert found.paths == sorted(str(p) for p in data.rglob("*.png"))
    expected = tinyssl.load(run).embed(found.paths)
    np.testing.assert_allclose(found.features, expected, atol=1e-5)
    assert len(set(found.digests)) == 14
    assert {p.name for p in tmp_path.iterdir()} == {"run", "pictures", out.name}


def test_raw_and_float16(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data = picture_folder(per_class=2)
    raw = embed(run, data, tmp_path / "raw.npz", raw=True).read()
    np.testing.assert_allclose(
        raw.features, tinyssl.load(run).embed(raw.paths, raw=True), rtol=1e-4
    )
    half = embed(run, data, tmp_path / "half.npz", dtype="float16").read().features
    assert half.dtype == np.float16
    unit = raw.features / np.linalg.norm(raw.features, axis=1, keepdims=True)
    np.testing.assert_allclose(half, unit, atol=1e-3)


def test_a_bundle_gives_the_same(
    run: Path, picture_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = picture_folder(per_class=4)
    deep = np.random.default_rng(0).integers(0, 65536, (40, 50)).astype(np.uint16)
    Image.fromarray(deep).save(data / "deep.png")
    bundle = export(run, out=tmp_path / "bundle", pictures=data, raw_features=True).out
    for raw in (False, True):
        ours = embed(run, data, tmp_path / f"run-{raw}.npz", raw=raw, batch_size=5).read()
        theirs = embed(bundle, data, tmp_path / f"bundle-{raw}.npz", raw=raw).read()
        assert (ours.paths, ours.digests) == (theirs.paths, theirs.digests)
        assert np.abs(ours.features - theirs.features).max() < 1e-4
        assert np.ptp(ours.features, axis=0).max() > 1e-2  # pictures differ by much more than that
        lengths = np.linalg.norm(theirs.features, axis=1)
        assert raw != np.allclose(lengths, 1, rtol=1e-5)
    main(["select", str(bundle), str(data), "--budget", "2", "--out", str(tmp_path / "l.csv")])
    assert "tinyssl finetune RUN --labels" in capsys.readouterr().out  # it takes no bundle
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["features"]["normalized"] = True
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="export with --raw-features"):
        embed(bundle, data, tmp_path / "x.npz", raw=True)


@pytest.mark.usefixtures("small_chunks")
def test_unreadable_pictures_are_listed(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data, out = picture_folder(per_class=5), tmp_path / "f.npz"
    for number in range(5):  # more than a whole chunk of them
        (data / f"a{number}.png").write_text("no picture")
    (data / "dark" / "empty.png").touch()
    embedded = embed(run, data, out)
    assert (embedded.pictures, embedded.skipped) == (10, 6)
    listed = (tmp_path / "f.npz.skipped.csv").read_text(encoding="utf-8")
    rows = list(csv.reader(listed.splitlines()))
    assert rows[0] == ["path", "reason"]
    assert [str(data / "dark" / "empty.png"), "empty file"] in rows
    assert len(rows) == 7
    assert embedded.read().features.shape == (10, 96)
    again = embed(run, data, out)
    assert (again.pictures, again.skipped) == (10, 6)
    for path, _ in rows[1:]:
        Path(path).unlink()
    embed(run, data, out, overwrite=True)
    assert not (tmp_path / "f.npz.skipped.csv").exists()


def test_pictures_that_a_run_left_decoded_are_not_decoded_again(
    run: Path, picture_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture_folder(per_class=5)
    (data / "dark" / "empty.png").touch()
    plain = embed(run, data, tmp_path / "plain.npz")
    load_pictures(scan([data]), size=32, rule="crop")
    with monkeypatch.context() as context:
        context.setattr(Extractor, "read", None)  # whoever reads a file fails
        cached = embed(run, data, tmp_path / "cached.npz")
    assert (cached.pictures, cached.skipped) == (10, 1)
    wanted, found = plain.read(), cached.read()
    assert (found.paths, found.digests) == (wanted.paths, wanted.digests)
    assert np.array_equal(found.features, wanted.features)
    skipped = [(tmp_path / f"{name}.npz.skipped.csv").read_text() for name in ("plain", "cached")]
    assert skipped[0] == skipped[1]
    Image.new("RGB", (40, 40), "white").save(data / "dark" / "000.png")
    changed = embed(run, data, tmp_path / "changed.npz").read()
    row = changed.paths.index(str(data / "dark" / "000.png"))
    assert changed.digests[row] not in plain.read().digests
    assert not np.allclose(changed.features[row], plain.read().features[row], atol=1e-3)


@pytest.mark.parametrize("place", ["data", "out"])
def test_addresses_are_for_the_other_engine(place: str, run: Path, tmp_path: Path) -> None:
    given = {"data": tmp_path / "run", "out": tmp_path / "f.npz"} | {place: "s3://pictures/new"}
    with pytest.raises(UsageError, match="s3://pictures/new is an address: give --engine ray"):
        embed(run, **given)


def test_nothing_readable_ends_it(run: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(JobError, match=r"none of the 1 pictures can be read; .*: empty file"):
        embed(run, tmp_path / "a.png", tmp_path / "f.npz")
    assert {p.name for p in tmp_path.iterdir()} == {"run", "a.png"}


@pytest.mark.usefixtures("small_chunks")
def test_a_killed_job_goes_on(
    run: Path,
    picture_folder: Folder,
    tmp_path: Path,
    counted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, out = picture_folder(per_class=7), tmp_path / "f.npz"
    whole = embed(run, data, tmp_path / "whole.npz").read()
    write = embedding._write_part

    def killed(path: Path, *rest: object) -> None:
        if path.name == "000000008.npz":
            raise SystemError("killed")
        write(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(embedding, "_write_part", killed)
    with pytest.raises(SystemError):
        embed(run, data, out)
    assert not out.exists()
    monkeypatch.setattr(embedding, "_write_part", write)
    counted.clear()
    resumed = embed(run, data, out).read()
    assert sum(counted) == 14 - 8
    assert resumed.paths == whole.paths
    np.testing.assert_array_equal(resumed.features, whole.features)
    assert not (tmp_path / "f.npz.parts").exists()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("change", ["encoder", "list", "picture", "option"])
def test_a_change_starts_afresh(
    change: str,
    run: Path,
    picture_folder: Folder,
    tmp_path: Path,
    counted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, out = picture_folder(per_class=4), tmp_path / "f.npz"
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "write_features", _fail)
        with pytest.raises(SystemError):
            embed(run, data, out)
    counted.clear()
    options = {}
    if change == "encoder":
        shutil.rmtree(run)
        untrained_run(run, seed=1)
    elif change == "list":
        (data / "dark" / "000.png").unlink()
    elif change == "picture":
        shutil.copy(data / "dark" / "001.png", data / "dark" / "000.png")
    else:
        options = {"raw": True}
    embedded = embed(run, data, out, **options)
    assert sum(counted) == (7 if change == "list" else 8)
    fresh = embed(run, data, tmp_path / "fresh.npz", **options).read()
    np.testing.assert_array_equal(embedded.read().features, fresh.features)


def _fail(*given: object) -> None:
    raise SystemError("killed")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_finished_chunks(
    signum: int,
    run: Path,
    picture_folder: Folder,
    tmp_path: Path,
    counted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, out = picture_folder(per_class=5), tmp_path / "f.npz"
    real = embedding._batches

    def signalling(chunk: range, size: int) -> list[range]:
        if chunk.start == 4:
            os.kill(os.getpid(), signum)
            time.sleep(0.05)
        return real(chunk, size)

    monkeypatch.setattr(embedding, "_batches", signalling)
    with pytest.raises(Interrupted, match=r"4 of 10 pictures are kept .* goes on") as stop:
        embed(run, data, out, batch_size=2)
    assert stop.value.exit_status == 128 + signum
    assert not out.exists()
    monkeypatch.setattr(embedding, "_batches", real)
    counted.clear()
    assert embed(run, data, out).pictures == 10
    assert sum(counted) == 6


def test_what_is_up_to_date_is_left(
    run: Path, picture_folder: Folder, tmp_path: Path, counted: list[int]
) -> None:
    data, out = picture_folder(per_class=2), tmp_path / "f.parquet"
    embed(run, data, out)
    before = out.stat()
    counted.clear()
    assert embed(run, data, out).pictures == 4
    assert not counted
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(UsageError, match=r"another encoder\); name another file, or give --over"):
        embed(run, data, out, raw=True)
    embed(run, data, out, raw=True, overwrite=True)
    assert counted == [4]


def test_other_files_are_not_touched(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data, labels = picture_folder(per_class=2), tmp_path / "labels.csv"
    labels.write_text("path,label\n")
    with pytest.raises(UsageError, match=r"exists and a \.csv cannot say which features it holds;"):
        embed(run, data, labels)
    listed = tmp_path / "list.csv"
    listed.write_text("".join(f"{path}\n" for path in data.rglob("*.png")))
    with pytest.raises(UsageError, match="is read here and would be lost"):
        embed(run, listed, listed, overwrite=True)
    parts = tmp_path / "f.npz.parts"
    parts.mkdir()
    (parts / "mine.txt").write_text("precious")
    with pytest.raises(UsageError, match="not of tinyssl"):
        embed(run, data, tmp_path / "f.npz")
    assert labels.read_text() == "path,label\n"
    assert (parts / "mine.txt").read_text() == "precious"


def test_wrong_use(run: Path, picture_folder: Folder, tmp_path: Path) -> None:
    data, out = picture_folder(per_class=2), tmp_path / "f.npz"
    with pytest.raises(UsageError, match="allowed are float32, float16"):
        embed(run, data, out, dtype="int8")
    with pytest.raises(UsageError, match="batch_size: got 0"):
        embed(run, data, out, batch_size=0)
    with pytest.raises(UsageError, match="workers: got -1; give 0"):
        embed(run, data, out, workers=-1)
    with pytest.raises(UsageError, match=r"name a run folder .* or a bundle"):
        embed(data, data, out)
    with pytest.raises(UsageError, match=r"nowhere"):
        embed(tmp_path / "nowhere", data, out)
    with pytest.raises(UsageError, match=r"UTF-8 only, .*use .npz or .csv"):
        embedding._refuse(Path("f.parquet"), [Path("/a/\udcff.png")], "float32", 1)
    embedding._refuse(Path("f.npz"), [Path("/a/\udcff.png")], "float32", 1)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="bundle format None"):
        open_extractor(tmp_path / "broken")
    assert not out.exists()
    assert not (tmp_path / "f.npz.parts").exists()


@pytest.mark.parametrize("device", ["cuda:1", "tensorrt"])
def test_devices_of_a_bundle(device: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    line = f"device: got '{device}'; with a bundle allowed are auto, cpu and cuda"
    with pytest.raises(UsageError, match=line):
        open_extractor(tmp_path, device=device)


def test_a_bundle_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr("tinyssl.extras.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "tinyssl\[export\]"'):
        open_extractor(tmp_path)


def test_decoding_goes_on_while_the_encoder_works(
    run: Path, picture_folder: Folder, tmp_path: Path
) -> None:
    """The next batch is read before the encoder is done with this one."""
    data = picture_folder(per_class=8)
    extractor = open_extractor(run)
    read: list[Path] = []
    seen: list[int] = []

    class Spy:
        width, reading = extractor.width, extractor.reading

        def read(self, path: Path) -> object:
            read.append(path)
            return extractor.read(path)

        def cached(self, paths: object) -> None:
            pass

        def features(self, pictures: np.ndarray) -> np.ndarray:
            end = time.monotonic() + 5
            while len(read) < min(16, 4 * (len(seen) + 2)) and time.monotonic() < end:
                time.sleep(0.01)
            seen.append(len(read))
            return extractor.features(pictures)

    paths = sorted(data.rglob("*.png"))
    folder = tmp_path / "parts"
    folder.mkdir()
    embedding._compute(Spy(), paths, folder, "float32", 4, 2)  # type: ignore[arg-type]
    assert seen[0] >= 8
    assert all(count <= 4 * (turn + 3) for turn, count in enumerate(seen))  # not the whole folder
