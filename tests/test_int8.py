"""Int8: the choice of calibration and layers, and trained encoders that keep their features."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tinyssl.export import build_engine, int8, variants
from tinyssl.export.exporting import export
from tinyssl.export.graph import Deployed, to_onnx
from tinyssl.export.int8 import (
    PERCENTILES,
    STYLES,
    Calibration,
    Judge,
    Quantized,
    Style,
    quantize_best,
)

from tests.making import make_run
from tinyssl.backbones import BACKBONES
from tinyssl.classifier import Classifier
from tinyssl.encoder import create_encoder
from tinyssl.errors import JobError, UsageError
from tinyssl.pretraining import pretrain
from tinyssl.weights import load_encoder

elpv = pytest.importorskip("elpv_dataset")
Quantize = Callable[[float, Sequence[str], Sequence[str]], float]


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 240 solar cells."""
    images = sorted(Path(elpv.__file__).parent.rglob("cell*.png"))[::10][:240]
    assert len(images) == 240
    file = tmp_path_factory.mktemp("cells") / "cells.txt"
    file.write_text("\n".join(map(str, images)))
    return file


def trained(name: str, pictures: Path, out: Path, *settings: str, epochs: int = 20) -> Path:
    overrides = [
        f"encoder.name={name}", "data.image_size=64", "augment.view_size=48",
        f"run.epochs={epochs}", "optim.batch_size=32", "run.watch_every=0", "run.save_every=20",
        "augment.preset=industrial",
        "encoder.descriptors=false",  # in float, they would hide what int8 does to the network
        *settings,
    ]  # fmt: skip
    return pretrain(pictures, "mobilenetv3-small", out, overrides=overrides)


class Table:
    """Stands for a calibration: a model is the name of its score."""

    layers = ("a", "b", "c", "d", "e", "f", "g", "h")

    def __init__(self, score: Quantize) -> None:
        self.score = score

    def quantize(
        self,
        style: Style,
        percentile: float,
        *,
        only: Sequence[str] = (),
        without: Sequence[str] = (),
    ) -> bytes:
        return str(self.score(percentile, only, without)).encode()


def choose(score: Quantize) -> tuple[float, float, list[str]]:
    table: Calibration = Table(score)  # type: ignore[assignment]
    found = quantize_best(table, STYLES["encoder.int8.onnx"], float, 0.95)
    return found.score, found.percentile, list(found.float_layers)


def test_the_best_calibration_is_taken() -> None:
    scores = dict(zip(PERCENTILES, (0.96, 0.99, 0.97), strict=True))
    assert choose(lambda percentile, only, without: scores[percentile]) == (0.99, 99.99, [])


def test_layers_that_hurt_stay_in_float() -> None:
    harm = {"c": 0.06, "f": 0.05}

    def score(percentile: float, only: Sequence[str], without: Sequence[str]) -> float:
        quantized = set(only) or set(Table.layers) - set(without)
        return round(0.98 - sum(harm.get(layer, 0) for layer in quantized), 3)

    assert choose(score) == (0.98, 100.0, ["c", "f"])


def test_the_best_there_is_with_a_quarter_in_float() -> None:
    assert choose(lambda percentile, only, without: 0.5 + len(without) / 100)[2] == ["a", "b"]


def test_a_users_own_silence_of_logging_stays() -> None:
    logging.disable(logging.INFO)
    try:
        with int8._quiet():
            assert logging.root.manager.disable == logging.WARNING
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """Of a network with components."""
    run = make_run(tmp_path_factory.mktemp("made") / "run", "mobilenetv3-small")
    pictures = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)
    deployed = Deployed(load_encoder(run)[0], torch.uint8, unit=True)
    model = to_onnx(deployed, torch.from_numpy(pictures[:2]), {})
    return Calibration(model, pictures, lambda count: None)


@pytest.mark.parametrize("style", STYLES)
def test_components_are_computed_in_float(calibration: Calibration, style: str) -> None:
    nodes = onnx.load_from_string(calibration.quantize(STYLES[style], 99.99)).graph.node
    rounded = {out for n in nodes if n.op_type == "DequantizeLinear" for out in n.output}

    def takes_rounded(kind: str) -> dict[str, bool]:
        return {n.name: bool(rounded & set(n.input)) for n in nodes if n.op_type == kind}

    assert not any(takes_rounded("MatMul").values())
    (centring,) = (node for node in nodes if "encoder.centre" in node.input)
    assert not rounded & set(centring.input)
    # All but the filters of the descriptors.
    convolutions = takes_rounded("Conv")
    assert convolutions == {name: name in calibration.layers for name in convolutions}
    assert list(convolutions.values()).count(False) == 3
    assert "MatMul" not in {n.op_type for n in nodes if n.name in calibration.layers}


def test_a_classifier_is_computed_in_float() -> None:
    encoder = create_encoder("test_resnet", seed=0).eval()
    classifier = Classifier(
        torch.ones(2, encoder.width), torch.zeros(2), torch.tensor(1.0), ["a", "b"]
    )
    pictures = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)
    deployed = Deployed(encoder, torch.uint8, unit=True, classifier=classifier)
    model = to_onnx(deployed, torch.from_numpy(pictures[:2]), {})
    made = Calibration(model, pictures, lambda count: None)
    assert made.finish
    assert {n.op_type for n in made.model.graph.node if n.name in made.layers} == {"Conv"}


QUICK = "mobilenetv3-small"
TRAINED = [n if n == QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BACKBONES]


@pytest.mark.parametrize("name", TRAINED)
def test_trained_backbones_keep_their_features_or_are_refused(
    name: str, cells: Path, tmp_path: Path
) -> None:
    """Float16 always; int8 with a centred cosine above 0.95, or not at all and with a reason."""
    channels = "data.channels=3" if name in ("resnet18", "mobilenetv2") else "data.channels=1"
    run = trained(name, cells, tmp_path / "run", channels)
    exported = export(run, "jetson", tmp_path / "bundle")
    assert exported.parity["encoder.onnx"].max_abs < 1e-4
    assert exported.parity["encoder.fp16.onnx"].mean_cosine > 0.999
    if "encoder.int8.trt.onnx" in exported.parity:
        assert exported.parity["encoder.int8.trt.onnx"].centred_cosine > 0.95
        build_int8_engine(exported.out / "encoder.int8.trt.onnx")
    try:
        small = export(run, "onnx-int8", tmp_path / "int8")
    except JobError as error:
        assert "alone, these layers cost most" in str(error)
        assert not (tmp_path / "int8").exists()
    else:
        assert small.parity["encoder.int8.onnx"].centred_cosine > 0.95
        assert small.sizes["encoder.int8.onnx"] < 0.5 * small.sizes["encoder.onnx"]


def build_int8_engine(model: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert len(build_engine.build(model, batch=4, targets=("SM86",), trt=trt)) > 100_000


@pytest.fixture(scope="module")
def run(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    return trained("resnet18", cells, folder, epochs=3)


def test_each_engine_gets_its_kind_of_file(run: Path, tmp_path: Path) -> None:
    made = export(run, "onnx-int8", tmp_path / "ort"), export(run, "jetson", tmp_path / "trt")
    for bundle, name in zip(made, ("encoder.int8.onnx", "encoder.int8.trt.onnx"), strict=True):
        assert bundle.parity[name].centred_cosine > 0.95
    build_int8_engine(tmp_path / "trt" / "encoder.int8.trt.onnx")
    ours = onnx.load(tmp_path / "ort" / "encoder.int8.onnx")
    assert (ours.ir_version, [(o.domain, o.version) for o in ours.opset_import]) == (8, [("", 18)])
    zeros = {t.name: onnx.numpy_helper.to_array(t) for t in ours.graph.initializer}
    assert {z.dtype.name for n, z in zeros.items() if n.endswith("zero_point")} >= {"uint8", "int8"}
    theirs = onnx.load(tmp_path / "trt" / "encoder.int8.trt.onnx")
    zeros = {t.name: onnx.numpy_helper.to_array(t) for t in theirs.graph.initializer}
    points = [z for n, z in zeros.items() if n.endswith("zero_point")]
    assert points
    assert all(z.dtype == np.int8 and not z.any() for z in points)
    manifest = json.loads((tmp_path / "ort" / "manifest.json").read_text())
    facts = manifest["files"]["encoder.int8.onnx"]
    assert facts["calibration"]["pictures"] == 120
    assert facts["calibration"]["percentile"] in PERCENTILES
    assert len(facts["calibration"]["sha256"]) == 64


def test_int8_that_changes_features_is_refused_unless_forced(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(variants, "MIN_CENTRED", 1.1)
    with pytest.raises(JobError, match=r"centred cosine 0.9.*1.1 is wanted.*cost most.*onnx-fp16"):
        export(run, "onnx-int8", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert "encoder.int8.trt.onnx" not in export(run, "jetson", tmp_path / "jetson").parity
    assert "was left out" in caplog.text
    forced = export(run, "onnx-int8", tmp_path / "bundle", force=True)
    assert "encoder.int8.onnx" in forced.parity


def test_int8_that_loses_accuracy_is_refused(
    run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = cells.read_text().splitlines()
    rows = [f"{path},{'even' if i % 2 else 'odd'}" for i, path in enumerate(paths)]
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label\n" + "\n".join(rows) + "\n")
    monkeypatch.setattr(variants, "MAX_KNN_LOSS", -1.0)
    with pytest.raises(JobError, match=r"k-NN accuracy falls by .* points"):
        export(run, "onnx-int8", tmp_path / "bundle", labels=labels)
    monkeypatch.setattr(variants, "MAX_KNN_LOSS", 1.0)
    assert export(run, "onnx-int8", tmp_path / "bundle", labels=labels).out.is_dir()


def test_other_pictures_calibrate(run: Path, cells: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("\n".join(cells.read_text().splitlines()[:20]))
    bundle = export(run, "onnx-int8", tmp_path / "bundle", calibration=few).out
    facts = json.loads((bundle / "manifest.json").read_text())["files"]["encoder.int8.onnx"]
    assert facts["calibration"]["pictures"] == 20
    few.write_text(cells.read_text().splitlines()[0])
    with pytest.raises(UsageError, match="calibrated on at least 2 readable pictures; got 1"):
        export(run, "onnx-int8", tmp_path / "other", calibration=few)


def test_int8_is_not_chosen_by_the_pictures_it_is_measured_on(
    run: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[float] = []

    def chosen(calibration: Calibration, style: Style, judge: Judge, enough: float) -> Quantized:
        found = quantize_best(calibration, style, judge, enough)
        scored.append(judge(found.model))
        return found

    monkeypatch.setattr(variants, "quantize_best", chosen)
    made = export(run, "onnx-int8", tmp_path / "bundle", pictures=cells)
    measured = made.parity["encoder.int8.onnx"].centred_cosine
    assert scored == [pytest.approx(measured, abs=0.02)]
    assert scored != [measured]
