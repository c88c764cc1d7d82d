"""Features by Ray: those of the plain path, whatever happens to a worker, and no torch."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from tinyssl.export.exporting import export

from tests.making import make_pictures, make_run
from tests.ray_workers import KilledAlways, KilledOnce, WithoutTorch
from tinyssl import ray_embedding as module
from tinyssl import remote_files
from tinyssl.embedding import embed
from tinyssl.errors import JobError, UsageError
from tinyssl.ray_embedding import Worker, embed_with_ray

ray = pytest.importorskip("ray", reason="the extra ray is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

# Ray leaves processes and files open behind it, and says so.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("small_chunks")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle and pictures, one of them broken."""
    folder = tmp_path_factory.mktemp("ray")
    pictures = make_pictures(folder / "pictures")
    run = make_run(folder / "run", "test_resnet")
    bundle = export(run, out=folder / "bundle", pictures=pictures).out
    (pictures / "broken.png").write_text("no picture")
    return bundle, pictures


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """This machine as a cluster of two workers, which find the tests beside the package."""
    root = str(Path(__file__).parent.parent)
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error",
        object_store_memory=100 * 2**20, runtime_env={"env_vars": {"PYTHONPATH": root}},
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 3)


def read(out: Path) -> dict[str, tuple[str, Any]]:
    rows = {}
    for part in sorted(out.glob("part-*.parquet")):
        table = parquet.ParquetFile(part).read()
        for row in table.to_pylist():
            assert row["path"] not in rows
            rows[row["path"]] = (row["digest"], row["features"])
    return rows


def assert_same(out: Path, bundle: Path, pictures: Path, plain: Path) -> None:
    expected = embed(bundle, pictures, plain).read()
    found = read(out)
    assert sorted(found) == expected.paths
    for path, digest, features in zip(
        expected.paths, expected.digests, expected.features, strict=True
    ):
        assert found[path][0] == digest
        np.testing.assert_allclose(found[path][1], features, atol=1e-6)


@pytest.mark.usefixtures("cluster")
def test_features_are_those_of_the_plain_path(
    prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, pictures = prepared
    monkeypatch.setattr(module, "Worker", WithoutTorch)
    monkeypatch.chdir(tmp_path)  # where the cluster is not
    told = embed_with_ray(bundle, pictures, "out", batch_size=2)
    assert (told.pictures, told.skipped) == (12, 1)
    assert_same(tmp_path / "out", bundle, pictures, tmp_path / "plain.npz")
    with (tmp_path / "out" / "_skipped.csv").open() as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(pictures / "broken.png")]
    monkeypatch.setattr(module, "_run", None)  # nothing is left to do
    assert embed_with_ray(bundle, pictures, tmp_path / "out") == told


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_loses_nothing(
    prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, pictures = prepared
    monkeypatch.setattr(module, "Worker", KilledOnce)
    told = embed_with_ray(bundle, pictures, tmp_path / "out", workers=2)
    assert (tmp_path / "died").exists()
    assert (told.pictures, told.skipped) == (12, 1)
    assert_same(tmp_path / "out", bundle, pictures, tmp_path / "plain.npz")


@pytest.mark.usefixtures("cluster")
def test_a_chunk_that_kills_every_worker_is_given_up(
    prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, pictures = prepared
    monkeypatch.setattr(module, "Worker", KilledAlways)
    with pytest.raises(JobError, match=r"^the workers failed \(.*finished files are kept in"):
        embed_with_ray(bundle, pictures, tmp_path / "out", workers=1)
    assert (tmp_path / "deaths").read_text() == "x" * 4


def in_this_process(chunks: Any, worker: Any, workers: int) -> None:
    """What Ray Data does with the chunks, without it."""
    made = Worker(**worker)
    for name, urls in chunks.items():
        made({"name": np.array([name]), "urls": np.array([urls], object)})


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_run", in_this_process)


@pytest.mark.usefixtures("alone")
def test_the_bundles_limit_of_pixels_holds(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(prepared[0], tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["input"]["max_pixels"] = 3100  # the pictures have 3,000 to 3,550
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    out = embed_with_ray(bundle, prepared[1], tmp_path / "out")
    plain = embed(bundle, prepared[1], tmp_path / "plain.npz")
    assert 0 < out.pictures == plain.pictures < 12
    assert_same(tmp_path / "out", bundle, prepared[1], tmp_path / "again.npz")


@pytest.mark.usefixtures("alone")
def test_a_stopped_job_goes_on(
    prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, pictures = prepared
    out = tmp_path / "out"
    whole = embed_with_ray(bundle, pictures, out)
    before = read(out)
    (out / "part-000001.parquet").unlink()
    done: list[str] = []

    def run(chunks: Any, worker: Any, workers: int) -> None:
        done.extend(chunks)
        in_this_process(chunks, worker, workers)

    monkeypatch.setattr(module, "_run", run)
    assert embed_with_ray(bundle, pictures, out) == whole
    assert done == ["part-000001.parquet"]
    assert read(out) == before


@pytest.mark.usefixtures("alone")
def test_addresses_of_a_storage(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, pictures = prepared
    memory = fsspec.filesystem("memory")
    memory.put(str(pictures), "/in", recursive=True)
    memory.pipe_file("/in/.hidden.png", b"")
    told = embed_with_ray(bundle, "memory://in", "memory://out", dtype="float16")
    assert (told.pictures, told.skipped) == (12, 1)
    memory.get("/out", str(tmp_path / "out"), recursive=True)
    plain = embed(bundle, pictures, tmp_path / "plain.npz").read()
    found = read(tmp_path / "out")
    assert [Path(name).name for name in sorted(found)] == [Path(name).name for name in plain.paths]
    rows = np.array([found[name][1] for name in sorted(found)])
    np.testing.assert_allclose(rows, plain.features, atol=1e-3)
    memory.pipe_file("/in/00.png", (pictures / "01.png").read_bytes())
    with pytest.raises(UsageError, match=r"memory://out is not empty; .* --overwrite"):
        embed_with_ray(bundle, "memory://in", "memory://out", dtype="float16")
    embed_with_ray(bundle, "memory://in", "memory://out", dtype="float16", overwrite=True)
    memory.rm("/in", recursive=True)
    memory.rm("/out", recursive=True)
    with pytest.raises(UsageError, match="no pictures in memory://in"):
        embed_with_ray(bundle, "memory://in", "memory://out")


@pytest.mark.usefixtures("alone")
def test_a_storage_that_fails_skips_no_pictures(
    prepared: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, pictures = prepared
    memory = fsspec.filesystem("memory")
    memory.put(str(pictures), "/shaky", recursive=True)
    whole = memory.cat_file

    def fails_at(name: str, error: Exception) -> None:
        def cat_file(path: str, **named: Any) -> bytes:
            if path.endswith(name):
                raise error
            return whole(path, **named)

        monkeypatch.setattr(memory, "cat_file", cat_file)

    fails_at("05.png", ConnectionError("slow down"))
    with pytest.raises(JobError, match=r"cannot read memory://.*05\.png: slow down"):
        embed_with_ray(bundle, "memory://shaky", "memory://features")
    fails_at("05.png", PermissionError("not yours"))
    told = embed_with_ray(bundle, "memory://shaky", "memory://features")
    assert (told.pictures, told.skipped) == (11, 2)
    memory.rm("/shaky", recursive=True)
    memory.rm("/features", recursive=True)


@pytest.mark.usefixtures("alone")
def test_an_address_of_this_machine(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, pictures = prepared
    told = embed_with_ray(bundle, f"file://{pictures}", f"file://{tmp_path}/new/out")
    assert (told.pictures, told.skipped) == (12, 1)
    assert len(read(tmp_path / "new" / "out")) == 12
    part = tmp_path / "new" / "out" / "part-000001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(JobError, match=r"part-000001.parquet is damaged \(.*\); remove it"):
        embed_with_ray(bundle, f"file://{pictures}", f"file://{tmp_path}/new/out")


@pytest.mark.usefixtures("alone")
def test_overwriting_takes_its_own_files_only(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, pictures = prepared
    out = tmp_path / "out"
    embed_with_ray(bundle, pictures, out)
    (out / "part-old").mkdir()
    for name in ("part-notes.txt", "_mine.txt"):
        (out / name).write_text("mine")
    told = embed_with_ray(bundle, pictures, out, dtype="float16", overwrite=True)
    assert told.pictures == 12
    assert {(out / name).read_text() for name in ("part-notes.txt", "_mine.txt")} == {"mine"}
    assert (out / "part-old").is_dir()


def test_a_folder_that_others_do_not_see(
    prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_run", lambda *_: None)  # it wrote on another machine
    with pytest.raises(JobError, match=r"part-000000.parquet, and it is not there: --out must"):
        embed_with_ray(*prepared, tmp_path / "out")


@pytest.mark.usefixtures("alone")
def test_wrong_use(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    bundle, pictures = prepared
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=r"takes a bundle, and .* is none; make one with"):
        embed_with_ray(tmp_path, pictures, out)
    with pytest.raises(UsageError, match="dtype: got 'int8'"):
        embed_with_ray(bundle, pictures, out, dtype="int8")
    with pytest.raises(UsageError, match="allowed are cpu and cuda"):
        embed_with_ray(bundle, pictures, out, device="cuda:1")
    with pytest.raises(UsageError, match=r"cannot list nosuch://out: .*nosuch"):
        embed_with_ray(bundle, pictures, "nosuch://out")
    cut = shutil.copytree(bundle, tmp_path / "cut")
    (cut / "encoder.onnx").write_bytes(b"cut")
    with pytest.raises(UsageError, match=r"encoder.onnx is not the file that was exported"):
        embed_with_ray(cut, pictures, out)
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(UsageError, match=r"is not empty; name another folder$"):
        embed_with_ray(bundle, pictures, out, overwrite=True)
    odd = tmp_path / "odd"
    odd.mkdir()
    shutil.copy(next(pictures.rglob("*.png")), os.fsencode(odd) + b"/\xff.png")
    with pytest.raises(UsageError, match="parquet holds names in UTF-8 only"):
        embed_with_ray(bundle, odd, tmp_path / "none")
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(pictures / "broken.png", broken)
    with pytest.raises(JobError, match="none of the 1 pictures can be read"):
        embed_with_ray(bundle, broken, tmp_path / "none")


@pytest.mark.usefixtures("cluster")
def test_why_the_workers_failed_is_told(
    prepared: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, pictures = prepared
    start = module._start

    def with_a_folder_in_the_way(out: str, key: str, overwrite: bool) -> set[str]:
        done = start(out, key, overwrite)
        (Path(out) / "part-000000.parquet").mkdir()
        return done

    monkeypatch.setattr(module, "_start", with_a_folder_in_the_way)
    with pytest.raises(JobError, match=r"failed \(.*cannot write .*Is a directory\); finished"):
        embed_with_ray(bundle, pictures, tmp_path / "out", workers=1)


@pytest.mark.usefixtures("cluster")
def test_a_cluster_without_gpus(prepared: tuple[Path, Path], tmp_path: Path) -> None:
    if ray.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(UsageError, match="the cluster has no GPU; give cpu"):
        embed_with_ray(*prepared, tmp_path / "out", device="cuda")


def test_two_colons_in_a_path_are_a_name(tmp_path: Path) -> None:
    picture = tmp_path / "cam::1.png"
    picture.write_bytes(b"there")
    assert remote_files.read(str(picture)) == b"there"
