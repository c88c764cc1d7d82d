"""Files made to do harm: nothing of theirs runs or is written elsewhere, memory stays small."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from tinyssl.export import runtime

from tests.making import untrained_run
from tinyssl.checkpoint import load_checkpoint
from tinyssl.cli import main
from tinyssl.config import load_recipe
from tinyssl.encoder import create_encoder
from tinyssl.errors import UsageError
from tinyssl.feature_file import read_features
from tinyssl.labels import from_csv, write_csv
from tinyssl.opening import Unreadable
from tinyssl.picture import decode
from tinyssl.scanning import scan
from tinyssl.tensor_file import read_tensors
from tinyssl.weights import load_encoder, load_weights

Folder = Callable[..., Path]


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def files_that_run_code(mark: Path) -> dict[str, bytes]:
    """What a plain loader would run."""
    modern, legacy = io.BytesIO(), io.BytesIO()
    state = {"format": 1, "recipe": "", "method": Evil(mark)}
    torch.save(state, modern)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    objects = io.BytesIO()
    np.save(objects, np.array([Evil(mark)], dtype=object), allow_pickle=True)
    return {
        "torch": modern.getvalue(),
        "torch, old": legacy.getvalue(),
        "pickle": pickle.dumps(Evil(mark)),
        "numpy": objects.getvalue(),
    }


@pytest.mark.parametrize("kind", ["torch", "torch, old", "pickle", "numpy"])
def test_no_pickle_is_run(kind: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    data = files_that_run_code(mark)[kind]
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for path in (run / "checkpoints" / "last.pt", tmp_path / "w.pth", tmp_path / "w.safetensors"):
        path.write_bytes(data)
    with pytest.raises(UsageError):
        load_checkpoint(run / "checkpoints" / "last.pt")
    for name in ("w.pth", "w.safetensors"):
        with pytest.raises(UsageError):
            load_weights(create_encoder("test_resnet"), tmp_path / name)
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        for name in ("path.npy", "digest.npy", "features.npy"):
            archive.writestr(name, data)
    with pytest.raises(UsageError):
        read_features(tmp_path / "f.npz")
    assert not mark.exists()


@pytest.mark.parametrize("verb", ["pretrain", "pretrain --resume", "embed", "finetune", "export"])
def test_no_verb_runs_a_pickle(
    verb: str, picture_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, run, data = tmp_path / "mark", tmp_path / "run", str(picture_folder())
    evil = files_that_run_code(mark)["torch"]
    untrained_run(run)
    (run / "encoder.safetensors").write_bytes(evil)
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.pt").write_bytes(evil)
    (tmp_path / "w.pth").write_bytes(evil)
    out = ["--out", str(tmp_path / "out.npz" if verb == "embed" else tmp_path / "out")]
    arguments = {
        "pretrain": ["pretrain", data, *out, f"encoder.init={tmp_path / 'w.pth'}"],
        "pretrain --resume": ["pretrain", "--resume", "--out", str(run)],
        "embed": ["embed", str(run), data, *out],
        "finetune": ["finetune", str(run), "--labels", data, *out],
        "export": ["export", str(run), "--pictures", data, *out],
    }
    with pytest.raises(SystemExit) as stopped:
        main(arguments[verb])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text",
    [
        "run: !!python/object/apply:os.system ['touch {mark}']",
        "run: !!python/object/new:os.system ['touch {mark}']",
        "run: !!python/name:os.system",
        "data: !!python/object/apply:pathlib.Path ['/etc']",
        "data: !mine {{a: 1}}",
        "run: {{device: !!str cpu}}",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]",
        "data: " + "[" * 2000,
        "data: {{a: " * 30,
        "just words",
        "- 1",
    ],
)
def test_yaml_builds_no_objects_and_does_not_grow(text: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "r.yaml").write_text(text.format(mark=mark) if "{mark}" in text else text)
    with pytest.raises(UsageError):
        load_recipe(tmp_path / "r.yaml")
    assert not mark.exists()


def test_interpolations_are_only_words(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("encoder: {init: '${oc.env:HOME}'}")
    assert load_recipe(tmp_path / "r.yaml").encoder.init == "${oc.env:HOME}"


@pytest.mark.parametrize("reader", ["recipe", "labels", "manifest", "description"])
def test_endless_files_are_not_read_to_their_end(reader: str, tmp_path: Path) -> None:
    names = {"manifest": "manifest.json", "description": "encoder.json"}
    path = tmp_path / names.get(reader, "file.csv")
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte of zeros
    with pytest.raises((UsageError, runtime.BundleError), match=r"more than [\d,]+ bytes"):
        if reader == "recipe":
            load_recipe(path)
        elif reader == "labels":
            from_csv(path)
        elif reader == "manifest":
            runtime.read_manifest(tmp_path)
        else:
            load_encoder(tmp_path)


@pytest.mark.parametrize("reader", ["recipe", "labels", "list", "description"])
def test_a_pipe_in_a_files_place_is_not_waited_for(reader: str, tmp_path: Path) -> None:
    path = tmp_path / {"description": "encoder.json", "list": "list.txt"}.get(reader, "file.csv")
    os.mkfifo(path)
    with pytest.raises(UsageError, match=r"a pipe, not a file|neither bundled nor a readable"):
        if reader == "recipe":
            load_recipe(path)
        elif reader == "labels":
            from_csv(path)
        elif reader == "list":
            scan([path])
        else:
            load_encoder(tmp_path)


def claims() -> dict[str, bytes]:
    """Small files whose headers speak of terabytes."""
    saved = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, saved)
    bomb = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved.getvalue())) as old,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for member in old.infolist():
            large = member.filename.endswith("data/0")
            new.writestr(member.filename, b"\0" * (1 << 26) if large else old.read(member))
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}})
    return {
        "compressed torch": bomb.getvalue(),
        "bytearray": b"\x80\x02cbuiltins\nbytearray\n(I1000000000000\ntR.",
        "safetensors": struct.pack("<Q", len(header)) + header.encode() + b"\0" * 100,
        "safetensors header": struct.pack("<Q", 1 << 60) + b"{}",
    }


@pytest.mark.parametrize("kind", list(claims()))
def test_claimed_sizes_are_not_believed(kind: str, tmp_path: Path) -> None:
    data = claims()[kind]
    path = tmp_path / ("w.safetensors" if kind.startswith("safetensors") else "w.pth")
    path.write_bytes(data)
    with pytest.raises(UsageError):
        load_weights(create_encoder("test_resnet"), path)
    if path.suffix == ".pth":
        with pytest.raises(UsageError):
            read_tensors(path)


def test_an_array_that_claims_to_be_large(tmp_path: Path) -> None:
    member = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 1 << 10)}
    np.lib.format.write_array_header_1_0(member, shape)
    with zipfile.ZipFile(tmp_path / "f.npz", "w") as archive:
        for name in ("path.npy", "digest.npy", "features.npy"):
            archive.writestr(name, member.getvalue())
    with pytest.raises(UsageError, match="is not a file of features"):
        read_features(tmp_path / "f.npz")


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 10**9}, {"image_size": -1}, {"image_size": "32"}, {"channels": 10**6},
        {"width": 10**12}, {"name": "hf-hub:stranger/model"}, {"name": "local-dir:/tmp"},
        {"name": 3}, {"stem": "odd"}, {"resize": "../x"}, {"dtype": "O"}, {"classes": "abc"},
        {"max_pixels": 1 << 60}, {"max_pixels": True}, {"mean": "x"}, {"mean": [0.5]},
        {"mean": [float("nan")] * 3}, {"std": [0.0] * 3}, {"seed": 2**80}, {"init": ["a"]},
    ],
)  # fmt: skip
def test_descriptions_are_believed_within_limits(change: dict[str, Any], tmp_path: Path) -> None:
    untrained_run(tmp_path)
    found = json.loads((tmp_path / "encoder.json").read_text())
    (tmp_path / "encoder.json").write_text(json.dumps(found | change))
    with pytest.raises(UsageError):
        load_encoder(tmp_path)


@pytest.mark.parametrize("key", ["name", "width", "image_size", "std"])
def test_descriptions_are_whole(key: str, tmp_path: Path) -> None:
    untrained_run(tmp_path)
    found = json.loads((tmp_path / "encoder.json").read_text())
    del found[key]
    (tmp_path / "encoder.json").write_text(json.dumps(found))
    with pytest.raises(UsageError, match=f"lacks the key '{key}'"):
        load_encoder(tmp_path)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """As far as reading goes; its model is none."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "encoder.onnx").write_bytes(b"no model")
    (tmp_path / "secret").write_bytes(b"no model")
    return folder


def write_manifest(bundle: Path, **changes: Any) -> None:
    import hashlib

    digest = hashlib.sha256(b"no model").hexdigest()
    facts = {"bytes": 8, "sha256": digest, "tolerance": {"max_abs": 1e-4, "cosine": 0.99}}
    manifest = {
        "format": 1,
        "encoder": {"name": "test_resnet", "stem": "standard"},
        "input": {"size": 32, "resize": "crop", "channels": 3, "dtype": "uint8"},
        "features": {"width": 8, "normalized": True},
        "files": {"encoder.onnx": facts, **changes.pop("more", {})},
    }
    for name in changes.pop("paths", []):
        manifest["files"][name] = facts
    (bundle / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../secret", "..", "", "a\\b"])
def test_manifests_name_no_files_elsewhere(name: str, bundle: Path) -> None:
    write_manifest(bundle, paths=[name])
    with pytest.raises(runtime.BundleError, match="is invalid"):
        runtime.read_manifest(bundle)


@pytest.mark.parametrize(
    "change", [{"components": 10**12}, {"components": -1}, {"levels": "all"}, {"levels": 0}]
)
def test_manifests_are_believed_within_limits(change: dict[str, Any], bundle: Path) -> None:
    write_manifest(bundle, encoder={"name": "test_resnet", "stem": "standard"} | change)
    with pytest.raises(runtime.BundleError, match="encoder is invalid"):
        runtime.read_manifest(bundle)


def test_a_model_that_is_none_is_one_line(bundle: Path) -> None:
    write_manifest(bundle)
    done = subprocess.run(
        [sys.executable, runtime.__file__, "--bundle", str(bundle), "--check"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "the model cannot be loaded" in done.stderr


def test_an_engine_imports_no_module_of_its_choice(bundle: Path) -> None:
    import hashlib

    write_manifest(bundle)
    (bundle / "encoder.engine").write_bytes(b"x")
    facts = {"sha256": hashlib.sha256(b"x").hexdigest(), "model": "encoder.onnx"}
    facts |= {"package": "antigravity", "version": "1"}
    (bundle / "encoder.engine.json").write_text(json.dumps(facts))
    with pytest.raises(runtime.BundleError, match="names no TensorRT"):
        runtime.Extractor(bundle, variant="encoder.engine")
    assert "antigravity" not in sys.modules


def test_postscript_is_no_picture_whatever_its_name(tmp_path: Path) -> None:
    """Pillow gives it to Ghostscript, a language with files and commands."""
    for name in ("a.jpg", "a.eps"):
        (tmp_path / name).write_bytes(zoo.EPS)
        with pytest.raises(Unreadable, match="not a picture"):
            decode(tmp_path / name)
        with pytest.raises(runtime.Unreadable):
            runtime.decode(tmp_path / name, 3)


@pytest.mark.parametrize("name", ["../../up", "/etc/x", "<b>x</b>", "=1+1", "a\nb", "ü\u202e"])
def test_class_names_go_nowhere_but_into_tables(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(zoo.LOADED["gray.png"])
    before = sorted(tmp_path.rglob("*"))
    path = tmp_path / "labels.csv"
    write_csv(path, [tmp_path / "a.png"], [name])
    assert from_csv(path).labels == [name]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, path])


def test_names_do_not_act_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    zoo.rgb().save(data / "good.png")
    for name in (
        "\x1b[2Jclear.png",
        "two\nlines.png",
        os.fsdecode(b"no-utf8-\xff.png"),
        "\u202e.png",
    ):
        (data / name).touch()
    main(["checks", str(data), "data.image_size=16"])
    told = capsys.readouterr()
    assert "4" in told.out
    for text in (told.out, told.err):
        assert not {"\x1b", "\u202e", "\udcff"} & set(text)
    assert r"two\nlines.png: empty file" in told.out + told.err or "empty file" in told.out
