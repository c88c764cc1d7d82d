"""Formats for phones: ExecuTorch's own runtime, and onnxruntime's own tools for phones."""

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tinyssl.export import exporting, mobile, runtime, variants
from tinyssl.export.exporting import export
from tinyssl.export.graph import Deployed, to_onnx
from tinyssl.export.mobile import pte_outputs, to_pte
from tinyssl.export.parity import compare

import tinyssl
from tests.making import make_pictures, make_run, smooth_noise
from tinyssl.backbones import BACKBONES
from tinyssl.classifier import Classifier
from tinyssl.encoder import create_encoder
from tinyssl.errors import JobError, UsageError
from tinyssl.weights import load_encoder

needs_executorch = pytest.mark.skipif(
    find_spec("executorch") is None, reason='no executorch; pip install "tinyssl[mobile]"'
)
# Lowering takes 10 to 30 s each; those of a run by hand are skipped without it.
ALL = "TINYSSL_ALL_BACKBONES"


@dataclass(frozen=True)
class Made:
    """A run, its pictures, its bundle, and what the program printed on the way."""

    run: Path
    pictures: Path
    bundle: Path
    told: str
    noise: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A bundle by the program itself; without executorch one of ONNX only."""
    folder = tmp_path_factory.mktemp("mobile")
    pictures = make_pictures(folder / "pictures")
    run = make_run(folder / "run", "mobilenetv3-small")
    target = "mobile" if find_spec("executorch") else "onnx"
    command = [sys.executable, "-m", "tinyssl", "export", str(run), "--target", target]
    command += ["--out", str(folder / "bundle"), "--pictures", str(pictures)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Made(run, pictures, folder / "bundle", done.stdout, done.stderr)


@needs_executorch
@pytest.mark.parametrize(
    ("name", "stem", "channels"),
    [(name, "standard", 3) for name in BACKBONES if name != "mobilenetv3-small"]
    + [("resnet18", "small", 1), ("mobilenetv2", "small", 4)],
)
def test_backbones_keep_their_features(name: str, stem: str, channels: int, tmp_path: Path) -> None:
    if (name, stem) != ("resnet18", "standard") and ALL not in os.environ:
        pytest.skip(f"slow; {ALL}=1 lowers every backbone")
    folder = make_run(tmp_path / "run", name, stem=stem, channels=channels)
    deployed = Deployed(load_encoder(folder)[0], torch.uint8, unit=True).eval()
    pictures = smooth_noise(48, channels)
    with torch.inference_mode():
        wanted = deployed(pictures).numpy()
    model = to_pte(deployed, pictures)
    found = pte_outputs(model, pictures.numpy())[0]
    assert found.dtype == np.float32
    parity = compare(wanted, found)
    print(f"{name} {stem} {channels}: {len(model) / 1e6:.1f} MB, {parity}")
    assert parity.max_abs < 1e-4
    assert parity.same_nearest == 1
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3


@needs_executorch
def test_mobile_bundle(made: Made) -> None:
    assert max(map(len, made.told[: made.told.index("wrote ")].splitlines())) <= 80
    expected = ("exporting ", "warning: measured on 12 pictures only")
    noise = [line for line in made.noise.splitlines() if not line.startswith(expected)]
    assert noise == []
    assert {"encoder.onnx", "encoder.pte"} <= {file.name for file in made.bundle.iterdir()}
    manifest = json.loads((made.bundle / "manifest.json").read_text())
    assert "executorch" in manifest["tools"]
    listed = manifest["files"]["encoder.pte"]
    assert listed["parity"]["max_abs"] <= listed["tolerance"]["max_abs"] == 1e-4
    with np.load(made.bundle / "golden.npz") as golden:
        found = pte_outputs((made.bundle / "encoder.pte").read_bytes(), golden["pictures"])[0]
        np.testing.assert_allclose(found, golden["features"], atol=1e-4)
    with pytest.raises(runtime.BundleError, match=r"encoder\.pte is not for this program"):
        runtime.Extractor(made.bundle, "encoder.pte")


@needs_executorch
def test_lines_of_the_guide_run(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = Path(tinyssl.__file__).parent.parent / "export" / "README.md"
    (lines,) = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(made.bundle.parent)
    names: dict[str, Any] = {}
    with mobile._quiet():
        exec(lines.replace("1, 128, 128, 3", "1, 48, 48, 3"), names)
    wanted = pte_outputs((made.bundle / "encoder.pte").read_bytes(), names["picture"].numpy())[0]
    np.testing.assert_array_equal(names["features"].numpy(), wanted)


@pytest.mark.parametrize("case", ["not installed", "any size"])
def test_wrong_use_is_told_before_any_work(
    case: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"out": tmp_path / "b", "pictures": made.pictures}
    if case == "not installed":
        monkeypatch.setattr("tinyssl.extras.find_spec", lambda name: None)
        told = r'needs executorch; install with: pip install "tinyssl\[mobile\]"'
    else:
        pytest.importorskip("executorch")
        given["any_size"], told = True, "one picture size; leave --any-size out"
    monkeypatch.setattr(exporting, "load_encoder", lambda run: pytest.fail("work has begun"))
    with pytest.raises(UsageError, match=told):
        export(made.run, "mobile", **given)


@needs_executorch
def test_phones_give_the_probabilities_of_torch() -> None:
    encoder = create_encoder("test_resnet", seed=0)
    weight = torch.randn(3, encoder.width, generator=torch.Generator().manual_seed(0))
    classifier = Classifier(weight, torch.zeros(3), torch.tensor(2.0), ["a", "b", "c"])
    deployed = Deployed(encoder, torch.uint8, unit=True, classifier=classifier).eval()
    pictures = smooth_noise(48, 3)
    with torch.inference_mode():
        wanted = deployed(pictures)
    found = pte_outputs(to_pte(deployed, pictures), pictures.numpy())
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-4)


@needs_executorch
def test_what_executorch_cannot_take_is_told() -> None:
    deployed = Deployed(create_encoder("resnet18", channels=1, seed=0), torch.uint16, unit=True)
    with pytest.raises(UsageError, match=r"takes uint8 pictures, this encoder torch\.uint16"):
        to_pte(deployed, torch.zeros((1, 48, 48, 1), dtype=torch.uint16))
    with pytest.raises(JobError, match="ExecuTorch cannot run the model"):
        pte_outputs(b"garbage" * 100, np.zeros((1, 48, 48, 3), np.uint8))


def test_notes_of_executorch_leave_no_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    with mobile._quiet():
        logging.error("logging then adds a handler, which would tell our lines too")
        assert logging.root.handlers
    assert not logging.root.handlers


@needs_executorch
def test_unlike_features_leave_nothing_behind(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = onnx.load(made.bundle / "encoder.onnx")
    program = (made.bundle / "encoder.pte").read_bytes()
    monkeypatch.setattr(exporting, "to_onnx", lambda *given, **more: graph)
    monkeypatch.setattr(variants, "to_pte", lambda *given: program)
    monkeypatch.setattr(variants, "pte_outputs", lambda *given: [pte_outputs(*given)[0] + 2e-4])
    with pytest.raises(JobError, match=r"encoder\.pte differs from torch"):
        export(made.run, "mobile", tmp_path / "bundles" / "b", pictures=made.pictures)
    assert not (tmp_path / "bundles").exists()


def test_onnx_runs_in_onnxruntime_mobile(made: Made, tmp_path: Path) -> None:
    """onnxruntime's own tools: CoreML takes all of it, and the ORT format keeps the features."""
    fixed = tmp_path / "fixed.onnx"
    model = made.bundle / "encoder.onnx"
    tool("make_dynamic_shape_fixed", "--dim_param", "batch", "--dim_value", 1, model, fixed)
    told = tool("check_onnx_model_mobile_usability", fixed).partition("CoreML MLProgram")[2]
    assert "Model should perform well with CoreML MLProgram as is: YES" in told
    tool("convert_onnx_models_to_ort", model, "--output_dir", tmp_path / "ort")
    with np.load(made.bundle / "golden.npz") as golden:
        for name in ("encoder.ort", "encoder.with_runtime_opt.ort"):
            data = (tmp_path / "ort" / name).read_bytes()
            assert data[4:8] == b"ORTM"
            found = variants.onnx_outputs(data, golden["pictures"])["features"]
            np.testing.assert_allclose(found, golden["features"], atol=1e-4)


@pytest.mark.parametrize("name", BACKBONES)
def test_graphs_hold_only_layers_that_devices_know(name: str, made: Made) -> None:
    """No shapes computed at run time: accelerators take a graph whole or leave it."""
    if name == "mobilenetv3-small":
        model = onnx.load(made.bundle / "encoder.onnx")
    elif ALL not in os.environ:
        pytest.skip(f"slow; {ALL}=1 exports every backbone")
    else:
        deployed = Deployed(create_encoder(name, seed=0).eval(), torch.uint8, unit=True)
        model = to_onnx(deployed, smooth_noise(48, 3), {})
    found = {node.op_type for node in model.graph.node}
    assert not found & {"Shape", "Range", "Gather", "Loop", "If"}
    assert {domain.domain for domain in model.opset_import} == {""}


def tool(name: str, *arguments: object) -> str:
    command = [sys.executable, "-m", f"onnxruntime.tools.{name}", *(str(a) for a in arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr
