"""Export and the runtime: the same pixels, the same features, and clear words for damage."""

import ast
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import zoo
from PIL import Image
from safetensors.torch import load_file, save_file
from tinyssl.export import benchmarking, build_engine, exporting, runtime, variants
from tinyssl.export.exporting import export
from tinyssl.export.parity import compare
from tinyssl.export.samples import Reader, draw_samples

import tinyssl
from tests.making import make_pictures, make_run
from tinyssl.backbones import BACKBONES
from tinyssl.cli import main
from tinyssl.config import Recipe
from tinyssl.encoder import create_encoder
from tinyssl.errors import JobError, UsageError
from tinyssl.machine import peak_memory
from tinyssl.model import load
from tinyssl.opening import Unreadable
from tinyssl.picture import decode, resize, to_channels
from tinyssl.reporting.command import report
from tinyssl.scanning import scan
from tinyssl.weights import read_description, save_encoder

Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """One run, its pictures and its bundle of both precisions, for tests that change nothing."""
    folder = tmp_path_factory.mktemp("small")
    pictures = make_pictures(folder / "pictures")
    run = make_run(folder / "run", "mobilenetv3-small")
    return run, pictures, export(run, "onnx-fp16", folder / "bundle", pictures=pictures).out


@pytest.fixture
def bundle(small: tuple[Path, Path, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    copy = tmp_path / "bundle"
    copy.mkdir()
    for file in small[2].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


_OLD = 8, [("", 18)]  # what onnxruntime reads since 1.14


@pytest.mark.parametrize(
    ("name", "stem", "channels"),
    [(name, "standard", 3) for name in BACKBONES if name != "mobilenetv3-small"]
    + [("resnet18", "small", 1), ("mobilenetv2", "small", 4)],
)
def test_backbones_keep_their_features(
    name: str, stem: str, channels: int, picture_folder: Folder, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", name, channels=channels, stem=stem)
    pictures = picture_folder(side=50, mode="RGBA" if channels == 4 else "RGB")
    exported = export(run, "onnx-fp16", tmp_path / "bundle", pictures=pictures)
    assert exported.parity["encoder.onnx"].max_abs < 1e-4
    assert exported.parity["encoder.fp16.onnx"].mean_cosine > 0.999
    assert exported.sizes["encoder.fp16.onnx"] < 0.6 * exported.sizes["encoder.onnx"]
    for file in exported.parity:
        model = onnx.load(exported.out / file)
        assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == _OLD
    check_engines(exported.out)
    found = runtime.Extractor(exported.out, device="cpu").embed(scan([pictures]))
    wanted = load(run).embed(scan([pictures]))
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def check_engines(bundle: Path) -> None:
    """TensorRT-RTX parses and builds on a CPU: it proves operators and typing, not numerics."""
    trt = pytest.importorskip("tensorrt_rtx")
    for model in ("encoder.onnx", "encoder.fp16.onnx"):
        plan = build_engine.build(bundle / model, batch=4, targets=("SM86",), trt=trt)
        assert len(plan) > 100_000


def one_layer(kind: str, taken: list[str | int], given: list[str | int]) -> bytes:
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("pictures", taken), ("features", given))
    ]
    node = onnx.helper.make_node(kind, ["pictures"], ["features"])
    graph = onnx.helper.make_graph([node], "control", values[:1], values[1:])
    return onnx.helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize("case", ["garbage", "no such layer", "open size", "unknown target"])
def test_engines_that_cannot_be_built_are_told(
    case: str, small: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    model, targets = tmp_path / "model.onnx", ("SM86",)
    if case == "garbage":
        model.write_bytes(b"garbage")
        told = "cannot parse"
    elif case == "no such layer":
        model.write_bytes(one_layer("Det", ["batch", 3, 3], ["batch"]))
        told = "cannot parse .*Det"
    elif case == "open size":
        model.write_bytes(one_layer("Abs", ["batch", "height"], ["batch", "height"]))
        told = "only the batch may be open"
    else:
        model, targets, told = small[2] / "encoder.onnx", ("SM1",), "no compute capability SM1"
    with pytest.raises(build_engine.BuildError, match=told):
        build_engine.build(model, targets=targets, trt=trt)


def test_jetson_bundle_builds_its_engine_by_itself(
    small: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    run, pictures, _ = small
    bundle = export(run, "jetson", tmp_path / "bundle", pictures=pictures).out
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert "--onnx=encoder.fp16.onnx" in manifest["trtexec"]
    assert "--maxShapes=pictures:8x48x48x3" in manifest["trtexec"]
    program = [sys.executable, str(bundle / "build_engine.py")]
    done = subprocess.run([*program, "--target", "SM86"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"wrote {bundle / 'encoder.engine'}")
    assert (bundle / "encoder.engine").stat().st_size > 100_000
    done = subprocess.run([*program, "--model", "no.onnx"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "build_engine: no model at no.onnx\n"


def test_what_a_bundle_holds(small: tuple[Path, Path, Path]) -> None:
    _, _, bundle = small
    names = {file.name for file in bundle.iterdir()}
    models = {"encoder.onnx", "encoder.fp16.onnx"}
    assert names == models | {"golden.npz", "manifest.json", "runtime.py"}
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert set(manifest["files"]) == names - {"manifest.json"}
    assert manifest["input"] | {"size": 48, "resize": "crop", "dtype": "uint8"} == manifest["input"]
    model = onnx.load(bundle / "encoder.onnx")
    (taken,), (given,) = model.graph.input, model.graph.output
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in taken.type.tensor_type.shape.dim] == [
        "batch", 48, 48, 3,
    ]  # fmt: skip
    assert given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    told = {p.key: p.value for p in model.metadata_props}
    assert told["input.size"] == "48"
    assert told["encoder.name"] == "mobilenetv3_small_100"


def test_a_device_checks_pictures_of_every_class(tmp_path: Path) -> None:
    """Folders of classes come one after the other: the first eight of 64 would be of one."""
    for number in range(64):
        folder = tmp_path / "pictures" / f"class{number // 16}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 48), (60 * (number // 16), number, 0)).save(folder / f"{number}.png")
    run = make_run(tmp_path / "run", "test_resnet")
    bundle = export(run, out=tmp_path / "bundle", pictures=tmp_path / "pictures").out
    with np.load(bundle / "golden.npz") as golden:
        assert sorted(golden["pictures"][:, 0, 0, 0] // 60) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert runtime.check(runtime.Extractor(bundle, device="cpu"))[0]


def test_features_are_of_unit_length_unless_raw(
    small: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, pictures, bundle = small
    unit = runtime.Extractor(bundle, device="cpu").embed(scan([pictures]))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    raw = export(run, out=tmp_path / "raw", pictures=pictures, raw_features=True).out
    found = runtime.Extractor(raw, device="cpu").embed(scan([pictures]))
    wanted = load(run).embed(scan([pictures]), raw=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_raw_features_are_measured_by_their_length(
    small: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Those of hundreds differ by more than 0.05 in float16, which is much for length 1 only."""
    encoder = create_encoder("resnet18", seed=0)
    with torch.no_grad():
        encoder.get_submodule("backbone.layer4.1.bn2").weight.fill_(3000.0)
    (tmp_path / "run").mkdir()
    save_encoder(encoder, tmp_path / "run", image_size=48, resize="crop")
    made = export(
        tmp_path / "run", "onnx-fp16", tmp_path / "raw", pictures=small[1], raw_features=True
    )
    assert made.parity["encoder.fp16.onnx"].max_abs > variants.TOLERANCES[variants.HALF].max_abs
    for name in made.variants:
        assert runtime.check(runtime.Extractor(made.out, name, "cpu"))[0]


def test_any_size_takes_other_sizes(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, pictures, _ = small
    bundle = export(run, out=tmp_path / "any", pictures=pictures, any_size=True).out
    extractor = runtime.Extractor(bundle, device="cpu")
    wide = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    with torch.inference_mode():
        tensor = torch.from_numpy(wide).permute(0, 3, 1, 2) / 255
        wanted = torch.nn.functional.normalize(load(run).encoder(tensor), dim=1).numpy()
    np.testing.assert_allclose(extractor.run(wide), wanted, atol=1e-4)


@pytest.mark.parametrize("target", ["jetson", "tensorrt"])
def test_engines_have_one_size(target: str, small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, pictures, _ = small
    with pytest.raises(UsageError, match=f"target {target} has one picture size"):
        export(run, target, out=tmp_path / "b", pictures=pictures, any_size=True)
    assert not (tmp_path / "b").exists()


def sixteen_bit_run(folder: Path, channels: int) -> Path:
    run = make_run(folder, "test_resnet", channels=channels)
    described = json.loads((run / "encoder.json").read_text()) | {"dtype": "uint16"}
    (run / "encoder.json").write_text(json.dumps(described))
    return run


@pytest.mark.parametrize("target", ["jetson", "tensorrt", "mobile"])
def test_sixteen_bits_are_refused_where_devices_know_none(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "need_executorch", lambda: None)
    monkeypatch.setattr(exporting, "draw_samples", lambda *a, **k: pytest.fail("work has begun"))
    told = f"target {target} takes uint8 pictures, this encoder uint16; give --target onnx, "
    with pytest.raises(UsageError, match=told):
        export(sixteen_bit_run(tmp_path / "run", 1), target, tmp_path / "b")


def test_pictures_that_the_runtime_cannot_read_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, pictures = sixteen_bit_run(tmp_path / "run", 3), tmp_path / "pictures"
    pictures.mkdir()
    deep = np.random.default_rng(0).integers(0, 65536, (4, 50, 50, 3), dtype=np.uint16)
    for number, picture in enumerate(deep[:3]):
        (pictures / f"{number}.tif").write_bytes(zoo.tiff(picture, photometric=2))
    Image.fromarray((deep[3] >> 8).astype(np.uint8)).save(pictures / "3.png")
    export(run, out=tmp_path / "bundle", pictures=pictures)
    told = "3 of 4 of your pictures cannot be read by the bundle's runtime.py, first: "
    assert f"{told}{pictures / '0.tif'}: 16 bits in each of several channels" in caplog.text


def test_sixteen_bit_encoders_take_sixteen_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = sixteen_bit_run(tmp_path / "run", 1)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        deep = generator.integers(0, 2000, (50, 50), dtype=np.uint16)  # black, seen in 8 bits
        Image.fromarray(deep).save(pictures / f"{number}.png")
    bundle = export(run, out=tmp_path / "bundle", pictures=pictures).out
    found = runtime.Extractor(bundle, device="cpu").embed(scan([pictures]))
    wanted = load(run).embed(scan([pictures]))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(found[0] - found[1]).max() > 1e-3
    assert json.loads((bundle / "manifest.json").read_text())["input"]["channel_order"] == "L"
    assert "runtime.py" not in caplog.text


@pytest.mark.parametrize("rule", ["crop", "pad", "squash"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "turned"]
)
def test_runtime_reads_pictures_to_the_pixel(
    mode: str, channels: int, rule: Any, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 61, 4), dtype=np.uint8)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    if mode == "I;16":
        Image.fromarray(noise[..., 0].astype(np.uint16) * 250).save(path)
    elif mode == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(noise[..., :3]).save(path, exif=exif)
    elif mode == "LA":
        Image.fromarray(noise).convert(mode).save(path)
    else:
        Image.fromarray(noise[..., : 4 if mode == "RGBA" else 3]).convert(mode).save(path)
    ours = resize(to_channels(decode(path, channels), channels), 32, rule)
    theirs = runtime.to_channels(runtime.decode(path, channels), channels)
    np.testing.assert_array_equal(runtime.resize(theirs, 32, rule), ours)


def test_the_runtime_turns_over_white_is_zero_of_sixteen_bits(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (37, 61, 1), dtype=np.uint16)
    (tmp_path / "a.tif").write_bytes(zoo.tiff(values, photometric=0))
    ours, theirs = decode(tmp_path / "a.tif", 1), runtime.decode(tmp_path / "a.tif", 1)
    assert theirs.dtype == ours.dtype == np.uint16
    np.testing.assert_array_equal(theirs, ours)
    np.testing.assert_array_equal(theirs, 65535 - values)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("photometric", "samples", "extra"),
    [(1, 2, (0,)), (1, 2, (2,)), (2, 3, ()), (2, 4, ()), (2, 4, (0,)), (2, 4, (1,)), (2, 4, (2,)),
     (2, 5, (0, 0)), (2, 5, (2, 0))],
)  # fmt: skip
def test_the_runtime_drops_no_samples_of_tiffs(
    photometric: int, samples: int, extra: tuple[int, ...], channels: int, tmp_path: Path
) -> None:
    """What training refuses is refused, and what is taken is the same to the pixel."""
    path = tmp_path / "a.tif"
    values = np.random.default_rng(0).integers(0, 256, (37, 61, samples), dtype=np.uint8)
    path.write_bytes(zoo.tiff(values, photometric=photometric, kind=extra))
    try:
        ours = to_channels(decode(path, channels), channels)
    except Unreadable as error:
        assert f"{samples} channels" in str(error) or (extra[-1:] in ((1,), (2,)))
        with pytest.raises(runtime.Unreadable, match=r"\d channels, the encoder takes \d"):
            runtime.to_channels(runtime.decode(path, channels), channels)
        return
    try:
        theirs = runtime.to_channels(runtime.decode(path, channels), channels)
    except runtime.Unreadable as error:
        assert channels == samples  # Pillow cannot read them all
        assert "give it as an array" in str(error)
    else:
        np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize(("largest", "deep"), [(255, False), (100, False), (1023, True)])
def test_the_runtime_squashes_no_colour_ppms(largest: int, deep: bool, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, largest + 1, (6, 9, 3))
    path = tmp_path / "a.ppm"
    head = f"P6\n9 6\n{largest}\n".encode()
    path.write_bytes(head + values.astype(">u2" if deep else np.uint8).tobytes())
    if deep:
        with pytest.raises(runtime.Unreadable, match="16 bits in each of several channels"):
            runtime.decode(path, 3)
    else:
        np.testing.assert_array_equal(runtime.decode(path, 3), decode(path))


@pytest.mark.parametrize("deflate", [False, True])
def test_the_runtime_mixes_up_no_planes_of_gray_and_alpha(deflate: bool, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (37, 61, 2), dtype=np.uint8)
    path = tmp_path / "a.tif"
    path.write_bytes(zoo.tiff(values, planes=True, deflate=deflate, kind=2))
    np.testing.assert_array_equal(decode(path, 2), values)
    with pytest.raises(runtime.Unreadable, match="give it as an array"):
        runtime.decode(path, 2)


def test_the_runtime_takes_pictures_as_large_as_training_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert runtime.decode(tmp_path / "large.png", 1, max_pixels=1600).shape == (40, 40, 1)
    with pytest.raises(runtime.Unreadable, match=r"40 x 40: over 1,599 pixels"):
        runtime.decode(tmp_path / "large.png", 1, max_pixels=1599)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(runtime.Unreadable, match=r"^over 100 pixels"):
        runtime.decode(tmp_path / "large.png", 1, max_pixels=100)


def test_a_cpu_computes_eight_pictures_at_a_time(small: tuple[Path, Path, Path]) -> None:
    extractor = runtime.Extractor(small[2], device="cpu")
    shape = (19, extractor.size, extractor.size, extractor.channels)
    shown = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    session, sizes = extractor.session.session, []

    class Counting:
        def run(self, names: list[str], fed: dict[str, Any]) -> Any:
            sizes.extend(len(pictures) for pictures in fed.values())
            return session.run(names, fed)

    extractor.session.session = Counting()
    found = extractor.run(shown)
    assert sizes == [8, 8, 3]
    extractor.session.session = session
    one_by_one = np.concatenate([extractor.run(shown[i : i + 1]) for i in range(len(shown))])
    np.testing.assert_allclose(found, one_by_one, atol=1e-5)
    assert extractor.run(shown[:0]).shape == (0, extractor.width)


def run_program(bundle: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The bundle's own copy, where torch, timm and tinyssl cannot be imported."""
    block = (
        "import sys, runpy\n"
        "for name in ('torch', 'timm', 'tinyssl', 'cv2'): sys.modules[name] = None\n"
        f"sys.argv = ['runtime.py', *{[str(a) for a in arguments]!r}]\n"
        f"runpy.run_path({str(bundle / 'runtime.py')!r}, run_name='__main__')"
    )
    return subprocess.run([sys.executable, "-c", block], capture_output=True, text=True)


@pytest.mark.parametrize("variant", ["encoder.onnx", "encoder.fp16.onnx"])
def test_check_passes_without_torch(variant: str, small: tuple[Path, Path, Path]) -> None:
    done = run_program(small[2], "--check", "--variant", variant, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("passed: 8 pictures")


def test_check_looks_at_every_model(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small[2], bundle)
    done = run_program(bundle, "--check", "--device", "cpu")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["passed", "passed"]
    (bundle / "encoder.fp16.onnx").rename(tmp_path / "kept")  # a device may get one model only
    assert run_program(bundle, "--check", "--device", "cpu").stdout.count("passed") == 1
    (tmp_path / "kept").rename(bundle / "encoder.fp16.onnx")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["encoder.fp16.onnx"]["tolerance"] = {"max_abs": 0, "cosine": 1.1}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert run_program(bundle, "--check", "--device", "cpu").returncode == 1


def test_reasons_are_in_words(small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    extractor = runtime.Extractor(small[2], device="cpu")
    Image.new("RGB", (9, 9)).save(tmp_path / "tga.png", "TGA")
    known = "not a picture in BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP"
    for name, told in (
        ("empty", "empty file"), ("text", known), ("tga", known), ("pipe", "not a regular file"),
    ):  # fmt: skip
        path = tmp_path / f"{name}.png"
        with pytest.raises(runtime.Unreadable, match=f"^picture {path} cannot be used: {told}$"):
            extractor.embed([path])


def test_the_runtime_finds_pictures_by_their_content(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "photo")
    (tmp_path / "notes").write_text("none")
    assert runtime.find_pictures([str(tmp_path)]) == [tmp_path / "photo"]


def test_the_runtime_finds_in_folders_what_training_finds(tmp_path: Path) -> None:
    Image.init()
    folder, beside = tmp_path / "pictures", tmp_path / "beside"
    for place in (folder / "b", folder / ".hidden", beside):
        place.mkdir(parents=True)
        (place / "a.png").touch()
    for suffix, name in Image.EXTENSION.items():
        if name in runtime._FORMATS:
            (folder / f"a{suffix}").touch()
    (folder / ".a.png").touch()
    (folder / "a").symlink_to(beside)
    (folder / "again").symlink_to(beside)
    (beside / "back").symlink_to(folder)
    found = runtime.find_pictures([str(folder)])
    assert found == sorted(scan([folder]))
    assert folder / "a" / "a.png" in found


def test_the_runtime_tells_of_folders_that_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    real = {"scandir": os.scandir, "listdir": os.listdir}

    def refusing(name: str) -> Callable[..., Any]:
        def call(path: Any) -> Any:
            if Path(path).name == "closed":
                raise PermissionError(13, "Permission denied", str(path))
            return real[name](path)

        return call

    for name in real:
        monkeypatch.setattr(os, name, refusing(name))
    found = runtime.find_pictures([str(tmp_path)])
    assert found == [tmp_path / "a.png", tmp_path / "closed"]
    with pytest.raises(runtime.Unreadable, match=r"^Permission denied$"):
        runtime.decode(found[1], 3)


def test_runtime_in_an_environment_of_its_own(
    small: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """As on a device: numpy, Pillow, onnxruntime, and no torch to fall back on."""
    _, pictures, bundle = small
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "numpy", "pillow", "onnxruntime"]
    subprocess.run(install, check=True)
    out = tmp_path / "features.npz"
    program = [python, bundle / "runtime.py"]
    checked = subprocess.run([*program, "--check"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    done = subprocess.run([*program, pictures, "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(out) as written:
        ours = runtime.Extractor(bundle, device="cpu").embed(scan([pictures]))
        np.testing.assert_allclose(written["features"], ours, atol=1e-5)


def test_pillow_of_jetpack_5_is_told_to_be_too_old(
    small: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not know which formats to open."""
    monkeypatch.setattr(runtime.PIL, "__version__", "7.0.0")
    with pytest.raises(
        runtime.BundleError, match=r"^Pillow 7\.0\.0 is too old; install a newer one"
    ):
        runtime.Extractor(small[2])


def test_pillow_that_darkens_pictures_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 9.0 ignores which value of a PGM is white."""
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 1 1 1000\n\x03\xe8")
    assert runtime.decode(path, 1).item() == 65535
    monkeypatch.setattr(runtime.PIL, "__version__", "9.0.1")
    with pytest.raises(
        runtime.Unreadable, match=r"Pillow 9\.0 reads some PPM and PGM files too dark"
    ):
        runtime.decode(path, 1)


def by_pillow(version: str, code: str, folder: Path) -> str:
    """What code prints that imports this version, the runtime by itself, and tinyssl."""
    old, program = folder / "old", Path(runtime.__file__).parent
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"pillow=={version}"]
    subprocess.run([*install, "--target", old], check=True)
    places = map(str, (old, program, Path(tinyssl.__file__).parents[1]))
    whole = f"import runtime; assert runtime.PIL.__version__ == {version!r}; {code}"
    done = subprocess.run(
        [sys.executable, "-c", whole], cwd=folder, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Pillow 10.0 has no wheel for it")
def test_a_tiff_is_turned_once_by_an_old_pillow(tmp_path: Path) -> None:
    """Before 10.1 Pillow turns a TIFF when it loads it, and keeps the tag that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "a.tif", exif=exif)
    told = by_pillow("10.0.1", "print(*runtime.decode('a.tif', 3).shape)", tmp_path)
    assert told == "30 20 3\n"


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Pillow 10.3 has no wheel for it")
@pytest.mark.parametrize("rule", ["pad", "squash"])
def test_an_old_pillow_resizes_tall_pictures_to_the_same_pixels(rule: Any, tmp_path: Path) -> None:
    """Before 13.0 it scaled the width first, which rounds differently."""
    noise = np.random.default_rng(0).integers(0, 2, (300, 90, 4), dtype=np.uint8) * np.uint8(255)
    for channels in (3, 4):
        shown = noise[..., :channels]
        np.save(tmp_path / f"{channels}.npy", shown)
        wanted = resize(shown, 32, rule)
        np.testing.assert_array_equal(runtime.resize(shown, 32, rule), wanted)
        np.save(tmp_path / f"wanted{channels}.npy", wanted)
    code = (
        "import numpy as np, tinyssl.picture as p; print(*((f(np.load(f'{c}.npy'), 32, "
        f"{rule!r}) != np.load(f'wanted{{c}}.npy')).sum() for f in (p.resize, runtime.resize)"
        " for c in (3, 4)))"
    )
    assert by_pillow("10.3.0", code, tmp_path) == "0 0 0 0\n"


def test_an_interrupted_program_says_so_in_one_line(
    small: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, pictures, bundle = small
    (tmp_path / "broken.png").write_bytes(b"no picture")
    many = [scan([pictures])[0]] * 5000  # seconds of work
    program = [sys.executable, bundle / "runtime.py", tmp_path / "broken.png", *many]
    with subprocess.Popen(
        [*program, "--out", tmp_path / "features.npz", "--batch", "1"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stderr is not None
        assert "broken.png" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        assert running.communicate() == ("", "runtime: interrupted\n")
    assert running.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["broken.png"]


def test_a_program_whose_reader_has_gone_ends_without_a_word(
    small: tuple[Path, Path, Path],
) -> None:
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, small[2] / "runtime.py", "--check", "--device", "cpu"]
    done = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_batch_beyond_memory_is_told_in_one_line(small: tuple[Path, Path, Path]) -> None:
    done = run_program(small[2], "--benchmark", "--batch", 10**12)
    assert done.returncode == 2
    assert done.stderr.startswith("runtime: Unable to allocate")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("kind", ["npz", "csv"])
def test_program_writes_good_pictures_and_tells_bad_ones(
    kind: str, small: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, pictures, bundle = small
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    out = tmp_path / f"features.{kind}"
    done = run_program(bundle, pictures, broken, "--out", out, "--batch", 5)
    assert done.returncode == 1
    assert "broken.png" in done.stderr
    assert "12 of 13 pictures" in done.stdout
    wanted = runtime.Extractor(bundle, device="cpu").embed(scan([pictures]))
    if kind == "npz":
        with np.load(out) as written:
            found, names = written["features"], written["path"].tolist()
    else:
        lines = [line.split(",") for line in out.read_text().splitlines()[1:]]
        names, found = [x[0] for x in lines], np.array([x[1:] for x in lines], np.float32)
    assert names == [str(p) for p in scan([pictures])]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("out", "told"), [("no/f.npz", "there is no folder"), ("f.npz", "is a folder; name a file")]
)
def test_the_program_refuses_an_out_that_cannot_be_before_it_works(
    out: str, told: str, small: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, pictures, bundle = small
    (tmp_path / "f.npz").mkdir()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    done = run_program(bundle, pictures, broken, "--out", tmp_path / out)
    assert done.returncode == 2
    assert done.stderr.startswith(f"runtime: --out {tmp_path / out}")
    assert told in done.stderr
    assert "broken.png" not in done.stderr  # no picture was looked at
    assert not done.stdout


@pytest.mark.parametrize("kind", ["pipe", "link to nothing", "file"])
def test_the_program_takes_no_place_of_what_is_there(
    kind: str, small: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    out, arguments = tmp_path / "f.npz", ["--bundle", str(small[2]), str(small[1])]
    if kind == "pipe":
        os.mkfifo(out)
    elif kind == "file":
        out.write_text("mine")
    else:
        out.symlink_to("nothing")
    before = out.lstat()
    told = {"file": "exists; name another file, or give --overwrite"}.get(kind, "no plain file")
    given = [] if kind == "file" else ["--overwrite"]
    with pytest.raises(runtime.BundleError, match=told):
        runtime._main([*arguments, "--out", str(out), *given])
    assert out.lstat() == before
    assert list(tmp_path.iterdir()) == [out]


def test_the_program_overwrites_nothing_but_its_out(
    small: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "f.csv").write_text("old")
    (tmp_path / ".f.csv.tmp").write_text("mine")
    (tmp_path / "link.csv").symlink_to("f.csv")
    arguments = ["--bundle", str(small[2]), str(small[1] / "00.png"), "--overwrite"]
    assert runtime._main([*arguments, "--out", str(tmp_path / "link.csv")]) == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "f.csv").read_text().startswith("path,feature0,")
    assert (tmp_path / ".f.csv.tmp").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--check", "--out", "f.npz"], "--out works with pictures only"),
        (["--check", "--json"], "--json works with --benchmark only"),
        (["--benchmark", "--seconds", "nan"], "--seconds must be 0 or more"),
        (["--benchmark", "--seconds", "-1"], "--seconds must be 0 or more"),
        (["--check", "--threads", "-1"], r"threads: got -1; give 0 \(all\) or more"),
        (
            ["--check", "--device", "tensorrt", "--variant", "encoder.onnx"],
            r"device tensorrt runs encoder\.engine only; leave encoder\.onnx out",
        ),
    ],
)
def test_options_without_effect_are_refused(
    arguments: list[str],
    told: str,
    small: tuple[Path, Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises((SystemExit, runtime.BundleError)) as stop:
        runtime._main(["--bundle", str(small[2]), *arguments])
    assert re.search(told, f"{stop.value} {capsys.readouterr().err}")


@pytest.mark.parametrize("program", ["runtime", "build_engine"])
def test_programs_are_of_python_38(program: str) -> None:
    """JetPack 5 has no newer one; what it refuses only at run time is looked for by name.

    So is what Pillow 9.0 of JetPack 6 lacks.
    """
    text = (Path(runtime.__file__).parent / f"{program}.py").read_text(encoding="utf-8")
    assert "\nfrom __future__ import annotations\n" in text
    for node in ast.walk(ast.parse(text, feature_version=(3, 8))):
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            assert called not in ("removeprefix", "removesuffix", "bit_count", "is_relative_to")
            assert not {"strict", "slots"} & {keyword.arg for keyword in node.keywords}
            unions = [a for a in node.args if isinstance(a, ast.BinOp)]
            assert called != "isinstance" or not unions, f"line {node.lineno}"
            assert called != "getpalette" or not node.args, f"line {node.lineno}"
        assert getattr(node, "attr", "") not in ("Resampling", "Transpose", "Palette")


def test_benchmark_measures(small: tuple[Path, Path, Path]) -> None:
    extractor = runtime.Extractor(small[2], device="cpu", threads=1)
    found = runtime.benchmark(extractor, batch=2, seconds=0.05)
    assert 0 < found["median_ms"] <= found["p95_ms"]
    assert found["pictures_per_s"] == pytest.approx(2000 / found["median_ms"])


def test_peak_memory_is_in_millions_of_bytes() -> None:
    peak = peak_memory()
    assert peak is not None
    assert runtime._peak_mb() == pytest.approx(peak / 1e6, rel=0.01)


def test_benchmark_of_a_bundle(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "encoder.fp16.onnx").write_bytes(b"cut short")
    main(["benchmark", str(bundle), "--batch", "1,3", "--seconds", "0.05"])
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    rows = json.loads((bundle / "benchmark.json").read_text())["rows"]
    assert [(row["model"], row["batch"]) for row in rows] == [
        (model, batch)
        for batch in (1, 3)
        for model in ("torch eager", "encoder.onnx", "encoder.fp16.onnx")
    ]
    for row in rows:
        if row["model"] == "encoder.fp16.onnx":
            assert "its checksum differs" in row["status"]
        else:
            assert row["status"] == "ok"
            assert 0 < row["median_ms"] <= row["p95_ms"]
    assert len((bundle / "benchmark.csv").read_text().splitlines()) == 7


def test_a_batch_beyond_memory_is_a_row_that_says_so(bundle: Path) -> None:
    (bundle / "encoder.fp16.onnx").unlink()
    rows = benchmarking.benchmark(bundle, batches=[10**12], seconds=0)
    told = {row["model"]: row["status"] for row in rows}
    assert "allocate" in told["torch eager"]
    assert "allocate" in told["encoder.onnx"]


@pytest.mark.parametrize("file", ["benchmark.json", "benchmark.csv"])
def test_what_was_timed_is_shown_where_it_cannot_be_written(
    file: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "encoder.fp16.onnx").write_bytes(b"cut short")  # the less there is to time
    (bundle / file).mkdir()
    main(["benchmark", str(bundle), "--batch", "1", "--seconds", "0.01"])
    said = capsys.readouterr()
    assert "encoder.onnx" in said.out
    assert f"cannot write {bundle / file}" in said.err


def test_report_shows_bundle_and_latency(
    small: tuple[Path, Path, Path], bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("plotly")
    run, pictures = shutil.copytree(small[0], tmp_path / "run"), small[1]
    (run / "recipe.yaml").write_text(Recipe().to_yaml())
    beside, page = bundle.rename(tmp_path / "run-bundle"), tmp_path / "report.html"
    text = report(run, data=pictures, out=page).read_text("utf-8")
    assert "Parity with torch" in text
    assert "No latency yet" in text
    main(["benchmark", str(beside), "--batch", "1", "--seconds", "0.05"])
    named = beside.rename(tmp_path / "named")
    text = report(run, data=pictures, bundle=named, out=page).read_text("utf-8")
    assert "95th percentile, ms" in text
    files = json.loads((named / "manifest.json").read_text())["files"]
    assert all(files[name]["sha256"] in text for name in ("encoder.onnx", "encoder.fp16.onnx"))
    assert "No bundle was found" in report(run, data=pictures, out=page).read_text("utf-8")


def test_report_leaves_out_the_bundle_of_other_weights(
    small: tuple[Path, Path, Path],
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after a second `pretrain --overwrite`: its tables are not those of this encoder."""
    pytest.importorskip("plotly")
    run, pictures = shutil.copytree(small[0], tmp_path / "run"), small[1]
    (run / "recipe.yaml").write_text(Recipe().to_yaml())
    weights = load_file(run / "encoder.safetensors")
    save_file({name: 0.99 * rows for name, rows in weights.items()}, run / "encoder.safetensors")
    beside = bundle.rename(tmp_path / "run-bundle")
    with pytest.raises(UsageError, match="run-bundle is of other weights than"):
        report(run, data=pictures, bundle=beside)
    page = report(run, data=pictures, out=tmp_path / "r.html")
    assert "Parity with torch" not in page.read_text("utf-8")
    assert "export it again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--batch", "0"], "at least 1"),
        (["--batch", "x"], "give numbers"),
        (["--seconds", "nan"], "seconds: got nan; give 0 or more"),
        (["--seconds", "-1"], "seconds: got -1.0; give 0 or more"),
        ([], "no manifest.json"),
    ],
)
def test_benchmark_of_wrong_use(
    arguments: list[str], told: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = bundle if arguments else bundle / "nothing"
    with pytest.raises(SystemExit, match="2"):
        main(["benchmark", str(folder), *arguments])
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("truncated", "its checksum differs; copy the bundle again"),
        ("gone", "encoder.onnx cannot be read"),
        ("no manifest", "no manifest.json in"),
        ("other format", "has bundle format 9, this runtime reads 1"),
        ("no json", "manifest.json is damaged"),
        ("variant", "has no encoder.int8.onnx; it has: encoder.fp16.onnx"),
        ("golden", "golden.npz cannot be read"),
        ("empty folder", "no pictures in"),
        ("device", "device: got 'tpu', allowed are auto, tensorrt, cuda and cpu"),
        ("normalized", "manifest.json is damaged: features.normalized is invalid"),
        ("size", "input.size is 64, that of encoder.onnx 48; take another copy of the bundle"),
        ("resize", "input.resize is pad, that of encoder.onnx crop"),
        ("channels", "input.channels is 1, that of encoder.onnx 3"),
        ("dtype", "input.dtype is uint16, that of encoder.onnx uint8"),
    ],
)
def test_damage_is_told_in_one_line(damage: str, told: str, bundle: Path, tmp_path: Path) -> None:
    model, manifest = bundle / "encoder.onnx", bundle / "manifest.json"
    arguments: list[object] = ["--check"]
    if damage == "truncated":
        model.write_bytes(model.read_bytes()[:1000])
    elif damage == "gone":
        model.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "other format":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 9}))
    elif damage == "no json":
        manifest.write_text("{")
    elif damage == "variant":
        arguments += ["--variant", "encoder.int8.onnx"]
    elif damage == "golden":
        (bundle / "golden.npz").unlink()
    elif damage == "empty folder":
        (tmp_path / "nothing").mkdir()
        arguments = [tmp_path / "nothing", "--out", tmp_path / "f.npz"]
    elif damage == "device":
        arguments += ["--device", "tpu"]
    else:
        told_there = json.loads(manifest.read_text())
        values = {"size": 64, "resize": "pad", "channels": 1, "dtype": "uint16"}
        if damage in values:
            told_there["input"][damage] = values[damage]
        elif damage == "normalized":
            del told_there["features"]["normalized"]
        manifest.write_text(json.dumps(told_there))
    done = run_program(bundle, *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_failed_check_says_so(bundle: Path) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["encoder.onnx"]["tolerance"] = {"max_abs": 0, "cosine": 1.1}
    path.write_text(json.dumps(manifest))
    done = run_program(bundle, "--check", "--device", "cpu")
    assert done.returncode == 1
    assert done.stdout.startswith("FAILED")


@pytest.mark.parametrize("verb", ["predict", "eval", "finetune", "report", "export", "pretrain"])
def test_a_bundle_in_place_of_a_run_is_told(
    verb: str, small: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, pictures, bundle = small
    more: dict[str, list[object]] = {
        "predict": [bundle, pictures],
        "eval": [bundle, "--labels", pictures],
        "finetune": [bundle, "--labels", pictures],
        "pretrain": [pictures, f"encoder.init={bundle}"],
    }
    given = [str(part) for part in more.get(verb, [bundle])]
    with pytest.raises(SystemExit) as left:
        main([verb, *given, "--out", str(tmp_path / "out.html")])
    assert left.value.code == 2
    assert f"{bundle} is an exported bundle; name the run folder" in capsys.readouterr().err


def test_unlike_features_leave_nothing_behind(
    small: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, pictures, _ = small
    monkeypatch.setitem(variants.TOLERANCES, "encoder.onnx", variants.Tolerance(0.0, 0.9))
    with pytest.raises(JobError, match="onnx differs from torch: largest difference"):
        export(run, out=tmp_path / "bundles" / "b", pictures=pictures)
    assert not (tmp_path / "bundles").exists()


@pytest.mark.parametrize(
    "case", ["target", "used", "not a bundle", "no run", "no pictures", "labels", "calibration"]
)
def test_wrong_use_is_told(case: str, small: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, pictures, bundle = small
    given: dict[str, Any] = {"run": run, "out": tmp_path / "b", "pictures": pictures}
    if case == "target":
        given["target"], told = "coreml", "target: got 'coreml', allowed are onnx"
    elif case == "used":
        given["out"], told = bundle, "is not empty"
    elif case == "not a bundle":
        given |= {"out": pictures, "overwrite": True}
        told = "holds no bundle"
    elif case == "no run":
        given["run"], told = pictures, "no encoder in"
    elif case in ("labels", "calibration"):
        given[case], told = tmp_path / "none", f"--{case}: for int8 only, and target onnx has none"
    else:
        given["pictures"], told = None, "give --pictures DIR"
    before = sorted(bundle.iterdir()), sorted(pictures.iterdir())
    with pytest.raises(UsageError, match=told):
        export(**given)
    assert (sorted(bundle.iterdir()), sorted(pictures.iterdir())) == before


@pytest.mark.parametrize("run", [".", "deeper/..", "../mine", "../mine/"])
def test_a_run_is_named_after_its_folder_wherever_one_stands(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "deeper").mkdir(parents=True)
    (tmp_path / "mine-bundle" / "used").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(UsageError, match=f"--out {tmp_path / 'mine-bundle'} is not empty"):
        export(run)
    with pytest.raises(UsageError, match=r"--out \.: a bundle takes its folder's place"):
        export(run, out=".", overwrite=True)


def test_too_few_pictures_are_told(
    small: tuple[Path, Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, pictures, _ = small
    with pytest.raises(UsageError, match=r"at least 2 .* got 1; give more by --pictures DIR"):
        export(run, out=tmp_path / "b", pictures=pictures / "00.png")
    reader = Reader(read_description(run))
    draw_samples(reader, run, pictures, None, calibrate=False)
    told = (
        "measured on 12 pictures only, which say little about others; give 32 or more by --pictures"
    )
    assert told in caplog.text
    for number in range(40):
        (tmp_path / "copies").mkdir(exist_ok=True)
        shutil.copy(pictures / "00.png", tmp_path / "copies" / f"{number}.png")
    draw_samples(reader, run, tmp_path / "copies", None, calibrate=False)
    assert "measured on copies of one picture, whose nearest neighbours say noth" in caplog.text
    shutil.copy(pictures / "01.png", tmp_path / "copies")
    draw_samples(reader, run, tmp_path / "copies", None, calibrate=False)
    assert "measured on 2 different pictures only, which say little" in caplog.text


def test_parity_against_a_loop() -> None:
    generator = np.random.default_rng(0)
    one = generator.normal(size=(9, 5)) + 3
    other = one + 0.3 * generator.normal(size=(9, 5))
    found = compare(one, other)

    def cosine(a: Any, b: Any) -> float:
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))

    plain = [cosine(a, b) for a, b in zip(one, other, strict=True)]
    mean = one.mean(axis=0)
    centred = [cosine(a - mean, b - mean) for a, b in zip(one, other, strict=True)]

    def nearest(rows: Any, i: int) -> int:
        return max((j for j in range(9) if j != i), key=lambda j: cosine(rows[i], rows[j]))

    same = [nearest(one, i) == nearest(other, i) for i in range(9)]
    assert found.max_abs == pytest.approx(np.abs(one - other).max())
    assert found.mean_cosine == pytest.approx(np.mean(plain))
    assert found.worst_cosine == pytest.approx(min(plain))
    assert found.centred_cosine == pytest.approx(np.mean(centred))
    assert found.same_nearest == pytest.approx(np.mean(same))


def test_command_prints_a_table_of_80_columns(
    small: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, pictures, _ = small
    main(["export", str(run), "--out", str(tmp_path / "b"), "--pictures", str(pictures)])
    told = capsys.readouterr().out
    table = told[: told.index("wrote ")]
    assert "encoder.onnx" in table
    assert max(map(len, table.splitlines())) <= 80
    assert (tmp_path / "b" / "manifest.json").is_file()


def test_power_of_a_jetson_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "nvpmodel"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf 'NV Power Mode: 15W\\n2\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    (tmp_path / "clocks" / "17000000.gpu").mkdir(parents=True)
    (tmp_path / "clocks" / "17000000.gpu" / "cur_freq").write_text("612000000\n")
    found = benchmarking.power(tmp_path / "clocks")
    assert found == {"nvpmodel": "NV Power Mode: 15W 2", "17000000.gpu Hz": "612000000"}
    assert benchmarking.power(tmp_path / "none").keys() <= {"nvpmodel"}


def test_the_verb_travels_and_can_be_called() -> None:
    assert callable(tinyssl.export)
    assert pickle.loads(pickle.dumps(tinyssl.export)) is tinyssl.export
