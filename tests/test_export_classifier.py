"""A fine-tuned run's bundle: the same probabilities as in torch, and names of classes."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tinyssl.export import runtime
from tinyssl.export.exporting import Exported, export, table
from tinyssl.export.parity import compare
from tinyssl.export.samples import Reader, Samples, draw_samples
from tinyssl.export.variants import Tolerance, Variant

from tests.making import make_run, read_csv
from tinyssl.classifier import Classifier, load_classifier, save_classifier
from tinyssl.cli import main
from tinyssl.console import print_result
from tinyssl.errors import UsageError
from tinyssl.files import sha256
from tinyssl.finetuning import finetune
from tinyssl.model import load
from tinyssl.reporting.device_tables import find_bundle
from tinyssl.weights import read_description

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
    features = load(run).embed(sorted(pictures.iterdir()), raw=True)
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
    for single in (np.zeros((8, 8, 3), np.uint8), str(next(pictures.iterdir()))):
        with pytest.raises(runtime.BundleError, match="put a single one into a list"):
            extractor.embed(single)
    for call in (extractor.embed, extractor.classify, lambda *a: list(extractor.run_files(*a))):
        with pytest.raises(runtime.BundleError, match="batch_size: got -1; give 1 or more"):
            call(sorted(pictures.iterdir()), -1)


def test_a_check_looks_at_probabilities(made: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The features may be training's where the classes are not."""
    bundle = shutil.copytree(made[2], tmp_path / "bundle")
    passed, told = runtime.check(runtime.Extractor(bundle, device="cpu"))
    assert passed
    assert re.search(r"probabilities within [^ ]+ \(allowed 0\.01\), encoder\.onnx", told)
    with np.load(bundle / "golden.npz") as golden:
        arrays = dict(golden)
    np.savez(bundle / "golden.npz", **arrays | {"probabilities": arrays["probabilities"][:, ::-1]})
    manifest = json.loads((bundle / "manifest.json").read_text())
    data = (bundle / "golden.npz").read_bytes()
    manifest["files"]["golden.npz"] = {"bytes": len(data), "sha256": sha256(bundle / "golden.npz")}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    passed, told = runtime.check(runtime.Extractor(bundle, device="cpu"))
    assert not passed
    assert "FAILED: 8 pictures, largest difference" in told


def test_the_bundle_of_another_classifier_is_told_apart(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """A few-label-linear run that is made again has the same encoder."""
    run, _, bundle = made
    (tmp_path / "encoder.safetensors").write_bytes((run / "encoder.safetensors").read_bytes())
    classifier = load_classifier(run)
    assert classifier is not None
    save_classifier(replace(classifier, weight=-classifier.weight), tmp_path)
    for folder in (run, tmp_path):
        digests = {file.name: sha256(file) for file in folder.glob("*.safetensors")}
        if folder == run:
            assert find_bundle(folder, digests, bundle) is not None
            continue
        with pytest.raises(UsageError, match="is of other weights than"):
            find_bundle(folder, digests, bundle)


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
    rows = read_csv(out)
    assert [row["label"] for row in rows] == names
    assert float(rows[3]["probability"]) == pytest.approx(expected[3].max(), abs=1e-4)
    assert float(rows[3]["p(größer)"]) == pytest.approx(expected[3, 2], abs=1e-4)
    alone = subprocess.run(program, capture_output=True, text=True)
    assert alone.returncode == 0
    assert alone.stdout.splitlines()[:12] == lines[:12]


def test_names_that_a_terminal_cannot_show_are_escaped(
    made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    picture, out = tmp_path / "größer.png", tmp_path / "found.csv"
    shutil.copy(made[1] / "00.png", picture)
    program = [sys.executable, made[2] / "runtime.py", "--device", "cpu", picture, "--out", out]
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(program, capture_output=True, text=True, env=ascii_only)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/gr\\xf6\\xdfer.png: ")
    assert "größer.png" in out.read_text(encoding="utf-8")


def test_a_bundle_names_no_folder_of_the_machine_that_made_it(
    made: tuple[Path, Path, Path],
) -> None:
    for file in made[2].iterdir():
        assert not [p for p in (sys.prefix, *sys.path) if p and p.encode() in file.read_bytes()]


def test_what_an_export_returns_is_short_in_notebooks() -> None:
    features = np.eye(3)
    variant = Variant(bytes(100_000), compare(features, features), Tolerance(0.1, 0.9))
    assert len(repr(Exported(Path("bundle"), {"encoder.onnx": variant}))) < 1_000


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of 60 pictures, one fine-tuned on eight others, and one fine-tuned from that."""
    folder = tmp_path_factory.mktemp("tuned")
    generator = np.random.default_rng(0)
    for number in range(68):
        low = 128 * (number % 2)
        where = folder / "pretraining" if number >= 8 else folder / "labeled" / f"class{low}"
        where.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(low, low + 127, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(where / f"{number:02}.png")
    run = make_run(folder / "run", "test_resnet")
    (run / "recipe.yaml").write_text(f"data:\n  sources: [{folder / 'pretraining'}]\n")
    first = finetune(run, folder / "labeled", "few-label-linear", folder / "first")
    second = finetune(first, folder / "labeled", "few-label-linear", folder / "second")
    return {"folder": folder, "run": run, "first": first, "second": second}


def count(found: Samples) -> int:
    return len(found.measured) + len(found.calibrated) + len(found.chosen)


def measured_on(run: Path, **given: Any) -> Samples:
    given = {"pictures": None, "calibration": None} | given
    return draw_samples(Reader(read_description(run)), run, **given, calibrate=True)


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_fine_tuned_run_is_measured_on_its_pretrainings_pictures_too(
    which: str, tuned: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    found = measured_on(tuned[which])
    assert count(found) == 68
    assert len(measured_on(tuned["run"]).calibrated) == 30
    assert caplog.text.count("measured on 17 pictures only") == 1
    assert caplog.text.count("give 128 or more by --pictures DIR") == 2


@pytest.mark.parametrize("gone", ["run", "its recipe", "its pictures", "own results", "own list"])
def test_what_is_gone_of_a_fine_tuned_runs_past_is_done_without(
    gone: str, tuned: dict[str, Path], tmp_path: Path
) -> None:
    run, own = tmp_path / "run", tmp_path / "own"
    shutil.copytree(tuned["run"], run)
    shutil.copytree(tuned["first"], own)
    description = json.loads((own / "encoder.json").read_text()) | {"init": str(run)}
    (own / "encoder.json").write_text(json.dumps(description))
    (own / "finetune.json").write_text(json.dumps({"run": "elsewhere"}))
    expected = 8
    if gone == "run":
        shutil.rmtree(run)
    elif gone == "its recipe":
        (run / "recipe.yaml").unlink()
    elif gone == "its pictures":
        (run / "recipe.yaml").write_text(f"data:\n  sources: [{tmp_path / 'none'}]\n")
    elif gone == "own results":
        (own / "finetune.json").unlink()  # the classes say what it is
        expected = 68
    else:
        (own / "recipe.yaml").write_text(f"data:\n  sources: [{tmp_path / 'none.csv'}]\n")
        expected = 60
    found = measured_on(own)
    assert count(found) == expected


def test_moved_pictures_are_asked_for(tuned: dict[str, Path], tmp_path: Path) -> None:
    own = shutil.copytree(tuned["first"], tmp_path / "own")
    description = json.loads((own / "encoder.json").read_text()) | {"init": "gone"}
    (own / "encoder.json").write_text(json.dumps(description))
    (own / "finetune.json").write_text(json.dumps({"run": "gone"}))
    listed = (own / "labels.csv").read_text()
    (own / "labels.csv").write_text(listed.replace(str(tuned["folder"]), "/moved"))
    (own / "recipe.yaml").write_text(f"data:\n  sources: [{own / 'labels.csv'}]\n")
    told = r"pictures of .* are gone, first /moved/labeled/.*; give --pictures DIR"
    with pytest.raises(UsageError, match=told):
        measured_on(own)


def test_runs_that_name_each_other_end(tuned: dict[str, Path], tmp_path: Path) -> None:
    own = shutil.copytree(tuned["first"], tmp_path / "own")
    description = json.loads((own / "encoder.json").read_text()) | {"init": str(own)}
    (own / "encoder.json").write_text(json.dumps(description))
    assert count(measured_on(own)) == 8


def test_seven_pictures_are_too_few_for_int8(tuned: dict[str, Path], tmp_path: Path) -> None:
    for number in range(8, 15):
        shutil.copy(tuned["folder"] / "pretraining" / f"{number:02}.png", tmp_path)
    told = r"calibrated on at least 8 readable pictures; got 7; give more by --pictures DIR"
    with pytest.raises(UsageError, match=told):
        measured_on(tuned["first"], pictures=tmp_path)
    shutil.copy(tuned["folder"] / "pretraining" / "15.png", tmp_path)
    found = measured_on(tuned["first"], pictures=tmp_path)
    assert (len(found.measured), len(found.calibrated), len(found.chosen)) == (2, 4, 2)
    rows = np.concatenate([found.measured, found.calibrated, found.chosen])
    assert len(np.unique(rows, axis=0)) == 8


def test_int8_is_not_measured_on_pictures_that_calibrate_it(
    tuned: dict[str, Path], tmp_path: Path
) -> None:
    few = tmp_path / "few.txt"
    paths = sorted((tuned["folder"] / "pretraining").iterdir())
    few.write_text("\n".join(map(str, paths[:20])))
    found = measured_on(tuned["run"], calibration=few)
    assert (len(found.measured), len(found.calibrated), len(found.chosen)) == (20, 20, 20)
    rows = np.concatenate([found.measured, found.calibrated, found.chosen])
    assert len(np.unique(rows, axis=0)) == 60
    told = "beside those of --calibration an export is measured .* at least 4 .* got 0; give more"
    with pytest.raises(UsageError, match=told):
        measured_on(tuned["run"], calibration=tuned["folder"] / "pretraining")


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
