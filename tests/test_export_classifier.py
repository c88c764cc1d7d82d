"""A fine-tuned run's bundle: the same probabilities as in torch, and names of classes."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tinyssl.export import runtime
from tinyssl.export.exporting import export, table

from tests.making import make_run
from tinyssl.classifier import Classifier, load_classifier, save_classifier
from tinyssl.cli import main
from tinyssl.console import print_result
from tinyssl.model import load

CLASSES = ["broken", "fine, mostly", "größer"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run with a classifier, pictures, and their bundle."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "pictures").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (12, 50, 50, 3), dtype=np.uint8)
    for number, picture in enumerate(noise):
        Image.fromarray(picture // (1 + number % 3)).save(folder / "pictures" / f"{number:02}.png")
    run = make_run(folder / "run", "mobilenetv3-small")
    description = json.loads((run / "encoder.json").read_text())
    (run / "encoder.json").write_text(json.dumps(description | {"classes": CLASSES}))
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(3, description["width"], generator=draw)
    classifier = Classifier(weight, torch.tensor([0.1, 0.2, -0.3]), torch.tensor(2.5), CLASSES)
    save_classifier(classifier, run)
    exported = export(run, "onnx-fp16", folder / "bundle", pictures=folder / "pictures")
    assert exported.variants["encoder.onnx"].same_class == 1.0
    print_result(table(exported))
    return run, folder / "pictures", exported.out


def wanted(run: Path, pictures: Path) -> np.ndarray:
    classifier = load_classifier(run)
    assert classifier is not None
    features = load(run).embed(sorted(pictures.iterdir()))
    return classifier.probabilities(torch.from_numpy(features)).numpy()


def test_probabilities_are_those_of_torch(made: tuple[Path, Path, Path]) -> None:
    run, pictures, bundle = made
    expected = wanted(run, pictures)
    assert len(set(expected.argmax(axis=1))) > 1
    for variant, allowed in (("encoder.onnx", 1e-4), ("encoder.fp16.onnx", 0.02)):
        extractor = runtime.Extractor(bundle, variant, device="cpu")
        assert extractor.classes == CLASSES
        found = extractor.classify(sorted(pictures.iterdir()))
        np.testing.assert_allclose(found, expected, atol=allowed)
        assert runtime.check(extractor)[0]
    features = extractor.embed(sorted(pictures.iterdir()))
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-3)


def test_raw_features_do_not_change_the_classes(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, pictures, _ = made
    bundle = export(run, "onnx", tmp_path / "raw", pictures=pictures, raw_features=True).out
    found = runtime.Extractor(bundle, device="cpu").classify(sorted(pictures.iterdir()))
    np.testing.assert_allclose(found, wanted(run, pictures), atol=1e-4)


def test_the_file_names_its_classes(made: tuple[Path, Path, Path]) -> None:
    model = onnx.load(made[2] / "encoder.onnx")
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["classes"]) == CLASSES
    assert [output.name for output in model.graph.output] == ["features", "probabilities"]
    assert json.loads((made[2] / "manifest.json").read_text())["classes"] == CLASSES


def test_the_program_prints_classes(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    run, pictures, bundle = made
    out = tmp_path / "found.csv"
    program = [sys.executable, str(bundle / "runtime.py"), "--device", "cpu", str(pictures)]
    done = subprocess.run([*program, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = wanted(run, pictures)
    names = [CLASSES[row] for row in expected.argmax(axis=1)]
    lines = done.stdout.splitlines()
    for number, (name, line) in enumerate(zip(names, lines, strict=False)):
        assert line == f"{pictures / f'{number:02}.png'}: {name} {expected[number].max():.3f}"
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == names
    assert float(rows[3]["probability"]) == pytest.approx(expected[3].max(), abs=1e-4)
    assert float(rows[3]["p(größer)"]) == pytest.approx(expected[3, 2], abs=1e-4)
    alone = subprocess.run(program, capture_output=True, text=True)
    assert alone.returncode == 0
    assert alone.stdout.splitlines()[:12] == lines[:12]


def test_a_bundle_without_a_classifier_says_so(
    made: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", "mobilenetv3-small")
    main(["export", str(run), "--out", str(tmp_path / "b"), "--pictures", str(made[1])])
    with pytest.raises(runtime.BundleError, match="has no classifier; export a run of tinyssl"):
        runtime.Extractor(tmp_path / "b").classify([made[1] / "00.png"])
    with pytest.raises(SystemExit) as stop:
        runtime._main(["--bundle", str(tmp_path / "b"), str(made[1])])
    assert stop.value.code == 2
    assert "give --out" in capsys.readouterr().err
