"""TensorRT in the runtime: real engines are refused without a GPU; a stand-in proves the calls.

The stand-in computes with onnxruntime on memory that a pretended CUDA library hands out: it proves
which bytes go where and how batches are split, not what TensorRT computes.
"""

import ctypes
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tinyssl.export import build_engine, exporting, runtime
from tinyssl.export.exporting import export

from tests.making import make_pictures, make_run
from tinyssl.cli import main
from tinyssl.scanning import scan


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Pictures and a bundle, for tests that change neither."""
    folder = tmp_path_factory.mktemp("engine")
    pictures = make_pictures(folder / "pictures")
    run = make_run(folder / "run", "mobilenetv3-small")
    bundle = export(run, "onnx", folder / "bundle", pictures=pictures).out
    return pictures, bundle


@pytest.fixture
def pictures(exported: tuple[Path, Path]) -> Path:
    return exported[0]


@pytest.fixture
def bundle(exported: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(exported[1], tmp_path / "bundle"))


def write_engine(bundle: Path, plan: bytes, trt: Any) -> None:
    told = build_engine.facts(plan, bundle / "encoder.onnx", 3, trt)
    (bundle / "encoder.engine").write_bytes(plan)
    (bundle / "encoder.engine.json").write_text(json.dumps(told))


def real_engine(bundle: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    plan = build_engine.build(bundle / "encoder.onnx", batch=3, targets=("SM86",), trt=trt)
    write_engine(bundle, plan, trt)


def told(bundle: Path, **arguments: Any) -> str:
    with pytest.raises(runtime.BundleError) as error:
        runtime.Extractor(bundle, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


class Memory:
    # Named as in the library.
    # ruff: noqa: N802
    """CUDA's runtime library, on the CPU's memory."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def cudaGetDeviceCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def cudaMalloc(self, pointer: Any, size: ctypes.c_size_t) -> int:
        self.kept.append(ctypes.create_string_buffer(size.value))
        pointer._obj.value = ctypes.addressof(self.kept[-1])
        return 0

    def cudaStreamCreate(self, handle: Any) -> int:
        handle._obj.value = 7
        return 0

    def cudaStreamSynchronize(self, stream: ctypes.c_void_p) -> int:
        return 0 if stream.value == 7 else 1

    def cudaMemcpy(self, to: Any, of: Any, size: Any, kind: Any) -> int:
        ctypes.memmove(to, of, size.value)
        return 0


class Engine:
    """An engine and its context, for batches of 1 to 3."""

    num_io_tensors = 2

    def __init__(self, model: bytes) -> None:
        self.session = onnxruntime.InferenceSession(model)
        self.batches: list[int] = []
        self.address: dict[str, int] = {}

    def get_tensor_name(self, number: int) -> str:
        return ("pictures", "features")[number]

    def get_tensor_mode(self, name: str) -> str:
        return {"pictures": "in", "features": "out"}[name]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(1, 48, 48, 3), (1, 48, 48, 3), (3, 48, 48, 3)]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        width = self.session.get_outputs()[0].shape[1]
        return (-1, 48, 48, 3) if name == "pictures" else (-1, width)

    def create_execution_context(self) -> "Engine":
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.batches.append(shape[0])

    def set_tensor_address(self, name: str, address: int) -> None:
        self.address[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        size = int(np.prod(self.shape))
        taken = (ctypes.c_uint8 * size).from_address(self.address["pictures"])
        pictures = np.frombuffer(taken, np.uint8).reshape(self.shape)
        features = self.session.run(None, {"pictures": pictures})[0]
        ctypes.memmove(self.address["features"], features.ctypes.data, features.nbytes)
        return True


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A module like TensorRT; its engine file is the ONNX file."""
    engines: list[Engine] = []

    def deserialize(plan: bytes) -> Engine | None:
        engines.append(Engine(plan))
        return engines[-1]

    trt = SimpleNamespace(
        __name__="tensorrt",
        __version__="11.2",
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize),
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        engines=engines,
    )
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(runtime, "_load_cudart", Memory)
    return trt


def test_an_engine_is_preferred_and_splits_batches(
    bundle: Path, pictures: Path, stand_in: SimpleNamespace
) -> None:
    write_engine(bundle, (bundle / "encoder.onnx").read_bytes(), stand_in)
    some = scan([pictures])[:5]
    extractor = runtime.Extractor(bundle)
    assert (extractor.variant, extractor.provider) == ("encoder.engine", "TensorRT")
    found = extractor.embed(some)
    assert stand_in.engines[0].batches == [3, 2]
    plain = runtime.Extractor(bundle, device="cpu")
    assert plain.variant == "encoder.onnx"
    np.testing.assert_allclose(found, plain.embed(some), atol=1e-6)
    passed, line = runtime.check(extractor)
    assert passed
    assert "encoder.engine on TensorRT" in line
    assert extractor.run(np.empty((0, 48, 48, 3), np.uint8)).shape == (0, found.shape[1])


def test_another_version_of_tensorrt(bundle: Path, stand_in: SimpleNamespace) -> None:
    write_engine(bundle, b"plan", stand_in)
    stand_in.__version__ = "12.0"
    line = "built by tensorrt 11.2, here is 12.0; run build_engine.py"
    assert line in told(bundle, variant="encoder.engine")
    assert line in told(bundle, device="tensorrt")
    extractor = runtime.Extractor(bundle)
    assert extractor.variant == "encoder.onnx"
    assert line in extractor.passed_over


def test_the_engine_of_an_earlier_bundle_is_passed_over(
    bundle: Path, stand_in: SimpleNamespace, tmp_path: Path
) -> None:
    """As where a new bundle was copied over the one that the engine was built in."""
    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "encoder.onnx").write_bytes(b"another encoder")
    write_engine(earlier, (bundle / "encoder.onnx").read_bytes(), stand_in)
    for name in ("encoder.engine", "encoder.engine.json"):
        shutil.copy(earlier / name, bundle / name)
    line = "was built from another encoder.onnx; run build_engine.py again"
    assert line in told(bundle, device="tensorrt")
    extractor = runtime.Extractor(bundle)
    assert extractor.variant == "encoder.onnx"
    assert line in extractor.passed_over


@pytest.mark.parametrize(
    "damage", ["no engine", "no facts", "bad facts", "no model", "changed", "no package"]
)
def test_damaged_engines(bundle: Path, stand_in: SimpleNamespace, damage: str) -> None:
    write_engine(bundle, b"plan", stand_in)
    if damage == "no engine":
        (bundle / "encoder.engine").unlink()
    elif damage == "no facts":
        (bundle / "encoder.engine.json").unlink()
    elif damage == "bad facts":
        (bundle / "encoder.engine.json").write_text("[]")
    elif damage == "no model":
        facts = json.loads((bundle / "encoder.engine.json").read_text())
        del facts["model"]
        (bundle / "encoder.engine.json").write_text(json.dumps(facts))
    elif damage == "changed":
        (bundle / "encoder.engine").write_bytes(b"plam")
    else:
        sys.modules["tensorrt"] = None  # type: ignore[assignment]
    line = told(bundle, variant="encoder.engine")
    wanted = {"changed": "is damaged", "no package": "not installed here"}
    assert wanted.get(damage, "no complete encoder.engine") in line
    assert runtime.Extractor(bundle).variant == "encoder.onnx"


def test_an_engine_that_tensorrt_does_not_load(bundle: Path, stand_in: SimpleNamespace) -> None:
    write_engine(bundle, b"plan", stand_in)
    stand_in.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: None)
    assert "TensorRT cannot load" in told(bundle, variant="encoder.engine")


def test_an_engine_that_finds_no_memory(
    bundle: Path, stand_in: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory TensorRT returns no context instead of raising."""
    write_engine(bundle, (bundle / "encoder.onnx").read_bytes(), stand_in)
    monkeypatch.setattr(Engine, "create_execution_context", lambda engine: None)
    assert "too little memory" in told(bundle, variant="encoder.engine")
    assert runtime.Extractor(bundle).variant == "encoder.onnx"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_an_engine_is_for_no_other_device(
    device: str, bundle: Path, stand_in: SimpleNamespace
) -> None:
    write_engine(bundle, (bundle / "encoder.onnx").read_bytes(), stand_in)
    line = f"encoder.engine runs in TensorRT only; leave device {device} out"
    assert told(bundle, variant="encoder.engine", device=device) == line


def test_tensorrt_of_jetpack_5_is_told_to_be_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(__name__="tensorrt", __version__="8.5.2.2")
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    with pytest.raises(
        build_engine.BuildError, match=r"TensorRT 8\.5\.2\.2 is too old, 10 or newer"
    ):
        build_engine.load_tensorrt()


def test_float32_of_an_engine_keeps_its_bits() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    config = build_engine._config(trt, trt.Builder(trt.Logger(trt.Logger.ERROR)), workspace=64)
    assert not config.get_flag(trt.BuilderFlag.TF32)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 << 20


@pytest.mark.parametrize(("version", "options"), [("1.17.3", {}), ("1.18.0", {"use_tf32": "0"})])
def test_float32_on_cuda_keeps_its_bits(
    version: str, options: dict[str, str], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What onnxruntime is asked for, where it lists CUDA but then runs on the CPU."""
    asked: list[Any] = []
    real = onnxruntime.InferenceSession

    def session(model: bytes, options: Any, providers: Any) -> onnxruntime.InferenceSession:
        asked.append(providers)
        return real(model, options, ["CPUExecutionProvider"])

    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda, cpu])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert runtime.Extractor(bundle).provider == cpu
    assert asked == [[(cuda, options), cpu]]


def test_a_real_engine_without_a_gpu(
    bundle: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there is a GPU here")
    real_engine(bundle)
    assert "cudart" in (line := told(bundle, variant="encoder.engine")) or "no GPU" in line
    arguments = ["--bundle", str(bundle), str(pictures)]
    status = runtime._main([*arguments, "--out", str(tmp_path / "features.csv")])
    said = capsys.readouterr()
    assert status == 0
    assert "using encoder.onnx" in said.err
    assert "encoder.onnx on CPUExecutionProvider" in said.out


@pytest.mark.parametrize("option", ["--out", "--timing-cache"])
@pytest.mark.parametrize("place", ["no/file", "."])
def test_a_place_that_cannot_be_written_is_told_before_the_build(
    option: str, place: str, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_engine, "load_tensorrt", lambda: pytest.fail("work has begun"))
    path = bundle / place
    arguments = ["build_engine.py", "--model", str(bundle / "encoder.onnx"), option, str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(build_engine.BuildError, match=f"{path} cannot be written"):
        build_engine._main()


def test_no_engine_is_made_without_a_gpu(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("there is a GPU here")
    run = make_run(tmp_path / "other", "resnet18", channels=1)
    monkeypatch.setattr(exporting, "draw_samples", lambda *a, **k: pytest.fail("work has begun"))
    with pytest.raises(SystemExit) as stop:
        main(["export", str(run), "--target", "tensorrt", "--pictures", str(pictures)])
    assert stop.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--target jetson writes what a device builds its engine from" in line
    assert not (tmp_path / "other-bundle").exists()
