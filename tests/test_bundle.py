"""The bundle's folder: what --overwrite replaces, and what it never touches."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tinyssl.export import bundle as writing
from tinyssl.export.bundle import refuse_if_used, write_bundle

from tinyssl.errors import UsageError


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A bundle, as far as writing goes."""
    write_bundle(tmp_path / "bundle", {"encoder.onnx": b"first"}, b"golden", {}, {})
    return tmp_path / "bundle"


def replace(out: Path) -> None:
    write_bundle(out, {"a.onnx": b"second"}, b"golden", {}, {}, overwrite=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rewrite(out: Path, **changes: Any) -> None:
    path = out / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "manifest",
    [
        '{"name": "My app", "icons": [], "start_url": "."}',
        '{"format": 1, "files": {"main.js": "/static/main.js"}}',
        '{"format": 1, "files": {}}',
        '{"format": "1", "files": {"golden.npz": {"sha256": ""}}}',
        '{"format": 1, "files": {"golden.npz": "x"}}',
        "[]",
        "{",
        "[" * 100_000,
    ],
)
def test_a_folder_with_another_manifest_is_kept(manifest: str, tmp_path: Path) -> None:
    app = tmp_path / "app"
    (app / "src").mkdir(parents=True)
    (app / "manifest.json").write_text(manifest)
    (app / "src" / "main.js").write_text("//")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"holds no bundle: its manifest\.json is damaged or none"):
        replace(app)
    assert contents(tmp_path) == before


def test_a_place_without_the_right_to_write_is_told_before_the_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root may write everywhere")
    with pytest.raises(UsageError, match="nothing can be written to"):
        refuse_if_used(tmp_path / "a" / "bundle", overwrite=False)


@pytest.mark.parametrize("below", ["bundle", "a/bundle"])
def test_a_place_below_a_file_is_told_before_the_work(below: str, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(UsageError, match=f"{file} is no folder"):
        refuse_if_used(file / below, overwrite=False)


@pytest.mark.parametrize("name", ["notes.txt", "src/main.js", ".git/config", "a.onnx"])
def test_a_bundle_with_a_file_of_the_users_is_kept(name: str, out: Path) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("mine")
    before = contents(out.parent)
    first = name.partition("/")[0]
    with pytest.raises(UsageError, match=f"holds {first}, which no export wrote; move it, or"):
        refuse_if_used(out, overwrite=True)
    with pytest.raises(UsageError, match="which no export wrote"):
        replace(out)
    assert contents(out.parent) == before


@pytest.mark.parametrize("version", [0, 1, 9])
def test_bundles_of_any_version_are_replaced_with_what_was_made_there(
    version: int, out: Path
) -> None:
    rewrite(out, format=version)
    (out / "__pycache__").mkdir()
    for name in (
        "encoder.engine", "encoder.engine.json", "benchmark.json", "benchmark.csv",
        "__pycache__/runtime.cpython-311.pyc", ".encoder.engine.tmp", ".benchmark.csv.x1.tmp",
    ):  # fmt: skip
        (out / name).write_text("made there")
    replace(out)
    assert set(contents(out)) == {"a.onnx", "golden.npz", "manifest.json", "runtime.py"}
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_a_damaged_bundle_is_replaced(out: Path) -> None:
    (out / "encoder.onnx").unlink()
    (out / "runtime.py").write_text("")
    replace(out)
    assert (out / "a.onnx").read_bytes() == b"second"


def test_what_comes_at_the_last_moment_is_kept_beside(
    out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def late(folder: Path, overwrite: bool) -> None:
        refuse_if_used(folder, overwrite)
        (folder / "notes.txt").write_text("mine")

    monkeypatch.setattr(writing, "refuse_if_used", late)
    replace(out)
    assert (out / "a.onnx").read_bytes() == b"second"
    (aside,) = out.parent.glob(".bundle.*.old")
    assert contents(aside) == {"notes.txt": b"mine"}
    assert f"{aside} is the bundle that was replaced" in caplog.text


def test_ctrl_c_between_the_two_moves_brings_the_old_one_back(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = contents(out), Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if target == out and path.suffix != ".old":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(out)
    assert contents(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["bundle"]


def test_a_link_stays_and_the_bundle_that_it_leads_to_is_replaced(out: Path) -> None:
    link = out.with_name("latest")
    link.symlink_to(out.name)
    replace(link)
    assert link.is_symlink()
    assert (out / "a.onnx").read_bytes() == b"second"
    assert {path.name for path in out.parent.iterdir()} == {"bundle", "latest"}


def test_a_link_to_an_empty_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "bundle").symlink_to("disk")
    write_bundle(tmp_path / "bundle", {"encoder.onnx": b"first"}, b"golden", {}, {})
    assert (tmp_path / "bundle").is_symlink()
    assert (tmp_path / "disk" / "encoder.onnx").read_bytes() == b"first"


@pytest.mark.parametrize("kind", ["file", "link to nothing", "link to itself", "pipe"])
def test_what_is_no_folder_is_kept(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "pipe":
        os.mkfifo(out)
    else:
        out.symlink_to("out" if kind == "link to itself" else "nothing")
    before = out.lstat()
    told = {"file": "file", "pipe": "device"}.get(kind, "link to no folder")
    for call in (lambda: refuse_if_used(out, overwrite=True), lambda: replace(out)):
        with pytest.raises(UsageError, match=f"out is a {told}; name a new folder"):
            call()
    assert out.lstat() == before
    assert list(tmp_path.iterdir()) == [out]
