"""The C++ example: the same pixels as Pillow's, and the features of the bundle's runtime."""

import csv
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from tinyssl.export import runtime
from tinyssl.export.exporting import export
from tinyssl.export.graph import FEATURES, INPUT

import tinyssl
from tests.making import make_run

SOURCES = Path(tinyssl.__file__).parent.parent / "export" / "cpp"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built as its header says, warnings being errors."""
    if sys.platform != "linux":
        pytest.skip("the library inside onnxruntime's wheel is looked up as on Linux")
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake and C++ compiler here")
    folder = tmp_path_factory.mktemp("cpp")
    given = [f"-DONNXRUNTIME_LIBRARY={library(folder)}"]
    if "ONNXRUNTIME_INCLUDE" in os.environ:
        given.append(f"-DONNXRUNTIME_INCLUDE={os.environ['ONNXRUNTIME_INCLUDE']}")
    build = ["cmake", "-S", str(SOURCES), "-B", str(folder / "build"), *given]
    done = subprocess.run(build, capture_output=True, text=True)
    if done.returncode != 0 and "Could not find ONNXRUNTIME_INCLUDE" in done.stderr:
        pytest.skip("no headers of onnxruntime: set ONNXRUNTIME_INCLUDE to their folder")
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        ["cmake", "--build", str(folder / "build")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "extract"


def library(folder: Path) -> Path:
    """The wheel's own library, under the name that a linked program asks for."""
    import onnxruntime

    (found,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    linked = folder / "libonnxruntime.so.1"
    linked.symlink_to(found)
    return linked


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *(str(a) for a in arguments)], capture_output=True, text=True)


def rows(text: str) -> tuple[list[str], Any]:
    """Paths and features of the program's CSV."""
    head, *lines = csv.reader(text.splitlines())
    assert head == ["path", *(f"feature{i}" for i in range(len(head) - 1))]
    return [line[0] for line in lines], np.array([line[1:] for line in lines], np.float32)


def pixels_model(path: Path, size: int, channels: int, rule: str, dtype: str = "uint8") -> Path:
    """A model whose features are its input's pixels, so that the CSV shows them."""
    types = onnx.TensorProto
    shape: Sequence[Any] = ["batch", size, size, channels]
    taken = onnx.helper.make_tensor_value_info(INPUT, types.UINT8, shape)
    given = onnx.helper.make_tensor_value_info(FEATURES, types.FLOAT, ["batch", None])
    nodes = [
        onnx.helper.make_node("Flatten", [INPUT], ["flat"]),
        onnx.helper.make_node("Cast", ["flat"], [FEATURES], to=types.FLOAT),
    ]
    graph = onnx.helper.make_graph(nodes, "pixels", [taken], [given])
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=9)
    told = {"size": size, "channels": channels, "resize": rule, "dtype": dtype}
    onnx.helper.set_model_props(model, {f"input.{key}": str(v) for key, v in told.items()})
    onnx.save(model, path)
    return path


SHAPES = [(37, 61), (32, 32), (33, 32), (9, 200), (1, 1), (7, 5), (150, 151), (31, 64), (16, 33)]
TALL = [(61, 37), (200, 9), (64, 20)]  # some are scaled in height first


@pytest.mark.parametrize("rule", ["crop", "pad", "squash"])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("L", 3)])
def test_pixels_are_pillows_to_the_bit(
    mode: str, channels: int, rule: str, program: Path, tmp_path: Path
) -> None:
    model = pixels_model(tmp_path / "pixels.onnx", 32, channels, rule)
    generator = np.random.default_rng(0)
    paths = []
    for number, (h, w) in enumerate(SHAPES + TALL):
        # Black and white make the cubic overshoot, which is where clipping matters.
        noise = generator.integers(0, 2, (h, w, 3), dtype=np.uint8) * np.uint8(255)
        paths.append(tmp_path / f"{number}.{'ppm' if mode == 'RGB' else 'pgm'}")
        Image.fromarray(noise).convert(mode).save(paths[-1])
    names, found = rows(run(program, model, *paths).stdout)
    assert names == [str(path) for path in paths]
    for path, values in zip(paths, found, strict=True):
        picture = runtime.to_channels(runtime.decode(path, channels), channels)
        wanted = runtime.resize(picture, 32, rule)
        np.testing.assert_array_equal(values.reshape(wanted.shape), wanted, err_msg=str(path))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle, and its pictures at their own sizes: PPM and PGM, one folder below another."""
    folder = tmp_path_factory.mktemp("bundle")
    pictures = folder / "pictures"
    (pictures / "gray, too").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(10):
        noise = generator.integers(0, 256, (4, 4 + number % 5, 3), dtype=np.uint8)
        image = Image.fromarray(noise).resize((60 + 9 * number, 70))
        image.save(pictures / f"{number:02}.ppm")
        image.convert("L").save(pictures / "gray, too" / f"{number:02}.PGM")
    run = make_run(folder / "run", "mobilenetv3-small", rule="pad")
    return export(run, out=folder / "bundle", pictures=pictures).out, pictures


def test_features_are_those_of_the_runtime(program: Path, bundle: tuple[Path, Path]) -> None:
    folder, pictures = bundle
    done = run(program, folder, pictures)
    assert (done.returncode, done.stderr) == (0, "")
    names, found = rows(done.stdout)
    assert names == sorted(str(path) for path in pictures.rglob("*.[pP]*"))
    assert len(names) == 20
    wanted = runtime.Extractor(folder, device="cpu").embed(names)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-2


@pytest.mark.parametrize("case", ["cut", "jpeg", "gone", "deep", "header"])
def test_unreadable_pictures_are_told_and_passed_over(
    case: str, program: Path, tmp_path: Path
) -> None:
    good, bad = tmp_path / "a.pgm", tmp_path / "b.ppm"
    good.write_bytes(b"P5 # a comment\n2 1\n255\n\x00\xff")
    contents = {
        "cut": (b"P6 2 2 255\n\x00", "cut short"),
        "jpeg": (b"\xff\xd8\xff\xe0", "not a binary PPM or PGM file"),
        "deep": (b"P5 1 1 65535\n\x00\x00", "white is 65535, not 255"),
        "header": (b"P6 x", "broken header"),
    }
    data, told = contents.get(case, (b"", "cannot be opened"))
    if case != "gone":
        bad.write_bytes(data)
    done = run(program, pixels_model(tmp_path / "pixels.onnx", 2, 1, "squash"), bad, good)
    assert done.returncode == 1
    assert done.stderr.startswith(f"extract: {bad}: {told}")
    assert rows(done.stdout)[0] == [str(good)]


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a\rb", "a\nb"])
def test_names_are_quoted_as_csv_wants_them(name: str, program: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.pgm"
    path.write_bytes(b"P5 1 1 255\n\x00")
    command = [program, pixels_model(tmp_path / "pixels.onnx", 1, 1, "squash"), path]
    done = subprocess.run(command, capture_output=True)
    text = io.StringIO(done.stdout.decode(), newline="")
    assert list(csv.reader(text)) == [["path", "feature0"], [str(path), "0"]]


def test_a_full_disk_is_told(program: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "a.pgm").write_bytes(b"P5 1 1 255\n\x00")
    command = [program, pixels_model(tmp_path / "pixels.onnx", 1, 1, "squash"), tmp_path]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "extract: cannot write the features: No space left on device\n"


@pytest.mark.parametrize("case", ["no arguments", "no model", "16 bits", "no pictures"])
def test_wrong_use_is_told_in_one_line(case: str, program: Path, tmp_path: Path) -> None:
    model = pixels_model(
        tmp_path / "m.onnx", 2, 1, "crop", "uint16" if case == "16 bits" else "uint8"
    )
    arguments, told = {
        "no arguments": ([], "usage: extract BUNDLE PICTURES"),
        "no model": ([tmp_path / "no.onnx", tmp_path], "extract: "),
        "16 bits": ([model, tmp_path], "extract: the encoder takes uint16 pictures of 1 channels"),
        "no pictures": ([model, tmp_path], "extract: no .ppm or .pgm in"),
    }[case]
    done = run(program, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(told)
    assert len(done.stderr.splitlines()) == 1
